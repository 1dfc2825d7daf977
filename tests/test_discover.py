"""The whole path: what is decided where the settings leave it open, and what is on disk after."""

from pathlib import Path

import pytest
import torch

from circuitspex.discover import Result, Settings, default_size, discover
from circuitspex.errors import ModelError, ResultError
from circuitspex.interactions import Interactions

SMALL = Settings(units="heads@1", n_prompts=2, budget=32)


@pytest.mark.parametrize(
    ("n_units", "budget", "decoder", "keep_rate", "drawn"),
    [
        (8, 4096, "exact", 0.5, "all"),
        (8, 4095, "proxyspex", 0.95, 1),
        (270, 10**9, "proxyspex", 0.95, 1),
    ],
)
def test_plan(n_units: int, budget: int, decoder: str, keep_rate: float, drawn: object) -> None:
    plan = Settings(budget=budget).resolve(n_units, 16)
    assert (plan.decoder, plan.keep_rate, plan.prompts_per_mask) == (decoder, keep_rate, drawn)


def test_what_is_set_stays_set() -> None:
    plan = Settings(decoder="lasso", keep_rate=0.8, prompts_per_mask=3).resolve(8, 16)
    assert (plan.decoder, plan.keep_rate, plan.prompts_per_mask) == ("lasso", 0.8, 3)


def test_default_circuit_holds_only_units_that_act() -> None:
    found = Interactions(
        n_units=50,
        units=tuple(map(str, range(50))),
        basis="fourier",
        origin=None,
        keep_rate=0.9,
        support=((), (3,), (3, 9)),
        coefficients=torch.ones(3, dtype=torch.float64),
    )
    assert default_size(found) == 2


def test_result_reads_back_what_was_written(tmp_path: Path) -> None:
    made = discover(SMALL, tmp_path)
    read = Result.load(tmp_path)
    assert made.n_evaluated == 32
    assert read.interactions.support == made.interactions.support
    torch.testing.assert_close(
        read.interactions.coefficients, made.interactions.coefficients, rtol=0, atol=0
    )
    assert read.circuit == made.circuit
    assert read.verification == made.verification
    assert read.spec == made.spec
    assert made.spec.evaluation["model"]["processing"] == "raw"


def test_half_a_run_is_named(tmp_path: Path) -> None:
    discover(SMALL, tmp_path)
    (tmp_path / "circuit.json").unlink()
    with pytest.raises(ResultError, match=r"no finished run: circuit\.json missing"):
        Result.load(tmp_path)


def test_unknown_dtype_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="got 'int8'"):
        discover(Settings(dtype="int8"), tmp_path)
