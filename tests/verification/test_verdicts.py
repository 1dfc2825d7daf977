"""The mean of a measured effect and its error under the draws of contexts and of prompts."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import ttest_1samp

from circuitspex.verification.verdicts import mean_over_draws


def noise_table(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(int(rng.integers(2, 9)), int(rng.integers(2, 9))))


def textbook(table: np.ndarray) -> tuple[float, float, bool]:
    """Return variance and degrees of freedom of the grand mean, and whether the floor holds it."""
    n_contexts, n_prompts = table.shape
    rows, columns, mean = table.mean(axis=1), table.mean(axis=0), table.mean()
    of_rows = sum((row - mean) ** 2 for row in rows) / (n_contexts - 1) / n_contexts
    of_columns = sum((column - mean) ** 2 for column in columns) / (n_prompts - 1) / n_prompts
    freedom = (n_contexts - 1) * (n_prompts - 1)
    squares = sum(
        (table[i, j] - rows[i] - columns[j] + mean) ** 2
        for i in range(n_contexts)
        for j in range(n_prompts)
    )
    of_rest = squares / freedom / (n_contexts * n_prompts)
    difference, floor = of_rows + of_columns - of_rest, max(of_rows, of_columns)
    variance = max(difference, floor)
    spread = of_rows**2 / (n_contexts - 1) + of_columns**2 / (n_prompts - 1) + of_rest**2 / freedom
    return variance, variance**2 / spread, difference < floor


def test_variance_floor_and_degrees_of_freedom_are_those_of_the_textbook() -> None:
    n_floored = 0
    for seed in range(200):
        table = noise_table(seed)
        variance, freedom, floored = textbook(table)
        mean = mean_over_draws(torch.from_numpy(table), 0.0)
        assert mean.mean == pytest.approx(table.mean())
        assert mean.std_error == pytest.approx(variance**0.5)
        assert mean.freedom == pytest.approx(freedom)
        n_floored += floored
    assert 100 < n_floored < 200  # on noise alone the floor is what counts, mostly


@pytest.mark.parametrize("shape", [(7, 1), (1, 7)])
def test_under_one_draw_alone_it_is_the_t_test(shape: tuple[int, int]) -> None:
    table = np.random.default_rng(0).normal(0.4, 1.0, shape)
    mean = mean_over_draws(torch.from_numpy(table), 0.0)
    test: Any = ttest_1samp(table.reshape(-1), 0.0)  # its stubs lack the p-value
    interval = test.confidence_interval()
    assert mean.freedom == pytest.approx(6)
    assert mean.p_value == pytest.approx(test.pvalue)
    assert mean.interval == pytest.approx((interval.low, interval.high))


def test_a_single_value_has_no_error() -> None:
    mean = mean_over_draws(torch.tensor([[2.5]], dtype=torch.float64), 0.0)
    assert (mean.mean, mean.std_error, mean.p_value, mean.interval) == (2.5, None, None, None)


def test_equal_values_are_certain() -> None:
    for value, p_value in ((1.0, 0.0), (0.0, 1.0)):
        mean = mean_over_draws(torch.full((3, 4), value, dtype=torch.float64), 0.0)
        assert (mean.std_error, mean.p_value) == (0.0, p_value)
        assert mean.interval == (value, value)
