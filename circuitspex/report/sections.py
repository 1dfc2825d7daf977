"""The page's parts that are text and tables, as HTML."""

import html
from collections.abc import Iterable, Mapping
from typing import Any

from circuitspex._shared import Spec
from circuitspex.algebra import NORMAL_95, Interactions
from circuitspex.circuits import Circuit, CircuitReport
from circuitspex.report.tables import (
    NO_JOINT_TERMS,
    InteractionRow,
    interaction_rows,
    measured,
    number,
)
from circuitspex.verification import Verification, describe_place

_N_ROWS = 40
_N_SINGLE_ROWS = 30
_N_CHARACTERS = 160  # of a prompt


def title(spec: Spec) -> str:
    """Return the page's heading, not escaped."""
    return f"{_name(spec.evaluation.get('model'))} on {_name(spec.evaluation.get('task'))}"


def header(spec: Spec, interactions: Interactions, circuit: Circuit | None) -> str:
    """Return the heading and the facts that say what the result is of.

    Args:
        spec: What the result is a result of.
        interactions: What was decoded.
        circuit: The units chosen from it.

    Returns:
        HTML.
    """
    settings = {**spec.discovery, **spec.evaluation}
    r2 = interactions.held_out_r2
    facts = {
        "Model": _name(settings.get("model")),
        "Task": _name(settings.get("task")),
        "Value": _name(settings.get("metric")).replace("_", " "),
        "Ablation": _name(settings.get("ablation")),
        "Units": _units(spec, interactions),
        "Circuit": f"{len(circuit.indices):,} units" if circuit else "none chosen",
        "Keep rate": f"{interactions.keep_rate:g}",
        "Evaluations": f"{interactions.n_evaluations:,}",
        "Decoder": interactions.decoder or _name(settings.get("decoder")),
        "Held-out R²": "not measured" if r2 is None else number(r2),
    }
    floor = interactions.diagnostics.get("noise_floor")
    if floor is not None:
        facts["Values repeat to"] = f"± {number(floor)} (half precision)"
    cells = "".join(
        f"<div><dt>{name}</dt><dd>{html.escape(value)}</dd></div>" for name, value in facts.items()
    )
    return (
        f'<header><p class="kicker">Interaction circuit</p><h1>{html.escape(title(spec))}</h1>'
        f'{_example(spec)}<dl class="facts">{cells}</dl></header>'
    )


def _example(spec: Spec) -> str:
    task = spec.evaluation.get("task")
    prompt = task.get("first_prompt") if isinstance(task, Mapping) else None
    if not isinstance(prompt, str):
        return ""
    shown = prompt if len(prompt) <= _N_CHARACTERS else f"{prompt[:_N_CHARACTERS]}…"
    return f'<p class="prompt">Such as “{html.escape(shown)}”</p>'


def meaning() -> str:
    """Return what an interaction means, with the legend of its signs."""
    return """<section><h2>What an interaction means</h2>
<p>An interaction is what ablating several units together does to the value <em>beyond</em> what
ablating its smaller parts does. Adding up the interactions inside a set of units gives the change
when that whole set is ablated from the intact model.</p>
<ul class="signs">
<li><i class="synergistic"></i><span><b>Synergy</b>, positive: the units need each other, so losing
one already loses what they do together (or they cancel each other).</span></li>
<li><i class="redundant"></i><span><b>Redundancy</b>, negative: the units back each other up, so
losing all costs more than the single losses added up.</span></li>
<li><i class="odd"></i><span><b>Three, five, … units</b>: the sign of one number does not tell the
two apart; look at the pairs inside.</span></li>
</ul></section>"""


def verification(report: CircuitReport) -> str:
    """Return what the circuit does in the real model.

    Args:
        report: What was measured.

    Returns:
        HTML.
    """
    prompts = "prompts" if report.n_prompts is None else f"{report.n_prompts} prompts"
    held_out = f"{prompts} not used for finding it"
    where = held_out if report.held_out else f"the {prompts} it was found on"
    error = "" if report.std_error is None else f" ± {number(report.std_error)} (standard error)"
    predicted = report.predicted_faithfulness
    expected = "" if predicted is None else f" The interactions predicted {number(predicted)}."
    notes = f" {report.notes}" if report.notes else ""
    text = (
        f"With only its {len(report.units)} of {report.n_units} units kept, the model reaches "
        f"{number(report.circuit)}, measured on {where}. Faithfulness is "
        f"{number(report.faithfulness)}{error}: 0 is as bad as ablating everything, 1 as good as "
        f"the intact model.{expected}{notes}"
    )
    heading = "<h2>Verified in the model</h2>"
    return f"<section>{heading}<p>{html.escape(text)}</p>{_track(report)}</section>"


def _track(report: CircuitReport) -> str:
    error = NORMAL_95 * (report.std_error or 0.0)
    ends = (report.faithfulness - error, report.faithfulness, report.faithfulness + error)
    low, share, high = (100 * min(max(end, 0.0), 1.0) for end in ends)
    return (
        f'<div class="track" role="img" aria-label="faithfulness {number(report.faithfulness)}">'
        f'<b style="width:{share:.1f}%"></b>'
        f'<u style="left:{low:.1f}%;width:{high - low:.1f}%"></u>'
        f'<span class="above" style="left:{min(max(share, 6), 94):.1f}%">'
        f"circuit {number(report.circuit)}</span>"
        f'<span class="start">all ablated {number(report.ablated)}</span>'
        f'<span class="end">intact {number(report.intact)}</span></div>'
    )


def interactions_table(interactions: Interactions, verified: Verification | None = None) -> str:
    """Return the largest interactions and, folded away, the largest single effects.

    Args:
        interactions: What was decoded.
        verified: What was measured of them around the intact model.

    Returns:
        HTML.
    """
    checked = verified if verified and verified.checked else None
    rows = interaction_rows(interactions, verification=checked)
    larger = [row for row in rows if row.order > 1]
    single = [row for row in rows if row.order == 1]
    n_listed = min(len(larger), _N_ROWS)
    listed = (
        f"{n_listed} of {len(larger)} interactions, verified ones first, then by effect. "
        if checked
        else f"The {n_listed} largest of {len(larger)} interactions, by effect. "
    )
    note = (listed if larger else f"{NO_JOINT_TERMS} ") + _columns(interactions, checked)
    how = f'<p class="note">{html.escape(_verdicts(checked))}</p>' if checked else ""
    return (
        f'<section><h2>Interactions</h2><p class="note">{html.escape(note)}</p>{how}'
        f"{_table(larger[:_N_ROWS], checked is not None)}"
        f"<details><summary>Largest effects of single units</summary>"
        f"{_table(single[:_N_SINGLE_ROWS], with_checks=False)}</details></section>"
    )


def _columns(interactions: Interactions, checked: Verification | None) -> str:
    sources = {
        "masks": "for the random choice of masks",
        "prompts": "for the random choice of prompts",
        "none": "not given, as the values are exact",
    }
    starred = ""
    if interactions.p_values is not None:
        starred = "★: of all so marked, at most 5 % are expected to be chance. "
    return (
        f"{'Estimate' if checked else 'Effect'}: Möbius coefficient at the intact model"
        f"{', as decoded' if checked else ''}. Its intervals cover 95 %, "
        f"{sources[interactions.error_source]}; grey ones include zero. {starred}"
        f"On average: Fourier "
        f"coefficient over masks that keep each unit at rate {interactions.keep_rate:g}."
    )


def _verdicts(checked: Verification) -> str:
    """Return in words what was measured and how it was judged."""
    counts = checked.counts
    judged = ", ".join(f"{counts[v]} {v}" for v in ("verified", "refuted", "undecided"))
    error = (
        "± is the standard error over prompts. Verified: differs from zero on prompts like these "
        "(t-test, false discovery rate 5 %), in the direction and with at least a tenth of the "
        "size of the estimate. Refuted: not so, and less than half of the estimate. Undecided: "
        "more prompts are needed to tell."
        if (checked.n_prompts or 1) > 1
        else "One prompt, so the measured effects have no error. Verified: in the direction and "
        "with at least a tenth of the size of the estimate; else refuted."
    )
    return (
        f"Measured: the same coefficient from all ablations of a set's parts, nothing fitted, "
        f"{describe_place(checked)}. Of {len(checked.checked)} so measured with "
        f"{checked.n_evaluations:,} evaluations: {judged}. {error}"
    )


def _table(rows: Iterable[InteractionRow], with_checks: bool) -> str:
    body = "".join(_table_row(rank, row, with_checks) for rank, row in enumerate(rows, start=1))
    checks = '<th class="n">Measured</th><th>Verdict</th>' if with_checks else ""
    head = (
        f'<th class="n">#</th><th>Units</th>{checks}'
        f'<th class="n">{"Estimate" if with_checks else "Effect"}</th>'
        '<th class="n">95 % interval</th><th>Kind</th><th class="n">Order</th>'
        '<th class="n">On average</th>'
    )
    if not body:
        return '<p class="note">None were found.</p>'
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def _table_row(rank: int, row: InteractionRow, with_checks: bool) -> str:
    dot = f'<span class="dot {row.kind or "odd"}"></span>' if row.order > 1 else ""
    if row.low is None or row.high is None:
        interval, faint = "–", " wide"
    else:
        interval = f"{number(row.low)} … {number(row.high)}{' ★' if row.significant else ''}"
        faint = " wide" if row.low <= 0 <= row.high else ""
    verdict = "not checked" if row.check is None else row.check.verdict
    checks = (
        f'<td class="n">{measured(row)}</td><td class="{verdict.replace(" ", "-")}">{verdict}</td>'
        if with_checks
        else ""
    )
    return (
        f'<tr><td class="n">{rank}</td>'
        f'<td class="units">{dot}{html.escape(" + ".join(row.units))}</td>{checks}'
        f'<td class="n">{number(row.coefficient)}</td><td class="n{faint}">{interval}</td>'
        f'<td>{row.kind or "–"}</td><td class="n">{row.order}</td>'
        f'<td class="n">{number(row.fourier)}</td></tr>'
    )


def limits(
    spec: Spec,
    interactions: Interactions,
    report: CircuitReport | None,
    verified: Verification | None = None,
) -> str:
    """Return how to read the page, and what was not tested.

    Args:
        spec: What the result is a result of.
        interactions: What was decoded.
        report: What was measured of the circuit.
        verified: What was measured of the largest interactions.

    Returns:
        HTML.
    """
    model = spec.evaluation.get("model")
    processing = model.get("processing") if isinstance(model, Mapping) else None
    max_order = max(map(len, interactions.support), default=0)
    items = [
        _how_sure(interactions),
        f"Only the {interactions.n_units:,} units above could be ablated; everything else in the "
        f"model stayed as it is. Replacement: {_name(spec.evaluation.get('ablation'))}. Another "
        "replacement can give other interactions.",
        "All of this is about the prompts of the task, and about this way of processing the "
        f"weights ({_name(processing)}).",
        "A circuit found this way is one that works; it need not be the only one.",
    ]
    if verified is not None and verified.checked and not verified.held_out:
        items.append(
            "Interactions were measured on the prompts they were found on. They were chosen for "
            "being large there, so on new prompts some will be smaller."
        )
    if max_order < interactions.n_units:
        items.append(
            f"Sets of more than {max_order} units were not decoded, and a set that is not listed "
            "was not shown to have no interaction."
        )
    if report is None:
        items.append("No circuit was verified in the model.")
    elif not report.held_out:
        items.append("The circuit was verified on the prompts it was found on, not on new ones.")
    listed = "".join(f"<li>{html.escape(item)}</li>" for item in items)
    return f'<section><h2>How far this goes</h2><ul class="limits">{listed}</ul></section>'


def _units(spec: Spec, interactions: Interactions) -> str:
    units = spec.evaluation.get("units")
    if isinstance(units, Mapping) and {"first", "last"} <= units.keys():
        return f"{interactions.n_units:,}, {units['first']} to {units['last']}"
    return f"{interactions.n_units:,}"


def _how_sure(interactions: Interactions) -> str:
    evaluations = f"{interactions.n_evaluations:,} evaluations"
    if len(interactions.support) == 2**interactions.n_units:
        return f"Every mask was evaluated ({evaluations}), so nothing had to be guessed about them."
    r2 = interactions.held_out_r2
    fit = (
        "How well they predict other masks was not measured."
        if r2 is None
        else f"They explain {number(r2)} of the variance (held-out R²) among masks that keep each "
        f"unit at rate {interactions.keep_rate:g}; that says little about sets of units much "
        "larger or smaller than such masks ablate."
    )
    return f"Coefficients are estimates from {evaluations}. {fit}"


def _name(value: Any) -> str:
    """Return a setting in a few words: its name where it has one."""
    if isinstance(value, Mapping):
        value = value.get("name", value.get("id", value.get("kind")))
    return "not stated" if value is None else str(value)
