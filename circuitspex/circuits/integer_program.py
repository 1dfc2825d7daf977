"""The circuit that decoded interactions value most, chosen by an integer program."""

from itertools import combinations

import numpy as np
import torch
from scipy import sparse
from scipy.optimize import Bounds, OptimizeResult, milp

from circuitspex.algebra import Interactions, all_ablated, all_kept, keep_only
from circuitspex.circuits.circuit import Circuit
from circuitspex.errors import ResultError

_MAX_EXCHANGE_ENTRIES = 2**26


# coefficients this much smaller than the largest are what exact cancellation leaves behind
_CANCELLED = 1e-12


def best_circuit(interactions: Interactions, n_units: int, *, time_limit: float = 60.0) -> Circuit:
    r"""Choose the circuit of a given size with the highest predicted value.

    In Möbius coordinates the prediction is a sum of products of zeros and ones: z_i is 1 where i
    is kept at the ablated origin, and where it is ablated at the intact one. The program is

    .. math:: \max_{z, y} \sum_T m(T) y_T \quad \text{with} \quad y_T \le y_{T \setminus i},
        \quad y_T \ge y_{T \setminus i} + y_{T \setminus j} - y_{T \setminus \{i, j\}},
        \quad y_{\{i\}} = z_i, \quad y_\emptyset = 1

    over the products that occur, the right number of z_i being 1, and only z integral: wherever z
    is, y is the product itself. Interactions in the Fourier basis are written at the origin where
    they have fewer and smaller terms, mostly the intact one.

    Args:
        interactions: A decoded set function.
        n_units: Size k of the circuit.
        time_limit: Seconds after which the best circuit found so far is returned, with
            ``optimal=False`` and the ``gap`` left to prove. It is then improved until no exchange
            of one unit helps, for which no time is counted.

    Returns:
        A circuit of exactly ``n_units`` units. Units in no interaction change nothing; where some
        are needed to reach the size, the first ones are taken.

    Raises:
        ResultError: If there are not so many units, or the time was up before any circuit was
            found.

    Example:
        >>> interactions = Interactions(
        ...     n_units=3, units=("a", "b", "c"), basis="moebius", origin="ablated",
        ...     keep_rate=0.5, support=((0,), (1, 2)), coefficients=torch.tensor([1.0, 3.0]),
        ... )
        >>> best_circuit(interactions, 2).units
        ('b', 'c')

    References:
        Butler et al. (2025), "ProxySPEX", appendix A.3, for the program over AND terms;
        Sherali & Adams (1990), SIAM Journal on Discrete Mathematics 3(3), for its constraints.
    """
    if not 1 <= n_units <= interactions.n_units:
        raise ResultError(
            f"a circuit may have 1 to {interactions.n_units} units; got n_units={n_units}."
        )
    terms = _sparsest_moebius(interactions)
    active = sorted({unit for term in terms.support for unit in term})
    idle = sorted(set(range(interactions.n_units)) - set(active))
    chosen: list[int] = []
    optimal, gap = True, 0.0
    if active:
        solution = _solve(terms, active, n_units, time_limit)
        if solution.x is None:
            raise ResultError(
                f"no circuit was found within time_limit={time_limit} s ({solution.message}). "
                "Give more time, or fewer interactions."
            )
        keeps = terms.origin == "ablated"
        chosen = [unit for unit, z in zip(active, solution.x, strict=False) if (z > 0.5) == keeps]
        optimal, gap = solution.status == 0, float(solution.mip_gap)
    indices = sorted(chosen + idle[: n_units - len(chosen)])
    if not optimal:
        indices = _exchange(interactions, indices)
    return _predicted(interactions, indices, optimal, gap)


def _sparsest_moebius(interactions: Interactions) -> Interactions:
    if interactions.basis == "moebius":
        options = [interactions]
    else:
        options = [interactions.to("moebius", "ablated"), interactions.to("moebius", "intact")]
    # small coefficients leave a linear relaxation little to gain from fractions
    return min(
        map(_without_cancelled, options),
        key=lambda option: (len(option.support), option.coefficients.abs().sum().item()),
    )


def _without_cancelled(interactions: Interactions) -> Interactions:
    sizes = interactions.coefficients.abs()
    matters = sizes > _CANCELLED * sizes.max() if len(sizes) else sizes > 0
    kept = [i for i in matters.nonzero()[:, 0].tolist() if interactions.support[i]]
    return Interactions(
        n_units=interactions.n_units,
        units=interactions.units,
        basis=interactions.basis,
        origin=interactions.origin,
        keep_rate=interactions.keep_rate,
        support=tuple(interactions.support[i] for i in kept),
        coefficients=interactions.coefficients[kept],
    )


def _solve(
    terms: Interactions, active: list[int], n_units: int, time_limit: float
) -> OptimizeResult:
    """Return the solution of the integer program over z of the active units, then y."""
    n_idle = terms.n_units - len(active)
    n_ones = n_units if terms.origin == "ablated" else terms.n_units - n_units
    products = [term for term in terms.support if len(term) > 1]
    column: dict[tuple[int, ...], int] = {
        term: j for j, term in enumerate([*((unit,) for unit in active), *products])
    }
    objective = np.zeros(len(column))
    objective[[column[term] for term in terms.support]] = terms.coefficients.numpy()
    is_unit = np.arange(len(column)) < len(active)
    linking, bounds = _link(products, column)
    return milp(
        -objective / np.abs(objective).max(),
        integrality=is_unit.astype(int),
        bounds=Bounds(0, 1),
        constraints=[
            (is_unit[None, :].astype(float), max(0, n_ones - n_idle), min(n_ones, len(active))),
            (linking, -np.inf, bounds),
        ],
        options={"time_limit": time_limit, "mip_rel_gap": 0.0},
    )


def _link(
    products: list[tuple[int, ...]], column: dict[tuple[int, ...], int]
) -> tuple[sparse.csr_array, np.ndarray]:
    """Return A and b of A (z, y) <= b, which tie each product to its units and its parts."""
    rows: list[tuple[dict[int, float], float]] = []
    for term in products:
        y, units = column[term], [column[unit,] for unit in term]
        parts = {unit: tuple(i for i in term if i != unit) for unit in term}
        rows.append((dict.fromkeys(units, 1.0) | {y: -1.0}, len(units) - 1.0))
        rows += [({y: 1.0, column[part]: -1.0}, 0.0) for part in parts.values() if part in column]
        if not all(part in column for part in parts.values()):
            rows += [({y: 1.0, unit: -1.0}, 0.0) for unit in units]
        for i, j in combinations(term, 2):
            common = tuple(unit for unit in parts[i] if unit != j)
            if common and all(part in column for part in (parts[i], parts[j], common)):
                row = {column[parts[i]]: 1.0, column[parts[j]]: 1.0, column[common]: -1.0, y: -1.0}
                rows.append((row, 0.0))
    places = [(r, j, entry) for r, (row, _) in enumerate(rows) for j, entry in row.items()]
    r, j, entries = zip(*places, strict=True) if places else ((), (), ())
    matrix = sparse.csr_array((entries, (r, j)), shape=(len(rows), len(column)))
    return matrix, np.array([bound for _, bound in rows])


def _exchange(interactions: Interactions, indices: list[int]) -> list[int]:
    """Return the circuit after the best exchanges of one unit each, until none helps."""
    n_units = interactions.n_units
    active = {unit for term in interactions.support for unit in term}
    best = interactions.predict(keep_only([indices], n_units)).item()
    while True:
        outside = sorted(active.difference(indices))
        swaps = [sorted({*indices, new} - {old}) for old in indices for new in outside]
        if not swaps or len(swaps) * n_units > _MAX_EXCHANGE_ENTRIES:
            return indices
        values = interactions.predict(keep_only(swaps, n_units))
        if values.max().item() <= best + _CANCELLED * abs(best):
            return indices
        best, indices = values.max().item(), swaps[int(values.argmax())]


def _predicted(
    interactions: Interactions, indices: list[int], optimal: bool, gap: float
) -> Circuit:
    n_units = interactions.n_units
    masks = [keep_only([indices], n_units), all_ablated(n_units), all_kept(n_units)]
    circuit, ablated, intact = interactions.predict(torch.cat(masks)).tolist()
    scale = interactions.coefficients.abs().sum()
    decided = abs(intact - ablated) > _CANCELLED * scale
    return Circuit(
        indices=tuple(indices),
        units=tuple(interactions.units[i] for i in indices),
        n_units=n_units,
        predicted_value=circuit,
        predicted_faithfulness=(circuit - ablated) / (intact - ablated) if decided else None,
        predicted_by=interactions.decoder,
        optimal=optimal,
        gap=gap,
    )
