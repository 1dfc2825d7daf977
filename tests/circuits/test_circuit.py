import json
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.optimize import OptimizeResult

from circuitspex.algebra import Interactions, keep_only
from circuitspex.circuits import Circuit, best_circuit
from circuitspex.circuits.integer_program import _sparsest_moebius
from circuitspex.errors import ResultError


def game(support, coefficients, n_units, basis="moebius", origin="ablated"):
    return Interactions(
        n_units=n_units,
        units=tuple(f"u{i}" for i in range(n_units)),
        **{"basis": basis, "origin": None if basis == "fourier" else origin},
        keep_rate=0.7,
        support=support,
        coefficients=torch.as_tensor(coefficients, dtype=torch.float64),
        decoder="lasso",
    )


def random_game(seed, n_units, n_terms, max_order, basis, origin):
    rng = np.random.default_rng(seed)
    terms = set()
    while len(terms) < n_terms:
        size = rng.integers(0, max_order + 1)
        terms.add(tuple(sorted(rng.choice(n_units, size, replace=False).tolist())))
    return game(tuple(terms), rng.normal(size=n_terms), n_units, basis, origin)


def best_by_trying_all(interactions, k):
    sets = list(combinations(range(interactions.n_units), k))
    return float(interactions.predict(keep_only(sets, interactions.n_units)).max())


@pytest.mark.parametrize("basis", ["moebius", "fourier"])
@pytest.mark.parametrize("origin", ["ablated", "intact"])
@pytest.mark.parametrize("seed", range(3))
def test_no_other_circuit_is_better(basis, origin, seed):
    interactions = random_game(seed, 10, 25, 4, basis, origin)
    for k in (1, 3, 6, 9, 10):
        circuit = best_circuit(interactions, k)
        assert len(circuit.indices) == k
        assert circuit.optimal
        assert circuit.gap == 0
        assert circuit.predicted_value == pytest.approx(best_by_trying_all(interactions, k))
        measured = float(interactions.predict(circuit.mask()))
        assert circuit.predicted_value == pytest.approx(measured)


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_the_scale_of_the_value_does_not_matter(scale):
    interactions = random_game(4, 9, 20, 3, "moebius", "intact")
    scaled = game(interactions.support, interactions.coefficients * scale, 9, origin="intact")
    assert best_circuit(scaled, 4).indices == best_circuit(interactions, 4).indices


def test_an_and_pair_is_found_though_its_units_are_worthless_alone():
    interactions = game(((0,), (1,), (2, 3)), [1.0, 0.9, 5.0], 4)
    assert best_circuit(interactions, 2).units == ("u2", "u3")
    assert best_circuit(interactions, 1).units == ("u0",)


def test_of_two_backups_one_is_enough():
    # at the intact origin: losing both of 0 and 1 costs 5, losing 2 costs 1
    interactions = game(((), (2,), (0, 1)), [6.0, -1.0, -5.0], 3, origin="intact")
    circuit = best_circuit(interactions, 2)
    assert 2 in circuit.indices
    assert circuit.predicted_value == 6.0
    assert circuit.predicted_faithfulness == 1.0


def test_idle_units_fill_up_from_the_first():
    interactions = game(((4,), (5,)), [1.0, -1.0], 6)
    circuit = best_circuit(interactions, 3)
    assert circuit.indices == (0, 1, 4)
    assert best_circuit(interactions, 6).indices == tuple(range(6))
    constant = best_circuit(game(((),), [2.0], 3), 2)
    assert constant.indices == (0, 1)
    assert constant.predicted_value == 2.0
    assert constant.predicted_faithfulness is None


@pytest.mark.parametrize("origin", ["ablated", "intact"])
def test_a_fourier_game_is_solved_at_the_origin_where_it_is_small(origin):
    product = game((tuple(range(8)),), [1.0], 8, "moebius", origin)
    small = _sparsest_moebius(product.to("fourier"))
    assert (small.origin, len(small.support)) == (origin, 1)


def test_a_game_of_many_heads_is_solved_quickly():
    rng = np.random.default_rng(0)
    pairs = set()
    while len(pairs) < 400:
        pairs.add(tuple(sorted(rng.choice(270, 2, replace=False).tolist())))
    support = (*((i,) for i in range(270)), *pairs)
    interactions = game(support, rng.normal(size=len(support)), 270, "fourier")
    circuit = best_circuit(interactions, 20, time_limit=20.0)
    assert circuit.optimal
    # no single exchange of a unit may help
    inside = set(circuit.indices)
    swaps = [inside - {i} | {j} for i in inside for j in set(range(270)) - inside]
    best = interactions.predict(circuit.mask())
    assert circuit.predicted_value == pytest.approx(best.item())
    assert (interactions.predict(keep_only(swaps, 270)) < best).all()


def test_too_little_time_is_said():
    dense = random_game(0, 60, 900, 4, "moebius", "ablated")
    with pytest.raises(ResultError, match=r"within time_limit=1e-06 s .*Give more time"):
        best_circuit(dense, 20, time_limit=1e-6)


def test_out_of_time_the_best_so_far_is_no_proven_optimum(monkeypatch):
    found = OptimizeResult(x=np.array([1.0, 0.0, 0.0]), status=1, mip_gap=0.25)
    monkeypatch.setattr("circuitspex.circuits.integer_program.milp", lambda *_, **__: found)
    circuit = best_circuit(game(((0,), (1,), (0, 1)), [1.0, 2.0, 3.0], 2), 1)
    # the solver stopped at unit 0; exchanging it for unit 1 is better
    assert (circuit.indices, circuit.optimal, circuit.gap) == ((1,), False, 0.25)


@pytest.mark.parametrize("n_units", [0, -1, 4])
def test_sizes_that_no_circuit_has(n_units):
    with pytest.raises(ResultError, match=rf"may have 1 to 3 units; got n_units={n_units}"):
        best_circuit(game(((0,),), [1.0], 3), n_units)


def test_a_circuit_sorts_its_units_and_makes_its_mask():
    circuit = Circuit(indices=(2, 0), units=("c", "a"), n_units=3)
    assert circuit == Circuit(indices=(0, 2), units=("a", "c"), n_units=3)
    torch.testing.assert_close(circuit.mask(), torch.tensor([[True, False, True]]))


@pytest.mark.parametrize(
    ("indices", "units", "message"),
    [
        ((0,), ("a", "b"), "one label per index; got 2 labels for 1"),
        ((3,), ("a",), r"distinct units in 0\.\.2; got \(3,\)"),
        ((1, 1), ("a", "a"), r"distinct units in 0\.\.2"),
    ],
)
def test_what_is_no_circuit_is_refused(indices, units, message):
    with pytest.raises(ResultError, match=message):
        Circuit(indices=indices, units=units, n_units=3)


def test_saving_and_loading(tmp_path):
    path = tmp_path / "circuit.json"
    circuit = best_circuit(random_game(0, 5, 8, 2, "fourier", None), 2)
    circuit.save(path)
    assert Circuit.load(path) == circuit
    assert circuit.predicted_by == "lasso"
    whole = path.read_text()
    for length in range(len(whole)):
        path.write_text(whole[:length])
        with pytest.raises(ResultError, match="not a whole JSON file"):
            Circuit.load(path)
    path.write_text(json.dumps(json.loads(whole) | {"indices": [0, 9]}))
    with pytest.raises(ResultError, match=r"distinct units in 0\.\.4"):
        Circuit.load(path)
    path.write_text(whole.replace("circuitspex.circuit/1", "circuitspex.interactions/1"))
    with pytest.raises(ResultError, match=r"must be of format 'circuitspex\.circuit/1'"):
        Circuit.load(path)
