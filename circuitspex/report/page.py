"""One self-contained HTML page per result: no CDN, no network, every label escaped."""

import html
import json
from collections.abc import Sequence
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from circuitspex._shared import Spec, write_result
from circuitspex.algebra import Interactions
from circuitspex.circuits import Circuit, CircuitReport
from circuitspex.report import sections
from circuitspex.report.circuit_figure import circuit_figure, drawn_rows
from circuitspex.report.figures import effect_figure, energy_figure, prediction_figure
from circuitspex.report.frame import document, drawing, section
from circuitspex.report.tables import InteractionRow
from circuitspex.verification import Verification

HeldOut = tuple[Float[Tensor, " masks"], Float[Tensor, " masks"]]

_N_LINKS = 25


def write_page(
    path: str | Path,
    *,
    spec: Spec,
    interactions: Interactions,
    circuit: Circuit | None = None,
    verification: CircuitReport | None = None,
    held_out: HeldOut | None = None,
    verified_interactions: Verification | None = None,
) -> Path:
    """Write a result as one HTML file that opens anywhere, also without a network.

    Args:
        path: The file to write or replace.
        spec: What the result is a result of.
        interactions: What was decoded, in any basis.
        circuit: The units chosen from it; marked in the figures.
        verification: What the circuit does in the real model.
        held_out: Predicted and measured values of masks the fit has not seen.
        verified_interactions: What was measured of the largest interactions around the intact
            model.

    Returns:
        The path.
    """
    intact = interactions.to("moebius", origin="intact")
    page = render_page(spec, intact, circuit, verification, held_out, verified_interactions)
    write_result(path, page.encode())
    return Path(path)


def render_page(
    spec: Spec,
    interactions: Interactions,
    circuit: Circuit | None = None,
    verification: CircuitReport | None = None,
    held_out: HeldOut | None = None,
    verified_interactions: Verification | None = None,
) -> str:
    """Return the page of :func:`write_page` as text.

    Args:
        spec: What the result is a result of.
        interactions: What was decoded, in any basis.
        circuit: The units chosen from it.
        verification: What the circuit does in the real model.
        held_out: Predicted and measured values of masks the fit has not seen.
        verified_interactions: What was measured of the largest interactions around the intact
            model.

    Returns:
        A whole HTML document.
    """
    members = frozenset(circuit.indices) if circuit else frozenset()
    parts = [
        sections.meaning(),
        _circuit_section(interactions, circuit, members, verified_interactions),
        sections.verification(verification) if verification else "",
        _effects_section(interactions, members),
        sections.interactions_table(interactions, verified_interactions),
        _fit_section(interactions, held_out),
        sections.limits(spec, interactions, verification, verified_interactions),
    ]
    shown = html.escape(json.dumps(spec.as_dict(), indent=2, ensure_ascii=False))
    details = (
        f"<details><summary>Show all settings and versions</summary><pre>{shown}</pre></details>"
    )
    parts.append(section("The spec", "Everything needed to repeat this result.", [details]))
    return document(
        title=sections.title(spec),
        header=sections.header(spec, interactions, circuit),
        parts=parts,
        footer=f"run {spec.run_hash}, evaluations {spec.evaluation_hash}",
    )


def _circuit_section(
    interactions: Interactions,
    circuit: Circuit | None,
    members: frozenset[int],
    verified: Verification | None,
) -> str:
    figure = circuit_figure(interactions, members, _N_LINKS, verified)
    rows = drawn_rows(interactions, _N_LINKS, verified)
    chosen = f"The {len(members)} filled units are the circuit. " if circuit else ""
    note = chosen + _describe_drawn(interactions, rows)
    heading = "The circuit" if circuit else "The largest interactions"
    return section(heading, note, [drawing("circuit", figure)])


def _describe_drawn(interactions: Interactions, rows: Sequence[InteractionRow]) -> str:
    n_verified = sum(row.check is not None and row.check.verdict == "verified" for row in rows)
    clear = "" if interactions.std_errors is None else " whose interval excludes zero"
    if not rows:
        return f"There is no interaction{clear} to draw."
    drawn = f"the {len(rows)} largest interactions{clear}"
    if n_verified:
        others = len(rows) - n_verified
        drawn = f"{n_verified} verified interactions in their measured size" + (
            f" and {others} more{clear}" if others else ""
        )
    return (
        f"Drawn are {drawn}; width shows size, a diamond joins the members of a larger set and "
        "bears its order. Hover for numbers; click a legend entry to hide it."
    )


def _effects_section(interactions: Interactions, members: frozenset[int]) -> str:
    marked = " Units of the circuit are marked." if members else ""
    note = (
        "What ablating each unit alone, and nothing else, does to the value according to the "
        f"decoded interactions. Negative: the model does worse without it.{marked}"
    )
    figure = effect_figure(interactions, members)
    return section("Single units", note, [drawing("effects", figure)])


def _fit_section(interactions: Interactions, held_out: HeldOut | None) -> str:
    note = (
        "Share of the variance of the value, over masks that keep each unit at rate "
        f"{interactions.keep_rate:g}, by how many units act together (Fourier coefficients)."
    )
    figures = [drawing("energy", energy_figure(interactions))]
    if held_out is not None:
        note += " The dots are masks that the fit has not seen; on the line, it predicts exactly."
        figures.append(drawing("prediction", prediction_figure(*held_out)))
    return section("Energy by order", note, [f'<div class="pair">{"".join(figures)}</div>'])
