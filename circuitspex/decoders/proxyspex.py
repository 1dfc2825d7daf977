"""The ProxySPEX decoder: boosted trees propose interactions, a relaxed LASSO fits them."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
from annotated_types import Ge, Gt, Le, Lt

from circuitspex._shared import Count
from circuitspex.decoders.measuring import Samples
from circuitspex.decoders.regression import (
    Candidates,
    SparseRegression,
    Tree,
    as_terms,
    strongest_units,
    tree_fourier,
)


@dataclass(frozen=True, kw_only=True)
class ProxySpexDecoder(SparseRegression):
    r"""Reads interactions off gradient-boosted trees, then fits them without the trees.

    1. Boosted trees of depth ``max_order`` and few leaves are fitted to the values.
    2. Their sum is transformed exactly into Fourier coefficients at the keep rate.
    3. The terms with the largest coefficients become candidates. An adaptive LASSO, whose penalty
       on T is divided by :math:`\sqrt{|F_{trees}(T)|}`, orders them.
    4. How many to keep is chosen by rows that neither trees nor LASSO have seen, and the kept ones
       are refitted by ridge regression, the constant included in any case.

    It departs from the published method where that is cheaper or better: one small model instead
    of a grid of large ones; the LASSO instead of a cut at 95 % of the energy, which keeps too few
    terms of a sparse game and thousands of a dense one; and any keep rate.

    **Cost:** the whole budget, by default one evaluation per mask and prompt. About
    ``2 n log2 n`` masks are a good start.

    **Assumption:** sparse in the Fourier basis of the keep rate, and hierarchical: some part of
    every interaction has an effect of its own, because a tree splits on what helps at once.

    **When it fails:** interactions without any lower-order trace (a parity of five units) are not
    found; no terms are then chosen and the held-out R² is near zero, not below. Among more units
    than ``max_units``, only those with the strongest effects of their own reach the trees.

    References:
        Butler et al. (2025), "ProxySPEX: Inference-Efficient Interpretability via Sparse Feature
        Interactions in LLMs", arXiv:2505.17495, section 3.3;
        Zou (2006), "The adaptive lasso and its oracle properties", JASA 101(476).
    """

    name: ClassVar[str] = "proxyspex"

    max_order: Annotated[int, Ge(1), Le(16)] = 4
    """Most units in one interaction, and depth of the trees. Orders above 5 are rarely worth their
    samples."""

    n_trees: Count | None = None
    """How many trees are boosted; None for a sixth of the rows, from 300 to 1000."""

    learning_rate: Annotated[float, Gt(0), Le(1)] = 0.1
    """What each tree contributes."""

    max_leaves: Annotated[int, Ge(2), Lt(2**31)] = 8
    """Most leaves of one tree. Few leaves on deep trees follow the strongest interactions."""

    max_candidates: Count = 800
    """Most terms that the LASSO sees."""

    max_units: Count = 4096
    """Most units that the trees see."""

    n_threads: Annotated[int, Ge(0), Lt(2**31)] = 0
    """Threads of the trees; 0 for OpenMP's default."""

    def _search(self, samples: Samples, rng: np.random.Generator) -> Candidates:
        values = self._level(samples)
        scale = values.std()
        if scale <= 1e-14 * np.abs(values).max(initial=0.0):
            return Candidates([], np.zeros(0))
        units = strongest_units(samples.masks, values, self.keep_rate, self.max_units)
        seed = int(rng.integers(2**31 - 1))
        trees = self._boost(samples.masks[:, units], (values - values.mean()) / scale, seed)
        rows, coefficients = tree_fourier(trees, self.keep_rate, self.max_order, len(units))
        sizes = np.abs(coefficients) * (rows >= 0).any(axis=1)
        best = np.argsort(-sizes, kind="stable")[: self.max_candidates]
        best = best[sizes[best] > 0]
        chosen = np.where(rows[best] < 0, -1, units[rows[best]])
        return Candidates(as_terms(chosen), np.sqrt(sizes[best]))

    def _boost(self, masks: np.ndarray, values: np.ndarray, seed: int) -> list[Tree]:
        """Return the trees of a small LightGBM model of the values."""
        parameters: dict[str, Any] = {
            "objective": "regression",
            "learning_rate": self.learning_rate,
            "max_depth": self.max_order,
            "num_leaves": min(self.max_leaves, 2**self.max_order),
            "max_bin": 3,  # a unit is kept or not
            "min_data_in_bin": 1,
            "min_data_in_leaf": 5,
            "feature_pre_filter": False,
            "num_threads": self.n_threads,
            "force_row_wise": True,
            "deterministic": True,
            "seed": seed,
            "verbosity": -1,
        }
        import lightgbm  # not at the top of the file: it takes a second, and OpenMP with it

        data = lightgbm.Dataset(masks.astype(np.float32), values, params=parameters)
        n_trees = self.n_trees or min(1000, max(300, len(masks) // 6))
        model = lightgbm.train(
            parameters, data, num_boost_round=n_trees, keep_training_booster=True
        )
        return [_read_tree(text) for text in model.model_to_string().split("\nTree=")[1:]]


def _read_tree(text: str) -> Tree:
    """Return a tree from its block in LightGBM's text format."""
    entries = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    numbers = {
        key: np.array(entries.get(key, "").split(), dtype=kind)
        for key, kind in (
            ("split_feature", np.int64),
            ("left_child", np.int64),
            ("right_child", np.int64),
            ("leaf_value", np.float64),
        )
    }
    return Tree(
        numbers["split_feature"],
        numbers["left_child"],
        numbers["right_child"],
        numbers["leaf_value"],
    )
