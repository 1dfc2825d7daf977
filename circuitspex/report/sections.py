"""The page's sections: from findings to HTML, "" where there is nothing to say."""

import html
import json
from collections.abc import Mapping, Sequence

from circuitspex.algebra import NORMAL_95, Interactions, Term, number
from circuitspex.circuits import CircuitReport
from circuitspex.findings import Findings
from circuitspex.report.circuit_figure import circuit_figure, drawn_terms
from circuitspex.report.figures import effect_figure, energy_figure
from circuitspex.report.frame import drawing, section
from circuitspex.report.header import name_of


def meaning(findings: Findings) -> str:
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


def circuit(findings: Findings) -> str:
    """Return the largest interactions as a drawing, the circuit's units filled."""
    chosen = ""
    if findings.circuit is not None:
        chosen = f"The {len(findings.members)} filled units are the circuit. "
    note = chosen + _describe_drawn(findings.interactions, drawn_terms(findings))
    heading = "The circuit" if findings.circuit else "The largest interactions"
    return section(heading, note, [drawing("circuit", circuit_figure(findings))])


def _describe_drawn(interactions: Interactions, terms: Sequence[Term]) -> str:
    n_verified = sum(term.verdict == "verified" for term in terms)
    clear = "" if interactions.std_errors is None else " whose interval excludes zero"
    if not terms:
        return f"There is no interaction{clear} to draw."
    drawn = f"the {len(terms)} largest interactions{clear}"
    if n_verified:
        others = len(terms) - n_verified
        drawn = f"{n_verified} verified interactions in their measured size" + (
            f" and {others} more{clear}" if others else ""
        )
    return (
        f"Drawn are {drawn}; width shows size, a diamond joins the members of a larger set and "
        "bears its order. Hover for numbers; click a legend entry to hide it."
    )


def criteria(findings: Findings) -> str:
    """Return what the circuit does in the real model."""
    report = findings.criteria
    if report is None:
        return ""
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


def single_units(findings: Findings) -> str:
    """Return what ablating each unit alone does, as a drawing."""
    marked = " Units of the circuit are marked." if findings.members else ""
    note = (
        "What ablating each unit alone, and nothing else, does to the value according to the "
        f"decoded interactions. Negative: the model does worse without it.{marked}"
    )
    return section("Single units", note, [drawing("effects", effect_figure(findings))])


def energy(findings: Findings) -> str:
    """Return how the variance splits by how many units act together, as a drawing."""
    note = (
        "Share of the variance of the value, over masks that keep each unit at rate "
        f"{findings.interactions.keep_rate:g}, by how many units act together (Fourier "
        "coefficients)."
    )
    figure = drawing("energy", energy_figure(findings))
    return section("Energy by order", note, [f'<div class="pair">{figure}</div>'])


def limits(findings: Findings) -> str:
    """Return how to read the page, and what was not tested."""
    interactions, verified, report = findings.interactions, findings.verification, findings.criteria
    evaluation = findings.spec.evaluation
    model = evaluation.get("model")
    processing = model.get("processing") if isinstance(model, Mapping) else None
    max_order = max(map(len, interactions.support), default=0)
    items = [
        _how_sure(interactions),
        f"Only the {interactions.n_units:,} units above could be ablated; everything else in the "
        f"model stayed as it is. Replacement: {name_of(evaluation.get('ablation'))}. Another "
        "replacement can give other interactions.",
        "All of this is about the prompts of the task, and about this way of processing the "
        f"weights ({name_of(processing)}).",
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


def spec(findings: Findings) -> str:
    """Return all settings and versions, folded away."""
    shown = html.escape(json.dumps(findings.spec.as_dict(), indent=2, ensure_ascii=False))
    details = (
        f"<details><summary>Show all settings and versions</summary><pre>{shown}</pre></details>"
    )
    return section("The spec", "Everything needed to repeat this result.", [details])
