"""A study as one page: report.html, which needs nothing beside it, and summary.json."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from matplotlib import pyplot as plt

from foundation.files import write_json, write_text
from foundation.study import figures
from foundation.study.figures import Panel
from foundation.study.statistics import (
    MEDIAN,
    NO_SOURCE,
    POINT,
    SCRATCH,
    TREES,
    aggregate,
    comparable,
    is_done,
    methods,
    select,
    tidy,
)
from foundation.study.summary import OPPONENTS, count_line, interval, method_name, opponents, published, summary
from foundation.study.transfer import against_joint, gains, main_strategy


def write_report(results: pd.DataFrame, reference: pd.DataFrame | None, out: Path) -> None:
    """Write report.html and summary.json.

    Args:
        results: One row per cell, the columns of results.csv; missing columns and cells are left out of the page.
        reference: One row per property and size with ``best_of_all``, see ``read_reference``; None for none.
        out: Folder to write into.
    """
    content = summary(results, reference)
    table = tidy(results)
    rows = comparable(table)
    page = _in_words(content, rows, reference) | _pictures(rows, reference, content)
    page |= {
        "content": content,
        "opponents": OPPONENTS,
        "tables": _tables(rows, reference, content["ours"]),
        "seen": bool(rows["seen_test"].notna().any()),
        "unfinished": table[~is_done(table)].to_dict("records"),
    }
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    write_text(out / "report.html", environment.get_template("report.html.j2").render(page))
    write_json(out / "summary.json", content)


def _in_words(content: dict[str, Any], rows: pd.DataFrame, reference: pd.DataFrame | None) -> dict[str, Any]:
    ours = content["ours"]
    counts = count_line(content).split(";")[0] + f", {content['points']} pairs of a property and a size."
    if content["seen_test"]["cells"]:
        counts += f" {content['seen_test']['cells']} cells start from an encoder that has seen test crystals."
    best = content["joint_against_best_single"]["all"]
    adapted = [method for method in content["methods"] if method["source"] != NO_SOURCE]
    return {
        "counts": counts,
        "ours": None if ours is None else method_name(ours["source"], ours["strategy"]),
        "why": "" if ours is None else _why(ours),
        "sentences": _sentences(content),
        "scopes": _scopes(content),
        "resampled": _resampled(content),
        "missing": _missing(content, rows, reference),
        "harmed": [case for case in content["negative_transfers"] if case["beyond"] is not False],
        "within": [case for case in content["negative_transfers"] if case["beyond"] is False],
        "unsure": any(case["beyond"] is None for case in content["negative_transfers"]),
        "has_transfer": any(method["against"]["scratch"] for method in adapted),
        "strategy": content["joint_against_best_single"]["strategy"],
        "joint": content["joint_against_best_single"]["joint"],
        "best_single": interval(best) if best else "",
    }


def _sentences(content: dict[str, Any]) -> list[str]:
    """The geometric means over all cells in plain words."""
    return [_sentence(OPPONENTS[name], scopes["all"]) for name, scopes in content["against"].items()]


def _sentence(opponent: str, found: dict[str, Any]) -> str:
    def apart(ratio: float) -> str:
        return f"{abs(100 * (1 - ratio)):.1f} % {'below' if ratio <= 1 else 'above'}"

    spread = "nothing was repeated, so there is no interval"
    if found["low"] is not None:
        spread = f"95 % interval: from {apart(found['low'])} to {apart(found['high'])}"
    where = f"lower in {found['better_in']} of {found['cells']}"
    return f"Our error is {apart(found['geometric_mean'])} that of {opponent} ({spread}; {where})."


def _scopes(content: dict[str, Any]) -> list[str]:
    """Ranges of sizes that any opponent has: all, the wider ones, then each size."""
    found = {scope for scopes in content["against"].values() for scope in scopes}
    return sorted(found, key=lambda scope: (scope != "all", scope.isdigit(), int(scope) if scope.isdigit() else 0))


def _why(ours: dict[str, str]) -> str:
    if ours["strategy"] == "auto":
        return "the strategy that chooses for itself, on training labels, goes first."
    if ours["source"] != NO_SOURCE:
        return "of what starts from a source, it covers most properties and sizes, and was named first."
    return "nothing here starts from a source."


def _resampled(content: dict[str, Any]) -> str:
    found = [scopes["all"] for scopes in content["against"].values()]
    if not any(each["resampled_cells"] or each["test_crystals"] for each in found):
        return "No intervals: no cell was repeated with another trial or seed."
    text = (
        "Intervals are 95 % bootstrap intervals. Resampled are the trials of every property and size (the seeds where "
        "there is one trial), each by itself; cells that were run once stay as they are"
    )
    fixed = max(each["cells"] - each["resampled_cells"] for each in found)
    text += f" ({fixed} here). " if fixed else ". "
    if any(each["test_crystals"] for each in found):
        text += "Ratios to the reference also carry the standard error over test crystals, common to a property. "
    else:
        text += "Test crystals are not resampled: errors of single crystals are not among the results. "
    return text + "The reference's numbers are taken as exact."


def _missing(content: dict[str, Any], rows: pd.DataFrame, reference: pd.DataFrame | None) -> list[str]:
    if reference is None:
        return ["No reference was given."]
    known = {name for name, _ in published(reference, "best_of_all")}
    unknown = [name for name in dict.fromkeys(rows["property"]) if name not in known]
    return [f"The reference does not know {', '.join(unknown)}."] if unknown else []


def _pictures(rows: pd.DataFrame, reference: pd.DataFrame | None, content: dict[str, Any]) -> dict[str, Any]:
    if rows.empty:
        return {"errors": [], "gains": [], "joints": [], "costs": [], "shown": "", "clipped": False}
    table = aggregate(rows)
    chosen = _one_source_each(rows)
    looks = figures.styles(chosen)
    names = list(dict.fromkeys(rows["property"]))
    errors = [
        figures.error_panel(name, table[table["property"] == name], looks, _of(reference, name)) for name in names
    ]
    columns = [
        column for column in figures.REFERENCE if {name for name, _ in published(reference, column)} & set(names)
    ]
    key = figures.legend([*looks.values(), *(figures.REFERENCE[column] for column in columns)])
    costs = [figures.cost_panel(name, table[table["property"] == name], looks) for name in names]
    timed = [panel for panel in costs if panel is not None]
    shown = "" if len(chosen) == len(methods(rows)) else "Of every strategy one source is drawn; the tables have all."
    return {
        "shown": shown,
        "clipped": "scratch" in columns,
        "errors": _encoded([key, *errors]),
        "costs": _encoded([figures.legend(list(looks.values())), *timed] if timed else []),
        **_transfers(rows, names, content),
    }


def _transfers(rows: pd.DataFrame, names: list[str], content: dict[str, Any]) -> dict[str, Any]:
    strategy = main_strategy(rows)
    if strategy is None:
        return {"gains": [], "joints": []}
    gained = gains(rows, strategy)
    limit = max(10.0, 100 * float(gained["gain"].abs().max())) if len(gained) else 10.0
    maps = [figures.gain_panel(size, gained[gained["size"] == size], limit) for size in sorted(set(gained["size"]))]
    compared = against_joint(rows, strategy)
    looks = figures.source_styles(list(compared))
    panels = [figures.legend(list(looks.values()))] if compared else []
    for name in names:
        own = {source: [pair for pair in found if pair.target == name] for source, found in compared.items()}
        if any(own.values()):
            panels.append(figures.joint_panel(name, own, looks, content["joint_against_best_single"]["joint"]))
    return {"gains": _encoded(maps), "joints": _encoded(panels)}


def _one_source_each(rows: pd.DataFrame) -> list[tuple[str, str]]:
    """Every strategy with the source that covers most properties and sizes; baselines and fresh weights as they are."""
    chosen: dict[tuple[str, bool], tuple[str, str]] = {}
    points = {method: len(select(rows, method)[POINT].drop_duplicates()) for method in methods(rows)}
    for method in methods(rows):
        place = (method[1], method[0] == NO_SOURCE)
        if place not in chosen or points[method] > points[chosen[place]]:
            chosen[place] = method
    last = (SCRATCH, TREES, MEDIAN)
    return sorted(chosen.values(), key=lambda method: last.index(method) if method in last else -1)


def _encoded(panels: Iterable[Panel]) -> list[dict[str, str]]:
    return [{"source": _data(panel), "alt": panel.alt} for panel in panels]


def _data(panel: Panel) -> str:
    """The figure as an SVG inside an address: as an image of its own its ids cannot clash with those of others."""
    buffer = io.BytesIO()
    panel.figure.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(panel.figure)
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def _of(reference: pd.DataFrame | None, name: str) -> pd.DataFrame | None:
    if reference is None:
        return None
    own = reference[reference["property"].astype(str) == name]
    return own if len(own) else None


def _tables(
    rows: pd.DataFrame, reference: pd.DataFrame | None, ours: dict[str, str] | None
) -> dict[str, list[dict[str, Any]]]:
    """Property -> a row of words per size, strategy and source, the best of a size first."""
    if rows.empty:
        return {}
    ratios = {
        (name, pair.target, pair.size, *method): pair.ratio
        for method in methods(rows)
        for name, compared in opponents(rows, method, reference).items()
        for pair in compared
    }
    found: dict[str, list[dict[str, Any]]] = {}
    for cell in aggregate(rows).sort_values(["size", "mean"]).to_dict("records"):
        place = (cell["property"], cell["size"], cell["source"], cell["strategy"])
        beside = {name: ratios.get((name, *place)) for name in ("reference", "scratch", "median")}
        found.setdefault(cell["property"], []).append(
            {
                **{name: cell[name] for name in ("size", "strategy", "source", "n", "trials")},
                **{name: _number(ratio, ".3f") for name, ratio in beside.items()},
                "ours": ours == {"source": cell["source"], "strategy": cell["strategy"]},
                "harmed": cell["source"] != NO_SOURCE and (beside["scratch"] or 0.0) > 1 + 1e-9,
                "mae": _number(cell["mean"], ".4f") + _number(cell["spread"], ".4f", " ± ", ""),
                "physical": _number(cell["mae_physical"], ".4g"),
                "r2": _number(cell["r2"], ".3f"),
                "n_test": _number(cell["n_test"], ",.0f"),
                "trainable": _number(cell["trainable_parameters"], ",.0f"),
                "seconds": _number(cell["seconds"], ",.0f") + _number(cell["seconds_spread"], ",.0f", " ± ", ""),
                "seen": _number(cell["seen_test"], ",.0f"),
            }
        )
    order = dict.fromkeys(rows["property"])
    return {name: found[name] for name in order}


def _number(value: float | None, form: str, before: str = "", missing: str = "-") -> str:
    return missing if value is None or value != value else f"{before}{value:{form}}"
