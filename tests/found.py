"""Findings made by hand, for tests of what shows, saves and logs them."""

from typing import Any

import torch

from circuitspex import Circuit, CircuitReport, Findings, Interactions, Spec, Verification

HEADS = tuple(f"L{layer}H{head}" for layer in range(3) for head in range(2))
TERMS = {
    (): 4.0,
    (0,): -1.0,
    (3,): 0.5,
    (0, 3): -2.0,
    (1, 5): 1.5,
    (0, 1, 4): 0.75,
    (2, 3, 4, 5): 0.25,
}


def make_interactions(
    units=HEADS, terms=None, std_error: float | None = 0.1, **fields
) -> Interactions:
    terms = TERMS if terms is None else terms
    given = {
        "n_units": len(units),
        "units": tuple(units),
        "basis": "moebius",
        "origin": "intact",
        "keep_rate": 0.9,
        "support": tuple(terms),
        "coefficients": torch.tensor(list(terms.values()), dtype=torch.float64),
        "error_source": "masks",
        "n_evaluations": 1234,
        "held_out_r2": 0.8768,
        "decoder": "proxyspex",
    }
    if std_error is not None:
        variances = torch.full((len(terms),), std_error**2, dtype=torch.float64)
        given["covariance"] = torch.diag(variances)
    return Interactions(**given | fields)  # pyright: ignore[reportArgumentType]


def make_spec(**evaluation) -> Spec:
    given = {
        "model": {"name": "toy", "processing": "folded"},
        "task": {"name": "ioi", "first_prompt": "Emma <gave> it to"},
        "metric": "logit_difference",
    }
    return Spec(
        given
        | {"ablation": {"name": "zero"}, "units": {"first": "L0H0", "last": "L2H1"}}
        | evaluation
    )


def make_circuit(units=HEADS, indices=(0, 3, 4)) -> Circuit:
    return Circuit(indices, tuple(units[i] for i in indices), len(units))


def make_report(**fields) -> CircuitReport:
    given = {
        "units": ("L0H0", "L1H1", "L2H0"),
        "n_units": 6,
        "intact": 4.5,
        "ablated": -0.5,
        "circuit": 3.0,
        "faithfulness": 0.7,
        "std_error": 0.05,
        "predicted_value": 3.2,
        "predicted_faithfulness": 0.74,
        "held_out": True,
        "n_prompts": 32,
        "n_evaluations": 96,
    }
    return CircuitReport(**given | fields)  # pyright: ignore[reportArgumentType]


def make_verified(**fields) -> Verification:
    """Of the four interactions, the largest is refuted, two are verified, one is not checked."""
    given = {
        "units": HEADS,
        "around": "intact",
        "support": ((0, 3), (1, 5), (0, 1, 4), (2, 3, 4, 5)),
        "estimates": (-2.0, 1.5, 0.75, 0.25),
        "verdicts": ("refuted", "verified", "verified", "not checked"),
        "measured": (-0.125, 0.5, 0.625, None),
        "std_errors": (0.25, 0.1, 0.125, None),
        "intervals": ((-0.6, 0.3), (0.3, 0.7), (0.4, 0.9), None),
        "p_values": (0.6, 0.001, 0.002, None),
        "prompt_values": ((-0.25, 0.0), (0.4, 0.6), (0.5, 0.75), None),
        "n_prompts": 2,
        "n_evaluations": 30,
    }
    return Verification(**given | fields)  # pyright: ignore[reportArgumentType]


def findings(interactions: Interactions | None = None, **found: Any) -> Findings:
    return Findings(make_spec(), interactions or make_interactions(), **found)


def circuit_of(*indices: int, units=HEADS) -> Circuit:
    return make_circuit(units, indices)
