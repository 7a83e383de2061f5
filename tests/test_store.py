"""The store gives back what was put in, opens elsewhere, and refuses what it cannot read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from datamodules import store_writer
from datamodules.crystals import Crystal
from datamodules.errors import InputError
from datamodules.properties import Property
from datamodules.store import CrystalStore, is_store, write_store

PROPERTIES = [
    Property("gap", "eV"),
    Property("tensor", "GPa", "", kind="tensor"),
    Property("moment", "muB", level="atom"),
    Property("none", "eV"),
]


def crystals(count: int = 5) -> list[Crystal]:
    random = np.random.default_rng(0)
    sizes = random.integers(1, 7, size=count)
    return [
        Crystal(4 * np.eye(3) + random.normal(size=(3, 3)), random.random((n, 3)), random.integers(1, 119, n), f"c{k}")
        for k, n in enumerate(sizes.tolist())
    ]


def labels(items: list[Crystal]) -> dict[str, object]:
    return {
        "gap": np.array([0.5, np.nan, 1.5, 2.5, np.nan]),
        "tensor": [None, [[1.0, 2], [3, None]], None, None, [[0.0, 0.0], [0.0, 0.0]]],
        "moment": [[float(k) for k in range(len(crystal))] for crystal in items],
        "none": [None] * 5,
    }


def test_round_trip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = crystals()
    for name, rows in (("one", 65536), ("many", 2)):
        monkeypatch.setattr(store_writer, "SHARD_ROWS", rows)
        write_store(tmp_path / name, items, labels(items), PROPERTIES, extra={"counts": {"records": 6}})
        store = CrystalStore.open(tmp_path / name)
        assert len(store.manifest["shards"]) == (1 if rows > 5 else 3)
        assert len(store) == 5
        for k, item in enumerate(items):
            back = store.crystal(k)
            assert back.id == item.id == store.ids[k]
            for part in ("lattice", "frac_coords", "numbers"):
                np.testing.assert_array_equal(getattr(back, part), getattr(item, part))
                assert getattr(back, part).dtype == getattr(item, part).dtype
        assert store.source_ids[2] == [f"{name}:c2"]
        assert (store.numbers.dtype, store.frac_coords.shape) == (np.uint8, (store.ptr[-1], 3))
        np.testing.assert_array_equal(store.labels(["none", "gap"])[:, 1], [0.5, np.nan, 1.5, 2.5, np.nan])
        assert np.isnan(store.labels(["none"])).all()
        assert store.nested("tensor") == labels(items)["tensor"]
        assert store.nested("moment") == labels(items)["moment"]
        assert list(store.properties.values()) == PROPERTIES
        assert store.manifest["counts"] == {"crystals": 5, "records": 6}
        assert store.manifest["statistics"]["gap"] == {"count": 3, "min": 0.5, "max": 2.5, "median": 1.5}
        assert store.manifest["statistics"]["tensor"]["count"] == 2
        assert store.manifest["statistics"]["none"]["max"] is None


def test_arrays_are_views_of_the_file(tmp_path: Path) -> None:
    items = crystals()
    write_store(tmp_path / "s", items, {}, [])
    store = CrystalStore.open(tmp_path / "s")
    for array in (store.numbers, store.frac_coords, store.lattices):
        assert not array.flags.writeable
        assert not array.flags.owndata


def test_opens_in_pandas(tmp_path: Path) -> None:
    items = crystals()
    write_store(tmp_path / "s", items, labels(items), PROPERTIES)
    frame = pd.read_feather(tmp_path / "s" / "crystals-00000.arrow")
    assert frame["gap"].notna().sum() == 3
    assert len(frame["lattice"][0]) == 9


def test_content_hash_follows_the_content(tmp_path: Path) -> None:
    items = crystals()

    def hash_of(name: str, values: object, prop: Property) -> str:
        sources = [[f"a:{item.id}"] for item in items]
        return str(write_store(tmp_path / name, items, {"gap": values}, [prop], sources)["content_hash"])

    values = np.arange(5.0)
    first = hash_of("a", values, Property("gap", "eV"))
    assert hash_of("b", values, Property("gap", "eV")) == first
    assert hash_of("c", values + 1, Property("gap", "eV")) != first
    assert hash_of("d", values, Property("gap", "meV")) != first


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    items = crystals()
    path = tmp_path / "s"
    with pytest.raises(InputError, match="no such store"):
        CrystalStore.open(path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="not a store"):
        CrystalStore.open(tmp_path / "folder")
    write_store(path, items, labels(items), PROPERTIES)
    assert is_store(path)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "schema_version": 99}))
    with pytest.raises(InputError, match="schema version 99, this program reads version 1"):
        CrystalStore.open(path)
    (path / "manifest.json").write_text(json.dumps(manifest))
    shard = path / "crystals-00000.arrow"
    shard.write_bytes(shard.read_bytes()[:500])
    with pytest.raises(InputError, match="torn"):
        CrystalStore.open(path)
    (path / "manifest.json").write_text("{")
    with pytest.raises(InputError, match="not a store"):
        CrystalStore.open(path)


def test_properties_asked_for_by_a_wrong_name(tmp_path: Path) -> None:
    items = crystals()
    write_store(tmp_path / "s", items, labels(items), PROPERTIES)
    store = CrystalStore.open(tmp_path / "s")
    with pytest.raises(InputError, match="no property 'gapp'; it has gap, tensor, moment"):
        store.labels(["gapp"])
    with pytest.raises(InputError, match="not one number per crystal"):
        store.labels(["tensor"])
    with pytest.raises(InputError, match="no property 'x'"):
        store.nested("x")


def test_a_store_is_replaced_only_on_request_and_never_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = crystals()
    path = tmp_path / "deep" / "s"
    write_store(path, items, {}, [])
    with pytest.raises(InputError, match="--overwrite"):
        write_store(path, items[:2], {}, [])
    with pytest.raises(InputError, match="name is taken"):
        write_store(path, items, {"id": np.arange(5.0)}, [Property("id")], overwrite=True)
    monkeypatch.setattr(store_writer, "_content_hash", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_store(path, items[:2], {}, [], overwrite=True)
    assert len(CrystalStore.open(path)) == 5
    monkeypatch.undo()
    write_store(path, items[:2], {}, [], overwrite=True)
    assert len(CrystalStore.open(path)) == 2
    (tmp_path / "other").mkdir()
    with pytest.raises(InputError, match="not a store"):
        write_store(tmp_path / "other", items, {}, [], overwrite=True)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        write_store(tmp_path / "file" / "s", items, {}, [])
    assert sorted(p.name for p in path.parent.iterdir()) == ["s"]
