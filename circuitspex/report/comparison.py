"""One self-contained page that compares the runs of a sweep."""

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuitspex._shared import write_atomically
from circuitspex.algebra import number
from circuitspex.report.comparison_figures import parallel_figure, setting_figure
from circuitspex.report.frame import document, drawing, header, section

Row = Mapping[str, Any]

ERRORS = {
    "fit/r2_heldout": "fit/r2_heldout_std_error",
    "eval/faithfulness": "eval/faithfulness_std_error",
}
"""Numbers of a run that come with a standard error, and its name."""

NAMES = {
    "fit/r2_heldout": "held-out R²",
    "eval/faithfulness": "faithfulness",
    "interactions/n_verified": "interactions verified",
    "fit/n_evaluations": "evaluations",
    "fit/n_terms": "terms",
    "seconds": "seconds",
}
"""What readers call the numbers of a run."""

_N_BEST = 15
_RIGHT = ' class="n"'
_COLUMNS = (
    *("fit/r2_heldout", "eval/faithfulness", "interactions/n_verified"),
    *("fit/n_evaluations", "seconds"),
)


@dataclass(frozen=True)
class Comparison:
    """What is compared, and by what."""

    title: str
    """Name of the sweep."""
    rows: Sequence[Row]
    """One mapping per run: ``run``, ``id``, ``state``, ``note``, settings and numbers."""
    varied: Sequence[str]
    """Settings in which runs differ."""
    metric: str
    """The number by which they are compared."""
    maximize: bool = True
    """Whether more of it is better."""

    @property
    def shown_metric(self) -> str:
        """The metric, or faithfulness where no run has it, as after exact decoding."""
        return self.metric if self.having(self.metric) else "eval/faithfulness"

    def having(self, name: str) -> list[Row]:
        """Return the runs that are done and have a number.

        Args:
            name: The number.

        Returns:
            Their rows, in order.
        """
        return [row for row in self.rows if row["state"] == "done" and is_number(row.get(name))]

    @property
    def ranked(self) -> list[Row]:
        """Runs that have the metric, best first."""
        sign = -1 if self.maximize else 1
        name = self.shown_metric
        return sorted(self.having(name), key=lambda row: sign * row[name])


def write_comparison(path: str | Path, comparison: Comparison) -> Path:
    """Write the page.

    Args:
        path: The file to write or replace.
        comparison: What is compared.

    Returns:
        The path.
    """
    write_atomically(path, render_comparison(comparison).encode())
    return Path(path)


def render_comparison(comparison: Comparison) -> str:
    """Return the page of :func:`write_comparison` as text.

    Args:
        comparison: What is compared.

    Returns:
        A whole HTML document.
    """
    parts = [_failures(comparison)]
    if comparison.ranked:
        parts = [_best(comparison), *parts]
    if comparison.ranked and comparison.varied:
        parts = [_settings(comparison), _parallel(comparison), *parts]
    return document(
        title=f"{comparison.title}: {len(comparison.rows)} runs",
        header=_header(comparison),
        parts=parts,
        footer="results.csv and results.parquet beside this page hold every number.",
    )


def is_number(value: object) -> bool:
    """Return whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def name_of(metric: str) -> str:
    """Return what readers call a number."""
    return NAMES.get(metric, metric)


def _header(comparison: Comparison) -> str:
    rows, ranked, name = comparison.rows, comparison.ranked, comparison.shown_metric
    done = sum(row["state"] == "done" for row in rows)
    failed = sum(row["state"] == "failed" for row in rows)
    facts = {
        "Runs": f"{done:,} done of {len(rows):,}",
        "Failed": f"{failed:,}",
        "Varied": ", ".join(comparison.varied) or "nothing",
        "Compared by": name_of(name),
        "Best": f"run {ranked[0]['run']}: {_with_error(ranked[0], name)}" if ranked else "none yet",
    }
    return header("Sweep", comparison.title, facts)


def _settings(comparison: Comparison) -> str:
    name = comparison.shown_metric
    note = (
        "Small dots are runs. Their bars are one standard error of the run's own "
        f"{name_of(name)}; large dots are means over runs with that value, with 95 % intervals "
        "over these runs, whose other settings differ as well."
        if name in ERRORS
        else "Small dots are runs; large dots are means over runs with that value, with 95 % "
        "intervals over these runs, whose other settings differ as well."
    )
    if name != comparison.metric:
        note = f"No run has {name_of(comparison.metric)}, so faithfulness stands in. {note}"
    figures = [
        drawing(
            f"setting-{i}",
            setting_figure(comparison.ranked, setting, name, ERRORS.get(name), name_of(name)),
        )
        for i, setting in enumerate(comparison.varied)
    ]
    heading = html.escape(f"{name_of(name)} by setting")
    heading = heading[0].upper() + heading[1:]
    return section(heading, note, [f'<div class="pair">{"".join(figures)}</div>'])


def _parallel(comparison: Comparison) -> str:
    name = comparison.shown_metric
    others = [column for column in _COLUMNS if column != name and _differs(comparison, column)]
    numbers = [*others, name]
    titles = {column: name_of(column) for column in numbers}
    figure = parallel_figure(comparison.ranked, comparison.varied, numbers, titles)
    note = (
        f"A line is a run, coloured by {name_of(name)}. Drag along an axis to keep only the runs "
        "through that stretch; drag an axis by its name to move it."
    )
    return section("All runs at once", note, [drawing("parallel", figure)])


def _differs(comparison: Comparison, column: str) -> bool:
    return len({row[column] for row in comparison.having(column)}) > 1


def _best(comparison: Comparison) -> str:
    names = [name for name in _COLUMNS if comparison.having(name)]
    if comparison.shown_metric not in names:
        names.insert(0, comparison.shown_metric)
    head = [("run", True), *((name, False) for name in comparison.varied)]
    head += [(name_of(name), True) for name in names]
    rows = []
    for row in comparison.ranked[:_N_BEST]:
        cells = [f'<td class="n" title="{html.escape(str(row["id"]))}">{row["run"]}</td>']
        cells += [f"<td>{html.escape(_text(row.get(name)))}</td>" for name in comparison.varied]
        cells += [f'<td class="n">{html.escape(_with_error(row, name))}</td>' for name in names]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    heads = "".join(
        f"<th{_RIGHT if right else ''}>{html.escape(title)}</th>" for title, right in head
    )
    note = (
        f"The best {len(rows)} of {len(comparison.ranked)} runs. With many runs, the best of them "
        "owes part of its lead to chance: compare leads with standard errors."
    )
    table = f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return section("Best runs", note, [f'<div class="scroll">{table}</div>'])


def _failures(comparison: Comparison) -> str:
    others = [row for row in comparison.rows if row["state"] != "done"]
    if not others:
        return ""
    rows = "".join(
        f'<tr><td class="n">{row["run"]}</td><td>{html.escape(str(row["state"]))}</td>'
        f'<td class="units">{html.escape(str(row["note"]))}</td></tr>'
        for row in others
    )
    head = '<tr><th class="n">run</th><th>state</th><th>reason</th></tr>'
    table = f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>"
    return section("Runs without a result", "Not part of any figure.", [table])


def _text(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _with_error(row: Row, name: str) -> str:
    value, error = row.get(name), row.get(ERRORS.get(name, ""))
    if not is_number(value) or value is None:
        return "–"
    if name in ("fit/n_evaluations", "fit/n_terms") or name.startswith("interactions/n_"):
        return f"{value:,.0f}"
    if name == "seconds":
        return f"{value:.0f}"
    return number(value) + (f" ± {error:.3f}" if is_number(error) else "")
