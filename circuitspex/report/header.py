"""The top of the page: what the findings are of."""

import html
from collections.abc import Mapping
from typing import Any

from circuitspex._shared import Spec
from circuitspex.algebra import number
from circuitspex.findings import Findings
from circuitspex.report import frame

_N_CHARACTERS = 160  # of a prompt


def title(spec: Spec) -> str:
    """Return the page's heading, not escaped."""
    return f"{name_of(spec.evaluation.get('model'))} on {name_of(spec.evaluation.get('task'))}"


def header(findings: Findings) -> str:
    """Return the heading and the facts that say what the findings are of, as HTML."""
    spec, interactions, circuit = findings.spec, findings.interactions, findings.circuit
    settings = {**spec.discovery, **spec.evaluation}
    r2 = interactions.held_out_r2
    facts = {
        "Model": name_of(settings.get("model")),
        "Task": name_of(settings.get("task")),
        "Value": name_of(settings.get("metric")).replace("_", " "),
        "Ablation": name_of(settings.get("ablation")),
        "Units": _units(findings),
        "Circuit": f"{len(circuit.indices):,} units" if circuit else "none chosen",
        "Keep rate": f"{interactions.keep_rate:g}",
        "Evaluations": f"{interactions.n_evaluations:,}",
        "Decoder": interactions.decoder or name_of(settings.get("decoder")),
        "Held-out R²": "not measured" if r2 is None else number(r2),
    }
    floor = interactions.diagnostics.get("noise_floor")
    if floor is not None:
        facts["Values repeat to"] = f"± {number(floor)} (half precision)"
    return frame.header("Interaction circuit", title(spec), facts, _example(spec))


def name_of(value: Any) -> str:
    """Return a setting in a few words: its name where it has one."""
    if isinstance(value, Mapping):
        value = value.get("name", value.get("id", value.get("kind")))
    return "not stated" if value is None else str(value)


def _example(spec: Spec) -> str:
    task = spec.evaluation.get("task")
    prompt = task.get("first_prompt") if isinstance(task, Mapping) else None
    if not isinstance(prompt, str):
        return ""
    shown = prompt if len(prompt) <= _N_CHARACTERS else f"{prompt[:_N_CHARACTERS]}…"
    return f'<p class="prompt">Such as “{html.escape(shown)}”</p>'


def _units(findings: Findings) -> str:
    units, n_units = findings.spec.evaluation.get("units"), findings.interactions.n_units
    if isinstance(units, Mapping) and {"first", "last"} <= units.keys():
        return f"{n_units:,}, {units['first']} to {units['last']}"
    return f"{n_units:,}"
