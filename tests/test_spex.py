"""The block people work in, on the toy model, from masks to a verified circuit."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import circuitspex as cs
from circuitspex.algebra import Interactions
from circuitspex.errors import AblationError, BudgetError, HookError, ResultError, TaskWarning
from circuitspex.tracking import NullTracker
from circuitspex.units import Site


class Recorder(NullTracker):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.finished: list[cs.Findings] = []
        self.evaluations: Any = None

    def start(self, spec: cs.Spec) -> None:
        self.events.append("start")

    def log(self, scalars: Mapping[str, float]) -> None:
        self.events.append("log")

    def finish(self, findings: cs.Findings, *, page: Any = None, evaluations: Any = None) -> None:
        self.events.append("finish")
        self.finished.append(findings)
        self.evaluations = evaluations


@pytest.fixture
def task(toy: Any) -> cs.Task:
    return cs.tasks.induction(toy, n_prompts=4, seed=0)


def test_the_whole_path(toy: Any, task: cs.Task) -> None:
    recorder = Recorder()
    with cs.CircuitSpex(toy, task, units=cs.heads(toy), tracker=recorder) as spex:
        assert spex.n_units == 8
        found = spex.discover(decoder="exact", budget=1024, keep_rate=0.5, seed=0)
        circuit = spex.circuit(found, n_units=4)
        report = spex.verify(circuit)
        masks = cs.masks.enumerate_masks(8)
        torch.testing.assert_close(found.predict(masks), spex(masks), rtol=0, atol=1e-9)
        # The best four heads by brute force over all sets of four.
        values = spex(masks).masked_fill(masks.sum(1) != 4, -torch.inf)
        assert circuit.indices == tuple(masks[values.argmax()].nonzero().squeeze(1).tolist())
    assert found.units == cs.heads(toy).labels
    assert report.held_out
    assert 0.3 < report.faithfulness < 1.2
    assert report.std_error is not None
    assert report.std_error > 0
    assert recorder.events == ["start", "log", "finish"]
    (findings,) = recorder.finished
    assert findings is spex.findings()
    assert findings.spec is spex.spec
    assert findings.interactions is found
    assert findings.circuit is circuit
    assert findings.criteria is report
    assert findings.verification is None
    assert findings.n_evaluated == 1024
    assert findings.seconds > 0
    assert recorder.evaluations.num_rows == 1024


def test_findings_are_there_in_the_block_and_after(toy: Any, task: cs.Task) -> None:
    with cs.CircuitSpex(toy, task, units=cs.heads(toy)) as spex:
        with pytest.raises(ResultError, match="nothing was found yet"):
            spex.findings()
        found = spex.discover(decoder="exact", budget=1024)
        assert spex.findings().circuit is None
        circuit = spex.circuit(found, 2)
        assert spex.findings().circuit is circuit
        report = spex.verify(circuit)
        assert spex.findings().criteria is report
        larger = spex.circuit(found, 5)
        assert (spex.findings().circuit, spex.findings().criteria) == (larger, None)
        report = spex.verify(circuit)
        assert (spex.findings().circuit, spex.findings().criteria) == (circuit, report)
        again = spex.discover(decoder="exact", budget=1024, keep_rate=0.7)
    assert spex.findings().interactions is again
    assert spex.findings().circuit is None  # that was of earlier interactions


def test_a_block_that_fails_is_not_tracked_as_finished(toy: Any, task: cs.Task) -> None:
    recorder = Recorder()
    with pytest.raises(RuntimeError, match="user code"):
        with cs.CircuitSpex(toy, task, units=cs.heads(toy), tracker=recorder) as spex:
            spex.discover(decoder="exact", budget=1024)
            raise RuntimeError("user code")
    assert "finish" not in recorder.events


@pytest.mark.parametrize("ablation", ["zero", "mean", "resample"])
def test_every_ablation_decodes(toy: Any, task: cs.Task, ablation: str) -> None:
    units = cs.heads(toy, layers=[1])
    with cs.CircuitSpex(toy, task, units, ablation=ablation) as spex:
        found = spex.discover(decoder="exact", budget=64)
        masks = cs.masks.enumerate_masks(4)
        torch.testing.assert_close(found.predict(masks), spex(masks), rtol=0, atol=1e-9)
        assert spex(masks).std() > 0


def test_resample_needs_counterfactuals(toy: Any) -> None:
    plain = cs.Task.from_prompts(toy, [[0, 3, 4, 3]], [4], [5])
    with pytest.raises(AblationError, match="needs counterfactual prompts"):
        with cs.CircuitSpex(toy, plain, cs.heads(toy), ablation="resample"):
            pass


def test_store_replays(toy: Any, task: cs.Task, tmp_path: Path) -> None:
    runs: list[Interactions] = []
    counts = []
    for _ in range(2):
        with cs.CircuitSpex(toy, task, cs.heads(toy), store=tmp_path) as spex:
            runs.append(spex.discover("lasso", budget=800, keep_rate=0.7, seed=3))
            counts.append(spex.evaluation.n_evaluated)
    assert counts[0] > 0
    assert counts[1] == 0
    assert runs[0].support == runs[1].support
    torch.testing.assert_close(runs[0].coefficients, runs[1].coefficients, rtol=0, atol=0)


def test_a_task_the_model_fails_is_reported(toy: Any) -> None:
    flipped = cs.Task.from_prompts(toy, [[0, 3, 4, 5, 3, 4, 5, 3]], [9], [4])
    with pytest.warns(TaskWarning, match="1 of 1 prompts at or below 0"):
        with cs.CircuitSpex(toy, flipped, cs.heads(toy)):
            pass


def test_verifying_without_held_out_prompts_says_so(toy: Any) -> None:
    plain = cs.Task.from_prompts(toy, [[0, 3, 4, 5, 3, 4, 5, 3]], [4], [9])
    with cs.CircuitSpex(toy, plain, cs.heads(toy)) as spex:
        circuit = spex.circuit(spex.discover("exact", budget=256), n_units=3)
        with pytest.warns(TaskWarning, match="no held-out prompts"):
            report = spex.verify(circuit)
    assert not report.held_out


def test_outside_the_block_there_is_a_clear_error(toy: Any, task: cs.Task) -> None:
    spex = cs.CircuitSpex(toy, task, cs.heads(toy))
    with pytest.raises(HookError, match="inside the block"):
        spex(cs.masks.all_kept(8))


def test_budget_too_small_is_refused_before_work(toy: Any, task: cs.Task) -> None:
    with cs.CircuitSpex(toy, task, cs.heads(toy)) as spex:
        before = spex.evaluation.n_evaluated
        with pytest.raises(BudgetError, match=r"1,?024"):
            spex.discover("exact", budget=1023)
        assert spex.evaluation.n_evaluated == before


@pytest.mark.parametrize(("n_units", "says"), [(7, False), (2, True)])
def test_a_circuit_far_from_the_masks_is_called_an_extrapolation(
    toy: Any, task: cs.Task, n_units: int, says: bool
) -> None:
    with cs.CircuitSpex(toy, task, cs.heads(toy)) as spex:
        found = spex.discover("lasso", budget=400, keep_rate=0.9)
        report = spex.verify(spex.circuit(found, n_units))
    assert ("extrapolates" in report.notes) is says


def test_interactions_are_verified_on_the_prompts_of_the_discovery(toy: Any, task: cs.Task) -> None:
    recorder = Recorder()
    with cs.CircuitSpex(toy, task, cs.heads(toy), tracker=recorder) as spex:
        found = spex.discover("lasso", budget=400, keep_rate=0.7)
        before = spex.evaluation.n_evaluated + spex.evaluation.n_replayed
        verification = spex.verify_interactions(found, top=5, max_order=3)
        spent = spex.evaluation.n_evaluated + spex.evaluation.n_replayed - before
        values = spex.per_prompt(cs.masks.enumerate_masks(8))
    exact = cs.transforms.moebius(values, origin="intact")
    for row in verification.checked:
        truth = exact[sum(2**unit for unit in row.indices)]
        assert row.measured is not None
        torch.testing.assert_close(torch.tensor(row.measured.prompt_values).double(), truth)
        assert row.measured.effect == pytest.approx(float(truth.mean()))
    intact = found.to("moebius", "intact")
    strongest = intact.top(5, min_order=2, max_order=3)
    assert [row.units for row in verification.checked] == [one.units for one in strongest]
    assert verification.n_evaluations == spent
    assert (verification.label, verification.held_out) == (task.name, False)
    assert recorder.finished[0].verification is verification


def test_interactions_are_verified_on_other_prompts(toy: Any, task: cs.Task) -> None:
    assert task.held_out is not None
    with cs.CircuitSpex(toy, task, cs.heads(toy)) as spex:
        found = spex.discover("exact", budget=1024)
        same = spex.verify_interactions(found, top=3)
        other = spex.verify_interactions(found, top=3, task=task.held_out)
    with cs.CircuitSpex(toy, task.held_out, cs.heads(toy)) as spex:
        there = spex.verify_interactions(found, top=3)
    assert other.held_out
    assert other.measured == there.measured != same.measured
    assert other.label == task.held_out.name


def test_what_was_verified_of_an_earlier_discovery_is_not_tracked(toy: Any, task: cs.Task) -> None:
    recorder = Recorder()
    with cs.CircuitSpex(toy, task, cs.heads(toy), tracker=recorder) as spex:
        spex.verify_interactions(spex.discover("exact", budget=1024), top=1)
        spex.discover("lasso", budget=400, keep_rate=0.8)
    assert recorder.finished[0].verification is None


def test_only_what_is_about_the_intact_model_is_tracked(toy: Any, task: cs.Task) -> None:
    recorder = Recorder()
    with cs.CircuitSpex(toy, task, cs.heads(toy), tracker=recorder) as spex:
        found = spex.discover("exact", budget=1024, keep_rate=0.8)
        contexts = spex.verify_interactions(found, top=2, around="contexts", n_contexts=4, seed=1)
        again = spex.verify_interactions(found, top=2, around="contexts", n_contexts=4, seed=1)
        circuit = spex.circuit(found, 4)
        inside = spex.verify_interactions(found, top=2, around=circuit)
    assert contexts == again
    assert (contexts.keep_rate, contexts.n_contexts) == (0.8, 4)
    assert inside.circuit == circuit.indices
    # every mask was evaluated, so what the decoder says around the circuit is exact
    assert inside.measured[:2] == pytest.approx(inside.estimates[:2])
    assert recorder.finished[0].verification is None


PACKAGE = Path(cs.__file__).parent


def package_frames() -> list[str]:
    """Names of the package's functions that are being called, the innermost first."""
    names, frame = [], sys._getframe(1)
    while frame is not None:
        if Path(frame.f_code.co_filename).is_relative_to(PACKAGE):
            names.append(frame.f_code.co_name)
        frame = frame.f_back
    return names


CALLS: dict[str, Callable[[cs.CircuitSpex, torch.Tensor], Any]] = {
    "values": lambda spex, masks: spex(masks),
    "gradients": lambda spex, masks: spex.value_and_gradient(masks),
}


@pytest.mark.parametrize("kind", CALLS)
def test_a_mask_passes_few_hands_on_its_way_to_the_hook(
    toy: Any, task: cs.Task, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broadcast, seen = Site.broadcast, []

    def note(self: Site, gates: torch.Tensor) -> torch.Tensor:
        seen.append(package_frames())
        return broadcast(self, gates)

    with cs.CircuitSpex(toy, task, cs.heads(toy)) as spex:
        monkeypatch.setattr(Site, "broadcast", note)
        CALLS[kind](spex, cs.masks.ablate_only([[1], [2, 3], [7]], 8))
    assert seen
    for names in seen:
        assert names[0] == "ablate_site"
        assert names[-1] == {"values": "__call__", "gradients": "value_and_gradient"}[kind]
        n_hops = len(names) - 1
        assert n_hops <= {"values": 7, "gradients": 8}[kind], names


@pytest.mark.parametrize("kind", CALLS)
def test_masks_are_checked_at_the_door_and_not_again(
    toy: Any, task: cs.Task, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks: list[str] = []
    for room in ("evaluation.evaluation", "ablation.ablated"):
        for name in ("check_masks", "check_gates"):
            where = sys.modules[f"circuitspex.{room}"]
            original = getattr(where, name, None)
            if original is None:
                continue

            def note(given: Any, n_units: int, original: Any = original, room: str = room) -> Any:
                checks.append(room)
                return original(given, n_units)

            monkeypatch.setattr(where, name, note)
    with cs.CircuitSpex(toy, task, cs.heads(toy)) as spex:
        checks.clear()
        CALLS[kind](spex, cs.masks.ablate_only([[1], [2, 3]], 8))
    assert checks == ["evaluation.evaluation"]
