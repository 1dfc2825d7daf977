"""The whole path: what is decided where the settings leave it open, and what is on disk after."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from circuitspex.errors import ResultError
from circuitspex.findings import Findings
from circuitspex.runs import Settings, discover

SMALL = Settings(units="heads@1", n_prompts=2, budget=32)


@pytest.mark.parametrize(
    ("n_units", "budget", "decoder", "keep_rate", "drawn"),
    [
        (8, 4096, "exact", 0.5, 16),
        (8, 4095, "hybrid", 0.95, 16),  # so few masks that one prompt each spends a sixteenth
        (12, 4096 * 3, "hybrid", 0.95, 3),
        (270, 10**9, "hybrid", 0.95, 1),
    ],
)
def test_plan(n_units: int, budget: int, decoder: str, keep_rate: float, drawn: object) -> None:
    plan = Settings(budget=budget).resolve(n_units, 16)
    assert (plan.decoder, plan.keep_rate, plan.prompts_per_mask) == (decoder, keep_rate, drawn)


def test_what_is_set_stays_set() -> None:
    plan = Settings(decoder="lasso", keep_rate=0.8, prompts_per_mask=3).resolve(8, 16)
    assert (plan.decoder, plan.keep_rate, plan.prompts_per_mask) == ("lasso", 0.8, 3)


@pytest.mark.parametrize(("n_units", "size"), [(1, 1), (8, 4), (270, 135)])
def test_a_circuit_is_half_of_the_units_unless_said(n_units: int, size: int) -> None:
    assert Settings().resolve(n_units, 16).circuit_size == size
    assert Settings(circuit_size=7).resolve(n_units, 16).circuit_size == 7


@pytest.mark.slow
def test_result_reads_back_what_was_written(tmp_path: Path) -> None:
    made = discover(SMALL, tmp_path)
    read = Findings.load(tmp_path)
    assert made.n_evaluated == read.n_evaluated == 32
    assert made.seconds == read.seconds > 0
    assert read.interactions.support == made.interactions.support
    torch.testing.assert_close(
        read.interactions.coefficients, made.interactions.coefficients, rtol=0, atol=0
    )
    assert read.circuit == made.circuit
    assert read.criteria == made.criteria
    assert read.verification == made.verification
    assert made.verification is not None
    assert len(made.verification.checked) == 11  # all pairs, triples and the four
    assert read.spec == made.spec
    assert made.spec.evaluation["model"]["processing"] == "raw"


def test_folders_without_verified_interactions_are_read(tmp_path: Path) -> None:
    discover(SMALL, tmp_path)
    (tmp_path / "verified_interactions.json").unlink()
    assert Findings.load(tmp_path).verification is None


def test_verifying_keeps_to_its_share_of_the_budget(tmp_path: Path) -> None:
    sampled = replace(SMALL, decoder="lasso", keep_rate=0.6, budget=64, prompts_per_mask="all")
    made = discover(sampled, tmp_path)
    verified = made.verification
    assert verified is not None
    assert 0 < verified.n_evaluations <= 16
    assert verified.counts["not checked"] > 0
    # Every evaluation is the decoder's, or the verification's, or of the intact model.
    assert made.n_evaluated <= 64 + 16 + 2
    assert discover(sampled, tmp_path).n_evaluated == 0


def test_nothing_is_verified_where_nothing_is_asked_for(tmp_path: Path) -> None:
    made = discover(replace(SMALL, verify=0), tmp_path)
    assert made.verification is not None
    assert made.verification.checked == ()


def test_half_a_run_is_named(tmp_path: Path) -> None:
    discover(SMALL, tmp_path)
    (tmp_path / "circuit.json").unlink()
    with pytest.raises(ResultError, match=r"no finished run: circuit\.json missing"):
        Findings.load(tmp_path)


@pytest.mark.slow
def test_a_tolerance_stops_a_run_early(tmp_path: Path) -> None:
    settings = Settings(decoder="lasso", keep_rate=0.7, budget=16 * 1024, n_prompts=2)
    whole = discover(settings, tmp_path / "whole")
    early = discover(replace(settings, options={"tolerance": 0.05}), tmp_path / "early")
    assert whole.interactions.n_evaluations > early.interactions.n_evaluations
    assert early.interactions.diagnostics["stopping"]["stopped_early"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(ResultError, match=r"run cannot be made.*Choose another folder"):
        discover(SMALL, tmp_path / "run")
