"""The page's table of interactions: what was measured beside what was decoded."""

import html
from collections.abc import Iterable, Sequence

from circuitspex.algebra import ALIGNED_RIGHT, Interactions, Term
from circuitspex.findings import Findings
from circuitspex.verification import Verification, describe_place

NO_JOINT_TERMS = (
    "No interaction of two or more units helped to predict held-out masks. That is what these "
    "evaluations can tell, not that there is none. A larger budget, a lower keep rate, which "
    "ablates more units together, or fewer units would show more."
)
"""What to say where there is no interaction of order 2 or more."""

_N_ROWS = 40
_N_SINGLE_ROWS = 30


def interactions_table(findings: Findings) -> str:
    """Return the largest interactions and, folded away, the largest single effects, as HTML."""
    checked = (
        findings.verification if findings.verification and findings.verification.checked else None
    )
    larger = [term for term in findings.terms if term.order > 1]
    single = [term for term in findings.terms if term.order == 1]
    n_listed = min(len(larger), _N_ROWS)
    listed = (
        f"{n_listed} of {len(larger)} interactions, verified ones first, then by effect. "
        if checked
        else f"The {n_listed} largest of {len(larger)} interactions, by effect. "
    )
    note = (listed if larger else f"{NO_JOINT_TERMS} ") + _columns(findings.interactions, checked)
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


def _table(terms: Sequence[Term], with_checks: bool) -> str:
    if not terms:
        return '<p class="note">None were found.</p>'
    checks = {"measured": "Measured", "verdict": "Verdict"} if with_checks else {}
    headings = {
        "units": "Units",
        **checks,
        "coefficient": "Estimate" if with_checks else "Effect",
        "interval": "95 % interval",
        "kind": "Kind",
        "order": "Order",
        "average": "On average",
    }
    head = "".join(
        f"<th{_RIGHT if name in ALIGNED_RIGHT else ''}>{heading}</th>"
        for name, heading in headings.items()
    )
    body = "".join(
        f'<tr><td class="n">{place}</td>{_cells(term, headings)}</tr>'
        for place, term in enumerate(terms, start=1)
    )
    return f'<div class="scroll"><table><tr><th{_RIGHT}>#</th>{head}</tr>{body}</table></div>'


_RIGHT = ' class="n"'


def _cells(term: Term, names: Iterable[str]) -> str:
    words = term.words()
    classes = dict.fromkeys(ALIGNED_RIGHT, "n") | {
        "units": "units",
        "verdict": words["verdict"].replace(" ", "-"),
    }
    if term.interval is None or not term.is_clear:
        classes["interval"] = "n wide"
    dot = f'<span class="dot {term.kind or "odd"}"></span>' if term.order > 1 else ""
    cells = []
    for name in names:
        mark = f' class="{classes[name]}"' if name in classes else ""
        cells.append(f"<td{mark}>{dot if name == 'units' else ''}{html.escape(words[name])}</td>")
    return "".join(cells)
