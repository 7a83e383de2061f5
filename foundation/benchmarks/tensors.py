"""What a pretrained encoder is worth for tensors, spectra and labels of atoms, beside scalar heads and guesses.

Every run is a ``foundation adapt`` of its own, kept in the folder: a benchmark that was stopped goes on where it was.
"""

from __future__ import annotations

import gzip
import itertools
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from datamodules.datamodule import CrystalDataModule
from datamodules.errors import InputError
from datamodules.graph import NeighborRecipe
from datamodules.properties import KNOWN
from datamodules.store import CrystalStore
from foundation.checkpoint import find_members, load_checkpoint
from foundation.files import write_json
from foundation.inference import Ensemble

VAL_SHARE = 1 / 9  # of what does not test
EVERY, RECORDS = 8, 5_000  # of the moments, of which there are many more


@dataclass(frozen=True)
class Quantity:
    """A label that is more than one number of a crystal.

    Attributes:
        name: The property.
        config: The configuration that learns it, in ``configs/``.
        folder: The data set that holds it.
        epochs: How long to train on all labels; 40 on few.
        words: How to import it.
        thin: Whether to take every eighth record only.
        scalars: Scalars of the same crystals that a scalar head learns as a rival.
    """

    name: str
    config: str
    folder: str
    epochs: int
    words: tuple[str, ...] = ()
    thin: bool = False
    scalars: tuple[str, ...] = ()


_ISOTROPIC = ("--property", "poly_total::log", "--property", "poly_electronic::log")
QUANTITIES = {
    quantity.name: quantity
    for quantity in (
        Quantity(
            "elastic_tensor",
            "adapt_elastic",
            "elastic_mp",
            40,
            ("--map", "elastic_full=elastic_tensor"),
            scalars=("K_Voigt", "G_Voigt"),
        ),
        Quantity(
            "dielectric_total",
            "adapt_dielectric",
            "dielectric_petousis2017",
            40,
            _ISOTROPIC,
            scalars=("poly_total",),
        ),
        Quantity(
            "dielectric_electronic",
            "adapt_dielectric",
            "dielectric_petousis2017",
            40,
            _ISOTROPIC,
            scalars=("poly_electronic",),
        ),
        Quantity(
            "piezoelectric_tensor",
            "adapt_piezoelectric",
            "piezo_dejong2015",
            40,
            ("--map", "piezo_full=piezoelectric_tensor"),
        ),
        Quantity("born_charges", "adapt_born_charges", "becs_dielectric_abinit", 24),
        Quantity("phonon_dos", "adapt_phonon_dos", "phonon_dos_petretto", 40, ("--map", "phdos=phonon_dos")),
        Quantity("magmom_site", "adapt_moments", "mp_magmom_sites", 12, thin=True),
    )
}
STARTS: dict[str, tuple[str, ...]] = {
    "mp-small": ("--pretrained", "mp-small", "--strategy", "layer_decay"),
    "from_scratch": ("--strategy", "from_scratch", "--optimization.learning_rate", "2.0e-3"),
}
FEW, FEW_EPOCHS = 100, 40  # labels, and how long to train on them
ALL = "all"
SIZES = (str(FEW), ALL)


def compare_tensors(folder: Path, data: Path, names: Sequence[str], sizes: Sequence[str], seeds: int) -> pd.DataFrame:
    """Adapt to every quantity from a pretrained and from a fresh encoder, and keep all in the folder.

    One split of each set by reduced formula, 80/10/10; the seed is that of weights and order alone.

    Args:
        folder: Stores, lists and runs, and at the end results.csv.
        data: The folder of data sets.
        names: Which quantities.
        sizes: "100" or "all", the crystals that train.
        seeds: How many seeds.

    Returns:
        A row per run: ``property``, ``size``, ``start``, ``seed``, ``learned`` (the property, or a scalar beside it),
        and what ``foundation adapt`` said of the test crystals.
    """
    rows = []
    for name in names:
        quantity = QUANTITIES[name]
        store, lists = prepare(folder, data, quantity)
        for size, start, seed in itertools.product(sizes, STARTS, range(seeds)):
            for learned in (name, *(quantity.scalars if size == ALL else ())):
                run = folder / "runs" / f"{name}-{learned}-{size}-{start}-{seed}"
                adapt(run, quantity, learned, store, lists, size, start, seed)
                found = json.loads((run / "metrics.json").read_text())
                row = {"property": name, "size": size, "start": start, "seed": seed, "learned": learned}
                row |= flat(found["test"][learned]) | {"seconds": found["seconds"]}
                if learned != name and KNOWN[name].formula == "ij=ji":
                    row |= isotropic_error(run, name, learned, store, lists)
                rows.append(row)
                print(f"{name} {size} {start} seed {seed}, {learned}: MAE {row['mae']:.4g}", flush=True)
    table = pd.DataFrame(rows)
    table.to_csv(folder / "results.csv", index=False)
    return table


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """A row per property and size: errors from the pretrained and the fresh encoder, their ratio, and the guess."""
    own = table[table["learned"] == table["property"]]
    keys = ["property", "size"]
    made = own.groupby([*keys, "start"], sort=False)["mae"].mean().unstack("start")[list(STARTS)]
    pretrained, scratch = (made[start] for start in STARTS)
    made["ratio"], made["guess"] = pretrained / scratch, own.groupby(keys)["baseline_mae"].mean()
    made["of the guess"] = pretrained / made["guess"]
    return made.reset_index()


def prepare(folder: Path, data: Path, quantity: Quantity) -> tuple[Path, Path]:
    """The store of a quantity, and its lists of crystals that train and test; both are made once."""
    store = folder / "stores" / quantity.folder
    if not (store / "manifest.json").is_file():
        source = data / quantity.folder / "data.jsonl.gz"
        if quantity.thin:
            source = _thinned(source, folder / f"{quantity.folder}.jsonl.gz")
        _foundation("data", "import", source, *quantity.words, "--out", store)
    lists = folder / "splits" / f"{quantity.name}.json"
    if not lists.is_file():
        lists.parent.mkdir(parents=True, exist_ok=True)
        write_json(lists, _lists(CrystalStore.open(store), quantity.name))
    return store, lists


def adapt(
    run: Path, quantity: Quantity, learned: str, store: Path, lists: Path, size: str, start: str, seed: int
) -> None:
    """One ``foundation adapt``, unless it is finished."""
    if (run / "metrics.json").is_file():
        return
    config = quantity.config if learned == quantity.name else "adapt"
    listed = sorted(map(int, json.loads(lists.read_text())["trial1"]))[-1 if size == ALL else 0]
    words: list[Any] = ["adapt", "--config", f"configs/{config}.yaml", "--property", learned, "--data.store", store]
    words += ["--data.splits", lists, "--data.trial", "trial1", "--train_size", listed, "--data.val_share", VAL_SHARE]
    words += ["--trainer.max_epochs", quantity.epochs if size == ALL else FEW_EPOCHS]
    words += [*STARTS[start], "--seed", seed, "--wandb", "off", "--overwrite", "true", "--out", run]
    _foundation(*words)


def isotropic_error(run: Path, name: str, learned: str, store: Path, lists: Path) -> dict[str, float]:
    """Mean norm of the error of a tensor that is taken for a scalar times the unit tensor."""
    ensemble = Ensemble([load_checkpoint(member).build() for member in find_members(str(run))])
    data = CrystalDataModule(str(store), splits=str(lists), trial="trial1")
    data.choose([name], ensemble.recipe)
    rows = data.split.test
    said = torch.from_numpy(ensemble.predict_graphs(data.graphs, rows)[learned].mean(axis=1))
    error = data.targets(name, rows) - said[:, None, None] * torch.eye(3, dtype=torch.float64)
    return {"frobenius": float(error.norm(dim=(1, 2)).mean())}


def flat(metrics: dict[str, Any]) -> dict[str, float]:
    """Numbers of a property's metrics, those of derived properties as ``K_VRH_mae``."""
    found = {key: value for key, value in metrics.items() if isinstance(value, int | float)}
    for name, derived in metrics.get("derived", {}).items():
        found |= {f"{name}_{key}": derived[key] for key in ("mae", "median_mae")}
    return found


def _lists(store: CrystalStore, name: str) -> dict[str, Any]:
    """Ids that test, and lists of 100 that train and of all, each with those that validate at its end."""
    data = CrystalDataModule(str(store.path))
    data.choose([name], NeighborRecipe())
    source_ids = store.source_ids
    shuffled = np.random.default_rng(0).permutation(data.split.train)
    train, val, test = (
        [source_ids[row][0].partition(":")[2] for row in rows] for rows in (shuffled, data.split.val, data.split.test)
    )
    trial = {}
    for size in (FEW, len(train)):
        number = round(size * VAL_SHARE / (1 - VAL_SHARE))
        ids = [*train[:size], *val[:number]]
        trial[str(len(ids))] = ids
    return {"test": test, "trial1": trial}


def _thinned(source: Path, out: Path) -> Path:
    out.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(source, "rt") as read, gzip.open(out, "wt") as written:
        written.writelines(itertools.islice(read, 0, EVERY * RECORDS, EVERY))
    return out


def _foundation(*words: Any) -> None:
    command = [str(word) for word in words]
    done = subprocess.run([sys.executable, "-m", "foundation", *command], stdout=subprocess.DEVNULL)
    if done.returncode != 0:
        raise InputError(f"foundation {' '.join(command)}: failed; what it said stands above")
