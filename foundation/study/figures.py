"""The figures of a study, one panel per property, each small enough for a phone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt  # the backend must be chosen before
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from foundation.study.statistics import MEDIAN, SCRATCH, TREES, Pair, Values
from foundation.study.summary import method_name

WIDTH = 4.6  # inches; with the fonts below readable at the width of a phone
# Okabe and Ito's colours, which people with any colour vision tell apart; markers tell the rest.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
MARKERS = "osD^vPX<>p"
LINES = ("-", "--", ":")


@dataclass(frozen=True)
class Style:
    """How a method looks in every figure."""

    label: str
    colour: str
    marker: str
    line: str = "-"


@dataclass(frozen=True)
class Panel:
    """A figure and what it shows, for those who do not see it."""

    figure: Figure
    alt: str


def styles(found: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Style]:
    """A style for every (source, strategy); the baselines are grey."""
    fixed = {
        MEDIAN: Style("median predictor", "#777777", "", "--"),
        TREES: Style("boosted trees", "#777777", "*", "-."),
        SCRATCH: Style("from_scratch", "#7A4B1E", "x", "-"),
    }
    drawn = {method: fixed[method] for method in found if method in fixed}
    for place, method in enumerate(method for method in found if method not in fixed):
        drawn[method] = _style(place, method_name(*method))
    return drawn


def source_styles(sources: Sequence[str]) -> dict[str, Style]:
    """A style for every source."""
    return {source: replace(_style(place, source), line="") for place, source in enumerate(sources)}


def _style(place: int, label: str) -> Style:
    line = LINES[place // len(COLOURS) % len(LINES)]
    return Style(label, COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)], line)


REFERENCE = {
    "best_of_all": Style("reference, best of all", "black", "*", "-"),
    "scratch": Style("reference, from scratch", "black", "", ":"),
}


def legend(shown: Sequence[Style]) -> Panel:
    """What the colours and markers of the panels beside it stand for."""
    figure = plt.figure(figsize=(WIDTH, 0.5 + 0.27 * len(shown)), layout="constrained")
    handles = [
        Line2D([], [], color=style.colour, marker=style.marker, ls=style.line, label=style.label) for style in shown
    ]
    figure.legend(handles=handles, loc="center", frameon=False, fontsize=11, handlelength=3)
    return Panel(figure, "Legend: " + ", ".join(style.label for style in shown))


def error_panel(
    name: str, table: pd.DataFrame, looks: Mapping[tuple[str, str], Style], reference: pd.DataFrame | None
) -> Panel:
    """Scaled test error against the number of training labels, of one property.

    Args:
        name: The property.
        table: Its rows of ``aggregate``.
        looks: The methods to draw.
        reference: The reference's rows of this property, or None.
    """
    figure, axis = plt.subplots(figsize=(WIDTH, 3.7), layout="constrained")
    axis.set_yscale("log")
    told = []
    drawn = [method for method in looks if _of(table, method).size]
    for place, method in enumerate(drawn):
        own = _of(table, method).sort_values("size")
        # Bars of different methods stand side by side, within 8 % of the size.
        shift = 1.0 if method == MEDIAN else 1.08 ** (2 * (place + 0.5) / len(drawn) - 1)
        _line(axis, own["size"] * shift, own["mean"], own["spread"], looks[method])
        told.append(_told(looks[method].label, own["size"], own["mean"]))
    for column, style in REFERENCE.items():
        if column == "scratch":
            axis.set_ylim(*axis.get_ylim())  # its error at ten labels, tenfold all others, must not flatten the panel
        if reference is not None and column in reference and reference[column].notna().any():
            own = reference.dropna(subset=[column]).sort_values("size")
            spread = own.get(f"{column}_std", pd.Series(np.nan, own.index))
            _line(axis, own["size"], own[column], spread, style)
            told.append(_told(style.label, own["size"], own[column]))
    sizes = sorted(set(table["size"]) | set([] if reference is None else reference["size"]))
    axis.set(title=name, xlabel="training labels", ylabel="test MAE, scaled", xscale="log")
    axis.set_xlim(sizes[0] / 1.3, sizes[-1] * 1.3)
    axis.xaxis.set_major_locator(FixedLocator(sizes))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_locator(NullLocator())
    plain_log(axis.yaxis)
    return Panel(figure, f"{name}: scaled test error against training labels. {'; '.join(told)}.")


def cost_panel(name: str, table: pd.DataFrame, looks: Mapping[tuple[str, str], Style]) -> Panel | None:
    """Scaled test error against the seconds of a cell, of one property; None where no time is known."""
    timed = table[table["seconds"] > 0]
    drawn = [method for method in looks if _of(timed, method).size]
    if not drawn:
        return None
    figure, axis = plt.subplots(figsize=(WIDTH, 3.7), layout="constrained")
    told = []
    for method in drawn:
        own, style = _of(timed, method).sort_values("size"), looks[method]
        bars = _bars(own["seconds"], own["seconds_spread"])
        _line(axis, own["seconds"], own["mean"], own["spread"], style, across=bars)
        for point in own.iloc[[0, -1]].to_dict("records"):
            place = (point["seconds"], point["mean"])
            axis.annotate(str(point["size"]), place, (4, 4), textcoords="offset points", color=style.colour, fontsize=8)
        told.append(
            f"{style.label} takes {own['seconds'].min():.3g} to {own['seconds'].max():.3g} s for an error of "
            f"{own['mean'].max():.3g} to {own['mean'].min():.3g}"
        )
    axis.set(title=name, xlabel="seconds of a cell", ylabel="test MAE, scaled", xscale="log", yscale="log")
    plain_log(axis.xaxis)
    plain_log(axis.yaxis)
    return Panel(figure, f"{name}: scaled test error against seconds, by size. {'; '.join(told)}.")


def gain_panel(size: int, table: pd.DataFrame, limit: float) -> Panel:
    """Gain over fresh weights at one size, source by target, as a map with numbers.

    Args:
        size: The size.
        table: Its rows of ``gains``.
        limit: The gain that has the deepest colour.
    """
    sources, targets = (list(dict.fromkeys(table[column])) for column in ("source", "property"))
    colours = np.full((len(sources), len(targets)), np.nan)
    width, height = max(WIDTH, 1.7 + 0.62 * len(targets)), 1.0 + 0.48 * len(sources)
    figure, axis = plt.subplots(figsize=(width, height), layout="constrained")
    told = []
    for cell in table.to_dict("records"):
        row, column = sources.index(cell["source"]), targets.index(cell["property"])
        gain, error = 100 * cell["gain"], 100 * cell["standard_error"]
        colours[row, column] = gain
        text = f"{round(gain) + 0.0:+.0f}" + (f"\n± {error:.0f}" if np.isfinite(error) else "")
        shade = "white" if abs(gain) > 0.6 * limit else "black"
        axis.text(column, row, text, ha="center", va="center", fontsize=9, color=shade)
        told.append(f"{cell['source']} to {cell['property']} {' '.join(text.split())} %")
    axis.imshow(colours, cmap="PuOr", vmin=-limit, vmax=limit, aspect="auto")
    axis.set_xticks(range(len(targets)), targets)
    axis.set_yticks(range(len(sources)), sources)
    axis.set(title=f"{size} labels", xlabel="target", ylabel="source")
    return Panel(figure, f"Gain over fresh weights with {size} labels: {'; '.join(told)}.")


def joint_panel(name: str, compared: Mapping[str, Sequence[Pair]], looks: Mapping[str, Style], joint: str) -> Panel:
    """Error of other sources by that of the joint one, of one property; a row per size."""
    sizes = sorted({pair.size for found in compared.values() for pair in found})
    figure, axis = plt.subplots(figsize=(WIDTH, 1.4 + 0.7 * len(sizes)), layout="constrained")
    axis.axvline(1.0, color="black", linewidth=1, zorder=0)
    told = []
    for place, (source, found) in enumerate(compared.items()):
        shift = 0.6 * ((place + 0.5) / len(compared) - 0.5)
        for pair in found:
            row = sizes.index(pair.size) + shift
            bars = _bars(pd.Series([pair.ratio]), pd.Series([pair.standard_error]))
            style = looks[source]
            axis.errorbar([pair.ratio], [row], xerr=bars, color=style.colour, marker=style.marker, capsize=2)
            told.append(f"{source} at {pair.size} {pair.ratio:.2f}")
    axis.set_yticks(range(len(sizes)), [str(size) for size in sizes])
    axis.set_ylim(len(sizes) - 0.5, -0.5)
    axis.set(title=name, xlabel=f"error / that of {joint}", ylabel="labels", xscale="log")
    plain_log(axis.xaxis)
    return Panel(figure, f"{name}: error by that of {joint}, above 1 where {joint} is better. {'; '.join(told)}.")


def _of(table: pd.DataFrame, method: tuple[str, str]) -> pd.DataFrame:
    return table[(table["source"] == method[0]) & (table["strategy"] == method[1])]


def _bars(centre: pd.Series[float], spread: pd.Series[float]) -> Values:
    """[2, K] lengths of bars on a logarithmic axis: none where nothing was repeated, and never down to zero."""
    length = spread.fillna(0.0).to_numpy(dtype=np.float64)
    return np.stack([np.minimum(length, 0.8 * centre.to_numpy(dtype=np.float64)), length])


def _line(
    axis: Axes,
    x: pd.Series[float],
    y: pd.Series[float],
    spread: pd.Series[float],
    style: Style,
    across: Values | None = None,
) -> None:
    look: dict[str, Any] = {"color": style.colour, "marker": style.marker, "linestyle": style.line, "linewidth": 1.4}
    axis.errorbar(x, y, _bars(y, spread), across, markersize=5, capsize=2, elinewidth=1, **look)


def _told(label: str, sizes: pd.Series[int], errors: pd.Series[float]) -> str:
    points = (f"{error:.3g} at {size:g}" for size, error in zip(sizes, errors, strict=True))
    return f"{label} {', '.join(points)}"


def plain_log(axis: Axis) -> None:
    """Label a logarithmic axis by plain numbers, also where it spans less than a decade."""
    low, high = axis.get_view_interval()
    if high < 3 * low:
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    elif high < 12 * low:
        axis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
    else:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 300 * low else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())
