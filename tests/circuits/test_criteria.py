import json
import math
from dataclasses import fields
from itertools import combinations

import numpy as np
import pytest
import torch

from circuitspex.algebra import keep_only
from circuitspex.circuits import (
    MIB_FRACTIONS,
    Circuit,
    CircuitReport,
    cmd,
    cpr,
    faithfulness,
    faithfulness_curve,
    incompleteness,
    minimality,
    verify_circuit,
)
from circuitspex.errors import MaskError, ResultError


class Plain:
    """A set function from a function of one set of kept units."""

    def __init__(self, n_units, value):
        self.n_units = n_units
        self._value = value
        self.n_masks = 0

    def __call__(self, masks):
        self.n_masks += len(masks)
        kept = [set(mask.nonzero()[:, 0].tolist()) for mask in masks]
        return torch.tensor([float(self._value(units)) for units in kept])


class Prompted:
    """The mean over prompts of additive games with one weight per prompt and unit."""

    def __init__(self, weights, offset=0.0):
        self._weights = weights.double()
        self._offset = offset
        self.n_prompts, self.n_units = weights.shape

    def per_prompt(self, masks):
        return masks.double() @ self._weights.T + self._offset

    def __call__(self, masks):
        return self.per_prompt(masks).mean(1)


class Everything(np.random.Generator):
    """Draws every unit of every subset."""

    def random(self, size):  # pyright: ignore[reportIncompatibleMethodOverride]
        return np.zeros(size)


def circuit_of(indices, n_units, **fields):
    return Circuit(tuple(indices), tuple(f"u{i}" for i in indices), n_units, **fields)


def backups(units):
    """Worth 3 if 0 or 1 is there, and 1 more with 2."""
    return 3 * bool(units & {0, 1}) + (2 in units)


def test_faithfulness_is_the_share_restored():
    game = Plain(4, lambda units: 2 + backups(units))
    for indices, expected in [([], 0.0), ([0], 0.75), ([0, 1, 2], 1.0), ([2, 3], 0.25)]:
        assert faithfulness(game, keep_only([indices], 4)) == pytest.approx(expected)


def test_faithfulness_without_a_difference_is_undefined():
    game = Plain(2, lambda units: 5 + (units == {0}))
    with pytest.raises(ResultError, match="value is 5 with everything kept and 5 with everything"):
        faithfulness(game, keep_only([[0]], 2))
    tiny = Plain(2, lambda units: 1e-12 * len(units))
    assert faithfulness(tiny, keep_only([[0]], 2)) == pytest.approx(0.5)


def test_faithfulness_checks_the_mask():
    with pytest.raises(MaskError, match=r"shape \(masks, 4\)"):
        faithfulness(Plain(4, len), keep_only([[0]], 3))


def test_verifying_on_a_plain_function():
    game = Plain(4, backups)
    circuit = circuit_of([0, 3], 4, predicted_value=2.5, predicted_faithfulness=0.6)
    report = verify_circuit(game, circuit, held_out=True, label="toy")
    assert (report.intact, report.ablated, report.circuit) == (4.0, 0.0, 3.0)
    assert report.faithfulness == 0.75
    assert report.std_error is None
    assert report.n_prompts is None
    assert report.n_evaluations == game.n_masks == 3
    assert (report.predicted_value, report.predicted_faithfulness) == (2.5, 0.6)
    assert (report.units, report.held_out, report.label) == (("u0", "u3"), True, "toy")


def test_the_error_over_prompts_is_the_delta_method():
    weights = torch.from_numpy(np.random.default_rng(0).normal(1, 0.5, (7, 3)))
    report = verify_circuit(Prompted(weights, 2.0), circuit_of([0], 3), held_out=False)
    gain, whole = weights[:, 0].numpy(), weights.sum(1).numpy()
    ratio = gain.mean() / whole.mean()
    assert report.faithfulness == pytest.approx(ratio)
    covariance = np.cov(gain, whole) / 7
    gradient = np.array([1.0, -ratio]) / whole.mean()
    assert report.std_error == pytest.approx(math.sqrt(gradient @ covariance @ gradient))
    assert (report.n_prompts, report.n_evaluations) == (7, 21)


def test_the_error_over_prompts_covers_what_new_prompts_give():
    rng = np.random.default_rng(1)
    measured = [
        verify_circuit(
            Prompted(torch.from_numpy(rng.normal(1, 0.5, (30, 3)))),
            circuit_of([0], 3),
            held_out=True,
        )
        for _ in range(300)
    ]
    spread = np.std([report.faithfulness for report in measured])
    claimed = np.mean([report.std_error or 0.0 for report in measured])
    assert claimed == pytest.approx(spread, rel=0.15)


def test_one_prompt_has_no_error():
    report = verify_circuit(Prompted(torch.ones(1, 3)), circuit_of([0], 3), held_out=True)
    assert report.std_error is None
    assert report.n_prompts == 1


def test_a_circuit_over_other_units_is_refused():
    for judge in (
        lambda game, circuit: verify_circuit(game, circuit, held_out=True),
        lambda game, circuit: incompleteness(game, circuit, 1, np.random.default_rng(0)),
        minimality,
    ):
        with pytest.raises(ResultError, match="is over 3 units, the set function over 4"):
            judge(Plain(4, len), circuit_of([0], 3))


def test_a_report_is_saved_loaded_and_read(tmp_path):
    path = tmp_path / "report.json"
    circuit = circuit_of([0], 3, predicted_faithfulness=0.5)
    report = verify_circuit(
        Prompted(torch.ones(2, 3)), circuit, held_out=True, label="ioi", notes="mean ablation"
    )
    report.save(path)
    assert CircuitReport.load(path) == report
    assert str(report) == (
        "circuit of 1 of 3 units, ioi\n"
        "  faithfulness 0.333 ± 0.000 (standard error), predicted 0.500\n"
        "  value: circuit 1.000, intact 3.000, all ablated 0.000\n"
        "  held-out prompts (2), 6 evaluations\n"
        "  units: u0\n"
        "  mean ablation"
    )
    path.write_text(path.read_text()[:-1])
    with pytest.raises(ResultError, match="not a whole JSON file"):
        CircuitReport.load(path)


def test_the_same_prompts_are_named_in_the_report():
    text = str(verify_circuit(Plain(3, len), circuit_of([0], 3), held_out=False))
    assert "the same prompts, 3 evaluations" in text
    assert "±" not in text


def test_incompleteness_finds_the_missing_backup():
    # the circuit lacks unit 1, which takes over in the model when 0 is gone
    game = Plain(3, backups)
    found = incompleteness(game, circuit_of([0, 2], 3), 40, np.random.default_rng(0))
    assert found.maximum == 3
    assert 0 in found.subset
    assert game.n_masks == 82
    assert 0 < found.mean < 3
    complete = incompleteness(game, circuit_of([0, 1, 2], 3), 40, np.random.default_rng(0))
    assert complete.maximum == 0


def test_incompleteness_agrees_with_trying_all_subsets():
    values = np.random.default_rng(3).normal(size=32)
    game = Plain(5, lambda units: values[sum(2**u for u in units)])
    kept, everything = {0, 2, 3}, set(range(5))
    gaps = {
        subset: abs(
            values[sum(2**u for u in kept - set(subset))]
            - values[sum(2**u for u in everything - set(subset))]
        )
        for size in range(4)
        for subset in combinations(sorted(kept), size)
    }
    found = incompleteness(game, circuit_of(sorted(kept), 5), 200, np.random.default_rng(0))
    assert found.maximum == pytest.approx(max(gaps.values()), rel=1e-6)
    assert found.subset == max(gaps, key=lambda subset: gaps[subset])


def test_incompleteness_without_random_subsets_compares_the_values():
    found = incompleteness(Plain(3, backups), circuit_of([0], 3), 0, np.random.default_rng(0))
    assert found == (1.0, 1.0, ())


def test_minimality_sees_backups_only_where_the_other_is_gone():
    game = Plain(4, backups)
    circuit = circuit_of([0, 1, 2, 3], 4)
    alone = minimality(game, circuit)
    torch.testing.assert_close(alone, torch.tensor([0.0, 0.0, 1.0, 0.0], dtype=torch.float64))
    tried = minimality(game, circuit, 30, np.random.default_rng(0))
    torch.testing.assert_close(tried, torch.tensor([3.0, 3.0, 1.0, 0.0], dtype=torch.float64))
    # one draw, of everything: each unit is then judged where all others are gone
    drawn = minimality(game, circuit, 1, Everything(np.random.PCG64(0)))
    torch.testing.assert_close(drawn, tried)
    with pytest.raises(ResultError, match=r"5 random subsets need a generator; pass rng="):
        minimality(game, circuit, 5)


def test_the_curve_is_mib_to_the_letter():
    n_units = 40
    weights = np.random.default_rng(0).normal(0.5, 1.0, n_units)
    game = Plain(n_units, lambda units: sum(weights[unit] for unit in units))
    ranking = np.argsort(-weights).tolist()
    curve = faithfulness_curve(game, ranking)
    assert curve.n_kept == (0, 0, 0, 0, 0, 2, 4, 8, 20, 40)
    values = [sum(weights[ranking[:n]]) / weights.sum() for n in curve.n_kept]
    assert curve.faithfulness == pytest.approx(values, abs=1e-6)
    area = distance = 0.0
    for i in range(len(MIB_FRACTIONS) - 1):
        width = MIB_FRACTIONS[i + 1] - MIB_FRACTIONS[i]
        area += width * (values[i] + values[i + 1]) / 2
        distance += width * (abs(1 - values[i]) + abs(1 - values[i + 1])) / 2
    assert cpr(game, ranking) == pytest.approx(area, abs=1e-6)
    assert cmd(game, ranking) == pytest.approx(distance, abs=1e-6)
    # keeping only helpful units first overshoots the intact model
    assert max(values) > 1


def test_a_curve_needs_a_ranking_of_all_units():
    game = Plain(3, len)
    for ranking in ([0, 1], [0, 1, 1], [1, 2, 3]):
        with pytest.raises(ResultError, match="each of the 3 units once"):
            faithfulness_curve(game, ranking)
    with pytest.raises(ResultError, match="must rise within"):
        faithfulness_curve(game, [0, 1, 2], (0.5, 0.1))
    with pytest.raises(ResultError, match="must rise within"):
        faithfulness_curve(game, [0, 1, 2], (0.5, 2.0))


def test_the_report_document_covers_every_field(tmp_path):
    report = verify_circuit(Plain(3, len), Circuit((0,), ("a",), 3), held_out=True, label="l")
    report.save(tmp_path / "report.json")
    saved = json.loads((tmp_path / "report.json").read_text())
    assert set(saved) == {"format", *(field.name for field in fields(CircuitReport))}
    assert CircuitReport.load(tmp_path / "report.json") == report
