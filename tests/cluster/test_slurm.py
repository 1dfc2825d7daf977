"""The same jobs on a real SLURM of one node: arrays, requeues, time limits, a node that goes.

``python tests/slurm_cluster.py --install`` brings what is needed. Without it these tests are
skipped; CIRCUITSPEX_REQUIRE_SLURM=1 makes them fail instead.
"""

import contextlib
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cluster_jobs
import pytest
from cluster_jobs import search_path
from slurm_cluster import Cluster, running_cluster, why_not
from typer.testing import CliRunner

from circuitspex._shared import read_mapping
from circuitspex.cli import app
from circuitspex.cluster import (
    JobState,
    Resources,
    Submission,
    job_states,
    read_submissions,
    sbatch_script,
    submit_array,
)
from circuitspex.cluster.slurm import log_of
from circuitspex.errors import ClusterError

pytestmark = pytest.mark.slow

REQUIRED = "CIRCUITSPEX_REQUIRE_SLURM"
FIVE_MINUTES = Resources(minutes=5)
PATIENCE = 240
EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.sbatch"))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    reason = why_not()
    if reason and os.environ.get(REQUIRED) == "1":
        pytest.fail(reason, pytrace=False)
    if reason:
        pytest.skip(f"no SLURM here: {reason}")
    with pytest.MonkeyPatch.context() as patch, running_cluster() as cluster:
        for name, value in {**cluster.environment, "PYTHONPATH": search_path()}.items():
            patch.setenv(name, value)
        yield cluster


@pytest.fixture(scope="module")
def truth(tmp_path_factory) -> tuple[list[bytes], int]:
    """What an undisturbed run finds, and how many evaluations it takes."""
    folder = tmp_path_factory.mktemp("truth")
    n_evaluated = cluster_jobs.run_toy(folder).n_evaluated
    return cluster_jobs.results(folder), n_evaluated


def submit(function: Callable, items: list, folder: Path, resources=FIVE_MINUTES) -> Submission:
    numbered = dict(enumerate(items))
    return submit_array(function, numbered, folder=folder / "jobs", resources=resources)


def wait_for_states(
    cluster: Cluster, submission: Submission, enough: Callable[[list[JobState]], bool]
) -> list[JobState]:
    """Wait for what the jobs should come to; spare us the two minutes before a requeued one."""
    end, silence, states = time.monotonic() + PATIENCE, "", {}
    while time.monotonic() < end:
        time.sleep(0.5)
        try:
            states = job_states(submission.items_of)
        except ClusterError as error:  # a busy controller
            silence = str(error)
            continue
        for job, state in states.items():
            if state.reason == "BeginTime":
                cluster.release(job)
        if enough(list(states.values())):
            return list(states.values())
    raise AssertionError(f"waited {PATIENCE} s; {states} {silence}\n{cluster.logs()}")


def all_over(states: list[JobState]) -> bool:
    return all(state.is_over for state in states)


def wait_for_batches(folder: Path, n_batches: int) -> None:
    """Wait until a run has evaluated so many batches in its first try."""
    end = time.monotonic() + PATIENCE
    while len(cluster_jobs.diary(folder)) <= n_batches:
        assert time.monotonic() < end, f"waited {PATIENCE} s for {folder}"
        time.sleep(0.1)


def check_resumed(folder: Path, truth: tuple[list[bytes], int], n_tries: int = 2) -> None:
    """Check that a run took so many tries, found the same, and repeated at most what was in
    flight when a try ended."""
    results, n_evaluated = truth
    diary = cluster_jobs.diary(folder)
    batches = [int(word) for word in diary if word != "start"]
    assert diary.count("start") == n_tries
    assert cluster_jobs.results(folder) == results
    assert sum(batches) <= n_evaluated + cluster_jobs.BATCH * (n_tries - 1)


@pytest.fixture(scope="module", autouse=True)
def limited(cluster, tmp_path_factory) -> tuple[Path, Submission]:
    """A run that holds until its time limit, begun before the other tests to spare us the wait."""
    folder = tmp_path_factory.mktemp("limited")
    resources = Resources(minutes=1, grace_seconds=5)
    return folder, submit(cluster_jobs.run_toy, [(folder / "run", 0.0, 3)], folder, resources)


def test_an_array_of_runs_and_one_that_fails(cluster, tmp_path, truth):
    good = submit(cluster_jobs.run_toy, [(tmp_path / "a",), (tmp_path / "b",)], tmp_path)
    bad = submit(cluster_jobs.fail, [(tmp_path / "c",)], tmp_path)
    assert [state.state for state in wait_for_states(cluster, good, all_over)] == ["COMPLETED"] * 2
    for name in "ab":
        check_resumed(tmp_path / name, truth, n_tries=1)
    (failed,) = wait_for_states(cluster, bad, all_over)
    assert failed.describe() == "failed (NonZeroExitCode: the run failed; see its log)"
    (job,) = bad.items_of
    assert "the model melted" in log_of(tmp_path / "jobs", job).read_text()


@pytest.mark.parametrize("n_items", [1, 3])
def test_the_printed_script_is_the_submitted_one(cluster, tmp_path, n_items):
    submission = submit(cluster_jobs.fail, [(tmp_path / "run",)] * n_items, tmp_path)
    cluster.run("scancel", next(iter(submission.items_of)).partition("_")[0])
    printed = sbatch_script(n_items, folder=tmp_path / "jobs", resources=FIVE_MINUTES)
    assert submission.jobs[0].paths.submission_file.read_text() == printed
    tested = subprocess.run(["sbatch", "--test-only"], input=printed, text=True)
    assert tested.returncode == 0
    states = wait_for_states(cluster, submission, all_over)
    assert {state.state for state in states} == {"CANCELLED"}


def test_a_signal_requeues_and_the_run_goes_on(cluster, tmp_path, truth):
    submission = submit(cluster_jobs.run_toy, [(tmp_path / "run", 0.3)], tmp_path)
    (job,) = submission.items_of
    wait_for_batches(tmp_path / "run", 3)
    cluster.run("scancel", "--signal=USR2", job)
    (state,) = wait_for_states(cluster, submission, all_over)
    assert (state.state, state.n_restarts) == ("COMPLETED", 1)
    check_resumed(tmp_path / "run", truth)


def test_a_job_that_meets_its_limit_too_often_says_so(cluster, tmp_path):
    impatient = Resources(minutes=5, max_requeues=0)
    items = [(tmp_path / "run", 0.0, 1)]
    submission = submit(cluster_jobs.run_toy, items, tmp_path, impatient)
    (job,) = submission.items_of
    wait_for_batches(tmp_path / "run", 1)
    cluster.run("scancel", "--signal=USR2", job)
    (state,) = wait_for_states(cluster, submission, all_over)
    assert state.state == "FAILED"
    assert "timed-out too many times" in log_of(tmp_path / "jobs", job).read_text()


def test_a_time_limit_requeues_and_the_run_goes_on(cluster, truth, limited):
    folder, submission = limited
    (state,) = wait_for_states(cluster, submission, all_over)
    assert state.state == "COMPLETED"
    assert state.n_restarts >= 1
    check_resumed(folder / "run", truth, n_tries=state.n_restarts + 1)


def test_a_drained_node_ends_what_runs_and_starts_the_rest_when_it_is_back(
    cluster, tmp_path, truth
):
    one_by_one = Resources(minutes=5, max_parallel=1)
    items = [(tmp_path / "a", 0.0, 2), (tmp_path / "b",)]
    submission = submit(cluster_jobs.run_toy, items, tmp_path, one_by_one)
    wait_for_batches(tmp_path / "a", 2)
    with node_that_is("DRAIN", cluster):
        (tmp_path / "a" / "go").touch()
        states = wait_for_states(cluster, submission, lambda states: states[0].is_over)
        assert [state.state for state in states] == ["COMPLETED", "PENDING"]
        assert cluster_jobs.diary(tmp_path / "b") == []
    states = wait_for_states(cluster, submission, all_over)
    assert [state.state for state in states] == ["COMPLETED"] * 2
    for name in "ab":
        check_resumed(tmp_path / name, truth, n_tries=1)


def test_a_node_that_fails_requeues_what_it_lost(cluster, tmp_path, truth):
    submission = submit(cluster_jobs.run_toy, [(tmp_path / "a", 0.0, 2)], tmp_path)
    wait_for_batches(tmp_path / "a", 2)
    with node_that_is("DOWN", cluster):
        (state,) = wait_for_states(cluster, submission, lambda states: states[0].n_restarts == 1)
        assert state.state == "PENDING"
    (state,) = wait_for_states(cluster, submission, all_over)
    assert state.state == "COMPLETED", cluster.logs()
    check_resumed(tmp_path / "a", truth)


@contextlib.contextmanager
def node_that_is(state: str, cluster: Cluster) -> Iterator[None]:
    cluster.set_node(state)
    try:
        yield
    finally:
        cluster.set_node("RESUME")


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.name)
def test_slurm_takes_the_examples(cluster, tmp_path, file):
    check_accepted(cluster, tmp_path, file.read_text())


def test_slurm_takes_the_resources_of_the_examples(cluster, tmp_path):
    resources = Resources.from_mapping(read_mapping(EXAMPLES[0].parent / "resources.yaml"))
    check_accepted(cluster, tmp_path, sbatch_script(2, folder=tmp_path, resources=resources))


def check_accepted(cluster: Cluster, folder: Path, script: str) -> None:
    """Check that SLURM would take a script, but for GPUs and more nodes, which it has not here."""
    without, n_lines = re.subn(r"#SBATCH --gpus-per-node=\d+\n", "", script)
    assert n_lines == 1
    (folder / "script").write_text(without)
    given = ["--array=0-3%2", "--nodes=1", str(folder / "script"), "sweeps/mine"]
    cluster.run("sbatch", "--test-only", *given)


SWEEP = """\
method: grid
parameters:
  model: {values: [toy-induction, missing.gguf]}
  decoder: {value: lasso}
  budget: {value: 1024}
  n_prompts: {value: 8}
  verify: {value: 2}
"""


def test_a_sweep_from_the_command_line_to_its_status(cluster, tmp_path):
    (tmp_path / "models.yaml").write_text(SWEEP)
    sweep("plan", tmp_path / "models.yaml", "--out", tmp_path / "sweep")
    run = ["run", tmp_path / "sweep", "--cluster", "slurm", "--wandb", "disabled"]
    assert "2 runs submitted as 2 jobs" in sweep(*run, "--minutes", 5)
    assert "Nothing to submit" in sweep(*run)
    (submission,) = read_submissions(tmp_path / "sweep" / "slurm")
    wait_for_states(cluster, submission, all_over)
    status = sweep("status", tmp_path / "sweep")
    assert "2 runs: 1 done, 1 failed." in status
    assert "missing.gguf" in status
    assert "Nothing to submit" in sweep(*run)
    assert "1 runs submitted as 1 jobs" in sweep(*run, "--retry-failed")
    (retried,) = read_submissions(tmp_path / "sweep" / "slurm")[1].items_of
    cluster.run("scancel", retried)


def test_a_preempted_run_goes_back_into_the_queue_and_a_cancelled_one_does_not(cluster, tmp_path):
    (tmp_path / "long.yaml").write_text(LONG)
    sweep("plan", tmp_path / "long.yaml", "--out", tmp_path / "sweep")
    sweep("run", tmp_path / "sweep", "--cluster", "slurm", "--wandb", "disabled")
    (submission,) = read_submissions(tmp_path / "sweep" / "slurm")
    (job,) = submission.items_of
    wait_for_tries(tmp_path / "sweep", 1)
    cluster.run("scancel", "--signal=TERM", job)  # as a preemption is announced
    wait_for_states(cluster, submission, lambda states: states[0].n_restarts == 1)
    wait_for_states(cluster, submission, lambda states: states[0].state == "RUNNING")
    wait_for_tries(tmp_path / "sweep", 2)
    cluster.run("scancel", job)
    (state,) = wait_for_states(cluster, submission, all_over)
    assert (state.state, state.n_restarts) == ("CANCELLED", 1)
    status = " ".join(sweep("status", tmp_path / "sweep").replace("│", " ").split())
    assert "cancelled after 1 requeue" in status


LONG = """\
method: grid
parameters: {decoder: {value: lasso}, budget: {value: 500000}, n_prompts: {value: 512}}
command: ["${env}", circuitspex, discover, --batch-size=16, "${args}"]
"""


def wait_for_tries(folder: Path, n_tries: int) -> None:
    """Wait until a sweep's only run has begun to evaluate in so many tries."""
    end = time.monotonic() + PATIENCE
    while sum(log.read_text().count("keep rate") for log in folder.rglob("log.txt")) < n_tries:
        assert time.monotonic() < end, f"waited {PATIENCE} s for {folder}"
        time.sleep(0.2)


def sweep(*arguments: object) -> str:
    done = CliRunner().invoke(app, ["sweep", *map(str, arguments)])
    assert done.exit_code == 0, done.output
    return " ".join(done.output.split())
