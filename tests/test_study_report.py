"""What a study's report claims, on results made up so that the right numbers are known."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from datamodules.errors import InputError
from foundation.paths import shipped_configs
from foundation.study.report import write_report
from foundation.study.statistics import Pair, aggregate, comparable, geometric_mean, pairs, select, tidy
from foundation.study.summary import read_reference, summary, summary_lines

COLUMNS = (
    *("property", "size", "trial", "seed", "source", "strategy", "status", "mae_scaled", "mae_physical", "r2"),
    *(
        "n_test",
        "trainable_parameters",
        "seconds",
        "epochs",
        "median_mae_scaled",
        "val_mae_scaled",
        "seen_test",
        "error",
    ),
)
SECTIONS = [
    "Summary",
    "Error against training size",
    "Source by target: gain over scratch",
    "Joint against single sources",
    "Cost against accuracy",
    "All numbers",
    "Cells without a result",
]
TRIALS = ("trial1", "trial2", "trial3")


def cells(
    target: str,
    size: int,
    source: str,
    strategy: str,
    errors: Sequence[float],
    trials: Sequence[str] = TRIALS,
    **more: Any,
) -> list[dict[str, Any]]:
    """A cell per trial."""
    common = {"property": target, "size": size, "source": source, "strategy": strategy, "status": "ok", "seed": 0}
    rest = {"mae_physical": 1.0, "r2": 0.5, "n_test": 100, "seconds": 3.0, "trainable_parameters": 10, "epochs": 2}
    return [
        {**common, **rest, "mae_scaled": error, "trial": trial, **more}
        for trial, error in zip(trials, errors, strict=False)
    ]


def frame(*groups: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame([row for group in groups for row in group], columns=list(COLUMNS))


def reference_of(best: Mapping[tuple[str, int], float]) -> pd.DataFrame:
    rows = [
        {"property": name, "size": size, "scratch": 2 * mae, "best_of_all": mae} for (name, size), mae in best.items()
    ]
    return pd.DataFrame(rows)


REFERENCE = reference_of({("ph", 100): 0.1, ("dc", 100): 0.05, ("ph", 10): 0.2, ("dc", 10): 0.1})
# Means 0.08, 0.06, 0.15 and 0.05: ratios 0.8, 1.2, 0.75 and 0.5.
OURS = [
    cells("ph", 100, "joint", "full", (0.07, 0.08, 0.09)),
    cells("dc", 100, "joint", "full", (0.059, 0.060, 0.061)),
    cells("ph", 10, "joint", "full", (0.14, 0.15, 0.16)),
    cells("dc", 10, "joint", "full", (0.04, 0.05, 0.06)),
]
BASELINES = [
    cells("ph", 100, "none", "from_scratch", (0.09, 0.10, 0.11)),
    cells("dc", 100, "none", "from_scratch", (0.049, 0.050, 0.051)),
    cells("ph", 100, "none", "median", (0.2, 0.2, 0.2)),
    cells("dc", 10, "none", "median", (0.08, 0.08, 0.08)),
    cells("ph", 100, "none", "trees", (0.15, 0.16, 0.17)),
]
OTHERS = [
    cells("ph", 100, "dc", "full", (0.10, 0.10, 0.10)),
    cells("ph", 100, "gv", "full", (0.16, 0.16, 0.16)),
    cells("dc", 100, "gv", "full", (0.03, 0.03, 0.03)),
    cells("ph", 100, "joint@1k", "full", (0.09, 0.09, 0.09)),
]
BROKEN = cells(
    "gv", 800, "joint", "full", (np.nan,), status="failed", error="RuntimeError: loss <nan> & more", seconds=np.nan
)


def test_geometric_means_are_those_by_hand() -> None:
    found = summary(frame(*OURS, *BASELINES, BROKEN), REFERENCE)
    against = found["against"]
    assert found["cells"] == {"total": 28, "ok": 27, "failed": 1, "by_status": {"ok": 27, "failed": 1}}
    assert found["ours"] == {"source": "joint", "strategy": "full"}
    assert against["reference"]["all"]["geometric_mean"] == pytest.approx((0.8 * 1.2 * 0.75 * 0.5) ** 0.25)
    assert against["reference"]["all"]["better_in"] == 3
    assert against["reference"]["100 and more"]["geometric_mean"] == pytest.approx((0.8 * 1.2) ** 0.5)
    assert against["reference"]["10"]["geometric_mean"] == pytest.approx((0.75 * 0.5) ** 0.5)
    assert against["reference_scratch"]["all"]["geometric_mean"] == pytest.approx((0.8 * 1.2 * 0.75 * 0.5) ** 0.25 / 2)
    assert against["scratch"]["all"]["geometric_mean"] == pytest.approx((0.8 * 1.2) ** 0.5)
    assert against["median"]["all"]["geometric_mean"] == pytest.approx((0.4 * 0.625) ** 0.5)
    # ph, 100: the reference is the harder one; dc, 10: the median predictor.
    assert against["reference_or_median"]["all"]["geometric_mean"] == pytest.approx((0.8 * 0.625) ** 0.5)
    assert against["trees"]["all"]["geometric_mean"] == pytest.approx(0.5)


def test_intervals_bracket_their_means() -> None:
    found = summary(frame(*OURS, *BASELINES, *OTHERS), REFERENCE)
    means = [mean for scopes in found["against"].values() for mean in scopes.values()]
    means.append(found["joint_against_best_single"]["all"])
    assert len(means) > 15
    for mean in means:
        assert mean["low"] < mean["geometric_mean"] < mean["high"]


def test_the_interval_is_as_wide_as_the_spread_of_trials_says() -> None:
    """Resamples as long as the sample would make it narrower by the square root of 2 / 3."""
    compared = [Pair("ph", size, np.array([0.95, 1.0, 1.05]), np.ones(3), "trials") for size in range(20)]
    found = geometric_mean(compared)
    assert found is not None
    expected = 2 * 1.96 * 0.05 / np.sqrt(3 * 20)
    assert np.log(found["high"] / found["low"]) == pytest.approx(expected, rel=0.05)


def test_test_crystals_widen_the_interval_against_the_reference_alone() -> None:
    plain = summary(frame(*OURS, *BASELINES), REFERENCE)["against"]
    known = frame(*OURS, *BASELINES)
    known["rmse_scaled"] = known["mae_scaled"] * 2
    wide = summary(known, REFERENCE)["against"]

    def width(found: dict[str, Any]) -> float:
        return float(np.log(found["all"]["high"] / found["all"]["low"]))

    assert width(wide["reference"]) > 1.2 * width(plain["reference"])
    assert wide["reference"]["all"]["test_crystals"]
    assert wide["scratch"] == plain["scratch"]


def test_a_cell_above_the_limit_is_named_with_its_standard_error() -> None:
    (case,) = summary(frame(*OURS), REFERENCE)["above_limit"]
    assert (case["property"], case["size"]) == ("dc", 100)
    assert case["ratio"] == pytest.approx(1.2)
    assert case["standard_error"] == pytest.approx(0.001 / np.sqrt(3) / 0.05)
    assert case["beyond"] is True
    noisy = summary(frame(cells("dc", 100, "joint", "full", (0.03, 0.05, 0.10))), REFERENCE)["above_limit"]
    assert [case["beyond"] for case in noisy] == [False]
    once = summary(frame(cells("dc", 100, "joint", "full", (0.07,))), REFERENCE)["above_limit"]
    assert [(case["beyond"], case["standard_error"]) for case in once] == [(None, None)]


def test_negative_transfers_are_called_out() -> None:
    found = summary(frame(*OURS, *BASELINES, *OTHERS), None)["negative_transfers"]
    names = [(case["source"], case["property"], case["size"], case["beyond"]) for case in found]
    assert names == [("gv", "ph", 100, True), ("joint", "dc", 100, True)]
    assert found[0]["ratio"] == pytest.approx(1.6)
    assert found[0]["difference"] == pytest.approx(0.06)


def test_joint_against_the_best_single_source() -> None:
    found = summary(frame(*OURS, *BASELINES, *OTHERS), None)["joint_against_best_single"]
    assert (found["strategy"], found["joint"]) == ("full", "joint")
    assert found["all"]["geometric_mean"] == pytest.approx((0.8 * 2.0) ** 0.5)  # dc for ph, gv for dc


def test_auto_speaks_for_the_study_and_test_errors_do_not_choose() -> None:
    better = cells("ph", 100, "joint", "low_rank", (0.01, 0.01, 0.01))
    assert summary(frame(*OURS, better), None)["ours"] == {"source": "joint", "strategy": "full"}
    auto = cells("ph", 100, "joint", "auto", (0.5, 0.5, 0.5))
    assert summary(frame(*OURS, better, auto), None)["ours"] == {"source": "joint", "strategy": "auto"}


def test_only_trials_that_both_have_are_compared() -> None:
    ours = frame(cells("ph", 100, "joint", "full", (0.1, 0.2, 0.9)))
    scratch = frame(cells("ph", 100, "none", "from_scratch", (0.2, 0.2)))
    (pair,) = pairs(tidy(ours), tidy(scratch))
    assert pair.ratio == pytest.approx(0.75)
    assert pair.unit == "trials"
    assert not pairs(tidy(ours), tidy(frame(cells("ph", 100, "none", "from_scratch", (0.2,), trials=("trial9",)))))


def test_seeds_are_the_repeats_where_there_is_one_trial() -> None:
    seeds = [cells("ph", 100, "joint", "full", (error,), seed=seed) for seed, error in enumerate((0.1, 0.3))]
    (pair,) = pairs(tidy(frame(*seeds)), tidy(frame(cells("ph", 100, "none", "median", (0.4,)))))
    assert (pair.unit, pair.ours.tolist(), pair.theirs.tolist()) == ("seeds", [0.1, 0.3], [0.4, 0.4])
    (row,) = aggregate(comparable(tidy(frame(*seeds)))).to_dict("records")
    assert (row["mean"], row["n"], row["trials"]) == (pytest.approx(0.2), 2, 1)
    assert row["spread"] == pytest.approx(np.std([0.1, 0.3], ddof=1))


def test_the_median_predictor_is_known_from_other_cells() -> None:
    results = frame(cells("ph", 100, "joint", "full", (0.1, 0.1), median_mae_scaled=0.4))
    assert select(comparable(tidy(results)), ("none", "median"))["mae_scaled"].tolist() == [0.4, 0.4]
    assert summary(results, None)["against"]["median"]["all"]["geometric_mean"] == pytest.approx(0.25)
    computed = frame(*OURS, cells("ph", 100, "none", "median", (0.2, 0.2, 0.2)))
    computed["median_mae_scaled"] = 0.3
    medians = select(comparable(tidy(computed)), ("none", "median"))
    assert medians[(medians["property"] == "ph") & (medians["size"] == 100)]["mae_scaled"].tolist() == [0.2] * 3


class Page(HTMLParser):
    """The parts of a page, with its tags balanced."""

    VOID = ("meta", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.headings: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["h2"]:
            self.headings.append(data)
        self.text += data


def written(results: pd.DataFrame, reference: pd.DataFrame | None, out: Path) -> Page:
    write_report(results, reference, out)
    source = (out / "report.html").read_text(encoding="utf-8")
    page = Page(source)
    assert not page.open
    assert page.headings == SECTIONS
    assert not re.search(r"https?:|<script|<link|@import|url\(", source)
    assert all(str(image["src"]).startswith("data:image/svg+xml;base64,") and image["alt"] for image in page.images)
    assert "nan" not in page.text.replace("<nan>", "").lower()
    json.loads((out / "summary.json").read_text(), parse_constant=lambda constant: pytest.fail(constant))
    return page


def test_the_page_holds_every_property_and_every_cell(tmp_path: Path) -> None:
    page = written(frame(*OURS, *BASELINES, *OTHERS, BROKEN), REFERENCE, tmp_path)
    for alt in (
        "ph: scaled test error",
        "dc: scaled test error",
        "Gain over fresh weights with 100",
        "ph: error by that",
    ):
        assert any(str(image["alt"]).startswith(alt) for image in page.images), alt
    assert "RuntimeError: loss <nan> & more" in page.text
    assert "0.0800 ± 0.0100" in page.text
    assert "beyond" in page.text
    figures = " ".join(str(image["alt"]) for image in page.images)
    for name in ("reference, best of all", "median predictor", "boosted trees", "full from joint"):
        assert name in figures
    stored = json.loads((tmp_path / "summary.json").read_text())
    assert stored == summary(frame(*OURS, *BASELINES, *OTHERS, BROKEN), REFERENCE)


ONE = cells("ph", 100, "joint", "full", (0.08,))
SUBSETS = {
    "nothing": (frame(), REFERENCE),
    "all failed": (frame(BROKEN), REFERENCE),
    "one cell": (frame(ONE), REFERENCE),
    "one cell, no reference": (frame(ONE), None),
    "no scratch": (frame(*OURS), REFERENCE),
    "baselines alone": (frame(*BASELINES[2:]), REFERENCE),
    "scratch alone": (frame(BASELINES[0]), None),
    "a property that the reference does not know": (frame(cells("gap2d", 60, "joint", "full", (0.1, 0.2))), REFERENCE),
    "equal errors": (frame(cells("ph", 100, "joint", "full", (0.1,) * 3), BASELINES[0]), REFERENCE),
    "a perfect model": (frame(ONE, cells("dc", 100, "joint", "full", (0.0,))), REFERENCE),
    "a few columns": (frame(*OURS)[["property", "size", "source", "strategy", "mae_scaled"]], REFERENCE),
    "no times": (frame(*OURS).assign(seconds=np.nan), REFERENCE),
    "names that HTML would take": (frame(cells("a<b>&c", 7, "x&y", "s<t>", (0.1, 0.2))), None),
    "integers with gaps": (frame(*OURS, BROKEN).astype({"n_test": "Int64", "epochs": "Int64"}), REFERENCE),
}


@pytest.mark.parametrize("name", SUBSETS)
def test_any_subset_makes_a_page(name: str, tmp_path: Path) -> None:
    results, reference = SUBSETS[name]
    page = written(results, reference, tmp_path)
    lines = summary_lines(summary(results, reference))
    assert lines[0].startswith(f"{len(results)} cells")
    for target in set(results.get("property", [])):
        assert str(target) in page.text


def test_lines_for_the_terminal() -> None:
    lines = summary_lines(summary(frame(*OURS, *BASELINES, *OTHERS, BROKEN), REFERENCE))
    assert lines[0] == "40 cells (39 ok, 1 failed); ours is full from joint, its error divided by that of"
    assert re.fullmatch(
        r"the reference's best: 0\.775 \(95 % interval 0\.\d+ to 0\.\d+; 4 property-size cells, better in 3\)", lines[1]
    )
    assert "cells above 1.05 of the reference's best: 1, 1 of them by more than their standard error" in lines
    assert "adapted but worse than from_scratch: 2, 2 of them by more than their standard error" in lines


def test_the_shipped_reference() -> None:
    table = read_reference(shipped_configs() / "study" / "devi2024_reference.csv")
    assert len(table) == 25
    assert not table.isna().any().any()
    assert (table["best_of_all"] <= table[["scratch", "mpt"]].min(axis=1)).all()
    row = table[(table["property"] == "ph") & (table["size"] == 100)].iloc[0]
    assert (row["scratch"], row["mpt"], row["best_of_all"]) == (0.1249, 0.0933, 0.0923)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"gone\.csv: cannot be read as CSV"),
        ("", r"cannot be read as CSV"),
        ("property,size\nph,100\n", r"no column 'best_of_all'; it has property, size$"),
    ],
)
def test_a_reference_that_cannot_be_used_is_one_line(content: str | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "gone.csv"
    if content is not None:
        file.write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        read_reference(file)
    assert "\n" not in str(caught.value)
