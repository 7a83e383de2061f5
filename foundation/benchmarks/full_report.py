"""The full benchmark as tables, a JSON file and a plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from foundation.commands.report import number, print_table
from foundation.files import write_json
from foundation.plots import save


def report(folder: Path, results: dict[str, Any]) -> None:
    """Write results.json and benchmark.png into the folder, and print tables."""
    write_json(folder / "results.json", results)
    _plot(folder / "benchmark.png", results)
    _print_peers(results)
    _print_step(results)
    _print_kernels(results.get("kernels", {}))
    _print_growth(results["growth"])


def _print_peers(results: dict[str, Any]) -> None:
    rows = []
    for row in results["peers"]:
        if "failed" in row:
            rows.append([row["name"], f"failed, see {row['failed']}", "", "", "", ""])
            continue
        train, predict = row["train"], row["predict"]
        rows.append(
            [
                row["name"],
                f"{number(train['median'])} ({number(train['lowest'])} to {number(train['highest'])})",
                f"{number(predict['median'])} ({number(predict['lowest'])} to {number(predict['highest'])})",
                number(row["edges_per_crystal"]),
                number(row["first_step_seconds"]),
                number(row["peak_memory_mib"]),
            ]
        )
    columns = ["model (graph)", "train", "predict", "edges a crystal", "first step, s", "peak MiB"]
    print_table(f"crystals per second, medians of rounds; encoder {results['encoder']['config_hash']}", columns, rows)
    print_table(
        "training rates", ["ratio", "value"], [[name, number(value)] for name, value in results["ratios"].items()]
    )


def _print_step(results: dict[str, Any]) -> None:
    names = ("eager", "compiled")
    figures = [
        "train",
        "predict",
        "first_step_seconds",
        "step_seconds",
        "share_of_matrix_product_rate",
        "peak_memory_mib",
    ]
    rows = [[figure, *(number(results[name][figure]) for name in names)] for figure in figures]
    rows += [
        [f"split.{part}", *(number(results[name]["split"][part]) for name in names)]
        for part in results["eager"]["split"]
    ]
    print_table(f"one training step of {results['batch_size']} crystals", ["figure", *names], rows)


def _print_kernels(kernels: dict[str, Any]) -> None:
    for name, found in kernels.items():
        if isinstance(found, str):
            print(f"kernels, {name}: not measured, {found}")
            continue
        figures = ("launches", "share", "bandwidth", "arithmetic")
        rows = [[kernel["name"][:60], *(number(kernel[figure]) for figure in figures)] for kernel in found]
        print_table(
            f"kernels that take most of a step, {name}",
            ["kernel", "launches", "share of time", "of peak bandwidth", "of peak arithmetic"],
            rows,
        )


def _print_growth(growth: dict[str, Any]) -> None:
    rows = [
        [f"{kind}, with {by}", number(growth[kind][f"with_{by}"]), number(max(growth[kind][by]))]
        for kind in ("train", "predict")
        for by in ("atoms", "edges")
    ]
    for kind in ("predict", "graphs"):
        rows.append(
            [f"{kind}, with crystals", number(growth["crystals"][kind]), number(max(growth["crystals"]["counts"]))]
        )
    print_table("growth of cost", ["what", "exponent", "up to"], rows)


def _plot(out: Path, results: dict[str, Any]) -> None:
    from matplotlib import pyplot as plt

    figure, ((rates, split), (batches, crystals)) = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
    rows = [row for row in results["peers"] if "failed" not in row]
    names = [row["name"] for row in rows]
    medians = [row["train"]["median"] for row in rows]
    below = [row["train"]["median"] - row["train"]["lowest"] for row in rows]
    above = [row["train"]["highest"] - row["train"]["median"] for row in rows]
    rates.barh(names, medians, xerr=[below, above], color="tab:blue", alpha=0.6)
    rates.invert_yaxis()
    rates.set(title="training", xlabel="crystals per second")
    for kind in ("eager", "compiled"):
        left = 0.0
        for index, (part, share) in enumerate(results[kind]["split"].items()):
            label = part if kind == "eager" else None
            split.barh(kind, share, left=left, color=f"C{index}", label=label)
            left += share
    split.set(title="a training step", xlabel="share of time")
    split.legend(ncols=5, loc="lower center", fontsize="small", columnspacing=1.0, handlelength=1.0)
    split.margins(y=0.25)
    growth = results["growth"]
    for kind in ("train", "predict"):
        points = growth[kind]
        powers = f"edges^{points['with_edges']:.2f}, atoms^{points['with_atoms']:.2f}"
        batches.plot(points["edges"], points["seconds"], marker="o", label=f"{kind}: {powers}")
    batches.set(title="a batch's growth", xlabel="edges in a batch", ylabel="seconds", xscale="log", yscale="log")
    batches.legend()
    points = growth["crystals"]
    for kind, seconds in (("predict", "predict_seconds"), ("graphs", "graph_seconds")):
        crystals.plot(points["counts"], points[seconds], marker="o", label=f"{kind}: crystals^{points[kind]:.2f}")
    crystals.set(title="a data set's growth", xlabel="crystals", ylabel="seconds", xscale="log", yscale="log")
    crystals.legend()
    save(figure, out)
