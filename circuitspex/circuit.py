"""Circuits: the units to keep, chosen by an integer program over decoded interactions."""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool
from scipy import sparse
from scipy.optimize import Bounds, OptimizeResult, milp
from torch import Tensor

from circuitspex._documents import read_document, write_document
from circuitspex.errors import ResultError
from circuitspex.interactions import Interactions
from circuitspex.masks import all_ablated, all_kept, keep_only

_FIELDS = {
    "indices": list[int],
    "units": list[str],
    "n_units": int,
    "predicted_value": float | None,
    "predicted_faithfulness": float | None,
    "predicted_by": str,
    "optimal": bool | None,
    "gap": float | None,
}

# coefficients this much smaller than the largest are what exact cancellation leaves behind
_CANCELLED = 1e-12


@dataclass(frozen=True)
class Circuit:
    """Units that are kept while all others are ablated, and what was predicted for them.

    Example:
        >>> circuit = Circuit(indices=(2, 0), units=("L1H0", "L0H0"), n_units=3)
        >>> circuit.units
        ('L0H0', 'L1H0')
        >>> circuit.mask()
        tensor([[ True, False,  True]])
    """

    indices: tuple[int, ...]
    """Kept units, sorted."""
    units: tuple[str, ...]
    """Their labels, in the same order."""
    n_units: int
    """How many units a mask covers, kept or not."""
    predicted_value: float | None = None
    """Value of the circuit according to the interactions it was chosen from."""
    predicted_faithfulness: float | None = None
    """Its faithfulness according to them; None where they see no difference to make up."""
    predicted_by: str = ""
    """Decoder of those interactions."""
    optimal: bool | None = None
    """Whether no other circuit of this size has a higher predicted value; None if not known."""
    gap: float | None = None
    """Relative distance to the proven bound where the search ran out of time."""

    def __post_init__(self) -> None:
        """Sort the units by index, labels along with them."""
        _check(self)
        pairs = sorted(zip(map(int, self.indices), self.units, strict=True))
        object.__setattr__(self, "indices", tuple(index for index, _ in pairs))
        object.__setattr__(self, "units", tuple(label for _, label in pairs))

    def mask(self) -> Bool[Tensor, "1 units"]:
        """Return the keep-mask of the circuit, shape ``(1, n_units)``."""
        return keep_only([self.indices], self.n_units)

    def save(self, path: str | Path) -> None:
        """Write the circuit to a JSON file, in one step.

        Args:
            path: Where to; an existing file is replaced.
        """
        write_document(path, "circuit", asdict(self))

    @classmethod
    def load(cls, path: str | Path) -> "Circuit":
        """Read what :meth:`save` wrote.

        Args:
            path: The file.

        Returns:
            The circuit.
        """
        fields = read_document(path, "circuit", _FIELDS)
        fields["indices"], fields["units"] = tuple(fields["indices"]), tuple(fields["units"])
        return cls(**fields)


def best_circuit(interactions: Interactions, n_units: int, *, time_limit: float = 60.0) -> Circuit:
    r"""Choose the circuit of a given size with the highest predicted value.

    In Möbius coordinates the prediction is a sum of products of zeros and ones (1 for kept at the
    ablated origin, 1 for ablated at the intact one). Each product gets a variable y_T:

    .. math:: \max_{x, y} \sum_T m(T) y_T \quad \text{with} \quad \sum_i x_i = k, \quad
        y_T \le z_i \; (i \in T, m(T) > 0), \quad y_T \ge 1 - \sum_{i \in T} (1 - z_i) \;
        (m(T) < 0),

    z = x or 1 − x, and only x integral: wherever x is, the best y_T is the product itself.
    Interactions in the Fourier basis are written in the origin with fewer terms.

    Args:
        interactions: A decoded set function.
        n_units: Size k of the circuit.
        time_limit: Seconds after which the best circuit found so far is returned, with
            ``optimal=False`` and the ``gap`` left to prove.

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
        McCormick (1976), Mathematical Programming 10, for the constraints.
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
        chosen = [unit for unit, x in zip(active, solution.x, strict=False) if x > 0.5]
        optimal, gap = solution.status == 0, float(solution.mip_gap)
    indices = sorted(chosen + idle[: n_units - len(chosen)])
    return _predicted(interactions, indices, optimal, gap)


def _sparsest_moebius(interactions: Interactions) -> Interactions:
    if interactions.basis == "moebius":
        options = [interactions]
    else:
        options = [interactions.to("moebius", "ablated"), interactions.to("moebius", "intact")]
    return min(map(_without_cancelled, options), key=lambda option: len(option.support))


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
    """Return the solution of the integer program over x of the active units, then y."""
    n_active = len(active)
    n_idle = terms.n_units - n_active
    column = {unit: j for j, unit in enumerate(active)}
    # z = 1 - x at the intact origin flips the sign of every x
    sign = 1.0 if terms.origin == "ablated" else -1.0
    coefficients = (terms.coefficients / terms.coefficients.abs().max()).tolist()
    products = [(t, c) for t, c in zip(terms.support, coefficients, strict=True) if len(t) > 1]
    objective = np.zeros(n_active + len(products))
    for term, coefficient in zip(terms.support, coefficients, strict=True):
        if len(term) == 1:
            objective[column[term[0]]] += sign * coefficient
    objective[n_active:] = [coefficient for _, coefficient in products]
    is_unit = np.concatenate([np.ones(n_active), np.zeros(len(products))])
    linking, bounds = _link(products, column, sign)
    return milp(
        -objective,
        integrality=is_unit,
        bounds=Bounds(0, 1),
        constraints=[
            (is_unit[None, :], max(0, n_units - n_idle), min(n_units, n_active)),
            (linking, -np.inf, bounds),
        ],
        options={"time_limit": time_limit, "mip_rel_gap": 0.0},
    )


def _link(
    products: list[tuple[tuple[int, ...], float]], column: dict[int, int], sign: float
) -> tuple[sparse.csr_array, np.ndarray]:
    """Return A and b of A (x, y) <= b, tying each y to its product on the side it is pushed to."""
    rows, columns, entries, bounds = [], [], [], []
    for j, (term, coefficient) in enumerate(products):
        y, xs = len(column) + j, [column[unit] for unit in term]
        if coefficient > 0:
            for x in xs:
                rows += [len(bounds)] * 2
                columns += [y, x]
                entries += [1.0, -sign]
                bounds.append(0.0 if sign > 0 else 1.0)
        else:
            rows += [len(bounds)] * (1 + len(xs))
            columns += [y, *xs]
            entries += [-1.0] + [sign] * len(xs)
            bounds.append(len(xs) - 1.0 if sign > 0 else -1.0)
    shape = (len(bounds), len(column) + len(products))
    return sparse.csr_array((entries, (rows, columns)), shape=shape), np.array(bounds)


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


def _check(circuit: Circuit) -> None:
    if len(circuit.indices) != len(circuit.units):
        raise ResultError(
            f"a circuit needs one label per index; got {len(circuit.units)} labels for "
            f"{len(circuit.indices)} indices."
        )
    inside = all(0 <= index < circuit.n_units for index in circuit.indices)
    if not inside or len(set(circuit.indices)) < len(circuit.indices):
        raise ResultError(
            f"a circuit must name distinct units in 0..{circuit.n_units - 1}; "
            f"got {circuit.indices}."
        )
