"""The page that compares the runs of a sweep: what it shows, and that labels stay labels."""

import math
import re
from typing import Any

import numpy as np
import pytest

from circuitspex.report import Comparison, comparison_figures, render_comparison
from circuitspex.report.comparison import is_number

# As Any: plotly's own annotations allow too much to be of use.
setting_figure: Any = comparison_figures.setting_figure
parallel_figure: Any = comparison_figures.parallel_figure

R2, ERROR = "fit/r2_heldout", "fit/r2_heldout_std_error"


def run(number: int, r2: float | None, **fields: Any) -> dict[str, Any]:
    numbers = {} if r2 is None else {R2: r2, ERROR: 0.125}
    about = {"run": number, "id": f"{number:016x}", "state": "done", "note": ""}
    return {**about, "seconds": 3.0, "eval/faithfulness": 0.5, **numbers, **fields}


ROWS = [
    run(0, 0.5, budget=64, model="gpt2"),
    run(1, 0.75, budget=64, model="gpt2"),
    run(2, 0.9, budget=512, model="<script>alert(1)</script>"),
    run(3, None, budget=512, model="gpt2", state="failed", note="error: <b>no</b> luck"),
]


def compare(rows: list[dict[str, Any]] | None = None, **fields: Any) -> Comparison:
    given = {"title": "<img src=x>", "varied": ["budget", "model"], "metric": R2}
    return Comparison(rows=ROWS if rows is None else rows, **(given | fields))


def body(page: str) -> str:
    """Leave plotly's own script out."""
    return re.sub(r"<script>.*?</script>", "", page, count=1, flags=re.DOTALL)


def test_runs_are_ranked_in_the_metric_s_direction() -> None:
    assert [row["run"] for row in compare().ranked] == [2, 1, 0]
    assert [row["run"] for row in compare(maximize=False).ranked] == [0, 1, 2]


def test_the_page_shows_counts_best_run_and_failures() -> None:
    page = body(render_comparison(compare()))
    assert "3 done of 4" in page
    assert "run 2: 0.900 ± 0.125" in page
    assert "error: &lt;b&gt;no&lt;/b&gt; luck" in page
    assert page.index("0.900 ± 0.125</td>") < page.index("0.750 ± 0.125</td>")


def test_every_label_is_escaped() -> None:
    page = body(render_comparison(compare()))
    assert "<img" not in page
    assert "<script>alert" not in page
    assert "<b>no" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_the_page_loads_nothing() -> None:
    page = body(render_comparison(compare(title="plain")))
    assert re.findall(r"(?:src|href)\s*=|@import|url\(", page) == []


def test_faithfulness_stands_in_where_no_run_has_the_metric() -> None:
    rows = [run(0, None, budget=1), run(1, None, budget=2)]
    page = render_comparison(compare(rows, varied=["budget"]))
    assert "No run has held-out R², so faithfulness stands in." in page


@pytest.mark.parametrize("rows", [[], ROWS[3:], ROWS[:1]])
def test_sweeps_of_few_results_have_a_page(rows: list[dict[str, Any]]) -> None:
    page = render_comparison(compare(rows, varied=[]))
    assert f"done of {len(rows)}" in page
    assert "figure-parallel" not in page


def test_means_and_intervals_are_over_the_runs_of_a_value() -> None:
    runs, means = setting_figure(ROWS[:3], "budget", R2, ERROR, "R²").data
    assert list(runs.y) == [0.5, 0.75, 0.9]
    assert list(runs.error_y.array) == [0.125] * 3
    assert list(means.y) == [0.625]  # of 512 there is one run, which has no spread
    # two runs: the t quantile of one degree of freedom times half their distance
    assert means.error_y.array[0] == pytest.approx(math.tan(math.pi * 0.475) * 0.125)


def test_runs_of_one_value_lie_side_by_side_in_their_order() -> None:
    figure = setting_figure(ROWS[2::-1], "budget", R2, None, "R²")
    places = list(figure.data[0].x)
    assert len(set(places)) == 3
    assert sorted(places) == places
    assert list(figure.layout.xaxis.ticktext) == ["64", "512"]


def test_many_numbers_have_an_axis_of_numbers() -> None:
    rates = np.linspace(0.5, 0.9, 20).tolist()
    rows = [run(i, 0.5, keep_rate=rate, budget=2**i) for i, rate in enumerate(rates)]
    figure = setting_figure(rows, "keep_rate", R2, None, "R²")
    assert list(figure.data[0].x) == rates
    assert figure.layout.xaxis.type == "linear"
    assert setting_figure(rows, "budget", R2, None, "R²").layout.xaxis.type == "log"
    [axes] = parallel_figure(rows, ["keep_rate", "budget"], [R2], {R2: "R²"}).data
    assert list(axes.dimensions[0]["values"]) == rates


def test_values_of_all_kinds_have_places() -> None:
    values = [2, None, "all", 1, 0.5, "all"]
    rows = [run(i, 0.5, prompts=value) for i, value in enumerate(values)]
    figure = setting_figure(rows, "prompts", R2, None, "R²")
    assert list(figure.layout.xaxis.ticktext) == ["0.5", "1", "2", "default", "all"]


@pytest.mark.parametrize(
    ("value", "wanted"),
    [(1, True), (0.5, True), (True, False), (math.nan, False), (None, False), ("1", False)],
)
def test_numbers_are_finite(value: object, wanted: bool) -> None:
    assert is_number(value) is wanted
