"""`foundation plan`: memory, rate and days of a pretraining on many GPUs, before it is started."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jsonargparse import ArgumentParser

from datamodules.datamodule import CrystalDataModule
from datamodules.errors import InputError
from foundation.commands.configuration import parse
from foundation.commands.pretrain import make_module
from foundation.commands.pretrain import parser as pretrain_parser
from foundation.commands.report import print_table
from foundation.planning import GIB, Machine, Probe, plan, probe

SIZES = (4, 8, 16, 32)


def parser() -> ArgumentParser:
    """The options of the command: those of ``foundation pretrain``, and what is planned for."""
    made = pretrain_parser()
    made.prog = "foundation plan"
    made.description = "Memory, largest batch, rate, days and communication of a pretraining, from a short probe here."
    made.add_argument("--gpus", type=int, default=1, help="how many GPUs to plan for")
    made.add_argument("--crystals", type=int | None, default=None, help="crystals that train; by default the store's")
    made.add_argument("--memory", type=float | None, default=None, help="GiB of a GPU; by default of this one, or 80")
    made.add_argument(
        "--bandwidth", type=float, default=20.0, help="GB/s that a GPU sends while gradients are averaged"
    )
    made.add_argument(
        "--rate", type=float | None, default=None, help="crystals/s of one GPU, measured elsewhere; by default probed"
    )
    return made


def main(words: Sequence[str]) -> int:
    """Run the command."""
    config = parse(parser(), words, default_config="configs/pretrain.yaml")
    for name in ("gpus", "crystals", "memory", "bandwidth", "rate"):
        value = getattr(config, name)
        if value is not None and value <= 0:
            raise InputError(f"--{name} {value}: give a positive number")
    data = CrystalDataModule(**config.data.as_dict(), seed=config.seed)
    module, _ = make_module(config, data)
    data.choose(module.names, module.encoder.recipe)
    cuda = torch.cuda.is_available() and config.trainer.accelerator != "cpu"
    device = torch.device("cuda" if cuda else "cpu")
    here = torch.cuda.get_device_properties(device).total_memory / GIB if cuda else 80.0
    machine = Machine(
        gpus=config.gpus,
        memory=(config.memory or here) * GIB,
        bandwidth=config.bandwidth * 1e9,
        strategy="fsdp2" if config.trainer.strategy == "fsdp2" else "ddp",
        rate=config.rate,
    )
    crystals = config.crystals or len(data.split.train)
    found = probe(module, data, device, SIZES)
    made = plan(found, machine, data, crystals)
    _print(made, machine, found, data, crystals, torch.cuda.get_device_name() if cuda else "this processor")
    return 0


def _print(
    made: dict[str, float], machine: Machine, found: Probe, data: CrystalDataModule, crystals: int, device: str
) -> None:
    rows = [
        ["memory of a GPU", f"{made['memory']:.2f} GiB, {made['weights']:.2f} of it weights and optimizer"],
        ["largest batch of a GPU", f"{made['largest_batch']:,.0f} crystals in {machine.memory / GIB:g} GiB"],
        ["rate", f"{made['crystals_per_second']:,.0f} crystals/s"],
        ["epochs per day", f"{made['epochs_per_day']:.3g}, of {made['steps']:,.0f} steps each"],
        ["communication", f"{made['communication']:.1%} of a step"],
        ["waiting for the slowest", f"{made['waiting']:.1%} of a step"],
    ]
    print_table(f"{crystals:,} crystals on {machine.gpus} GPUs, {machine.strategy}", ["what", "how much"], rows)
    rate = f"{machine.rate:g} crystals/s, as given" if machine.rate else f"that of {device}"
    print(
        f"Assumed: {found.parameters:,} weights in single precision; {found.edges:,.0f} edges a crystal; batches of "
        f"{data.batch_size} crystals and at most {data.max_edges:,} edges a GPU; a GPU's rate is {rate}; gradients are "
        f"averaged at {machine.bandwidth / 1e9:g} GB/s, none of it behind the backward pass; validation, reading from "
        "disk and compiling are left out."
    )
