"""A sweep as SLURM jobs: what is submitted, what is left out, and what the status says."""

import os
from pathlib import Path

import pytest
from cluster_jobs import make_program
from typer.testing import CliRunner

from circuitspex.cli import app
from circuitspex.cluster import Resources, Submission, read_submissions
from circuitspex.cluster.slurm import _write_record
from circuitspex.errors import JobInterruptedError, SweepError
from circuitspex.sweeps import RunState, jobs, plan_sweep
from circuitspex.sweeps.state import fail

SWEEP = "method: grid\nparameters: {seed: {values: [0, 1, 2]}, budget: {value: 512}}\n"


@pytest.fixture
def sweep(tmp_path) -> Path:
    (tmp_path / "seeds.yaml").write_text(SWEEP)
    plan_sweep(tmp_path / "seeds.yaml", tmp_path / "sweep")
    return tmp_path / "sweep"


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Path:
    """A folder of programs that answer as SLURM does."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    make_program(folder / "srun", "exit 0")
    make_program(folder / "scontrol", "echo MaxArraySize = 1001")
    make_program(folder / "sbatch", f"cp $1 {tmp_path}/submitted; echo Submitted batch job 31")
    make_program(folder / "squeue", "printf '31_0|RUNNING|None|0|n1|\\n31_1|PENDING|QOS|0||\\n'")
    return folder


def run(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["sweep", *map(str, arguments)])
    return done.exit_code, " ".join(done.output.split())


def test_runs_are_submitted_once_and_what_waits_is_left_out(sweep, slurm, tmp_path):
    code, said = run("run", sweep, "--cluster", "slurm", "--only", "0-1", "--minutes", 7)
    assert (code, "2 runs submitted as 2 jobs, array 31." in said) == (0, True)
    printed = (tmp_path / "submitted").read_text()
    assert "#SBATCH --time=7" in printed
    assert dict(read_submissions(sweep / "slurm")[0].items_of) == {"31_0": [0], "31_1": [1]}
    assert "Nothing to submit" in run("run", sweep, "--cluster", "slurm", "--only", "0-1")[1]
    assert "1 runs submitted as 1 jobs" in run("run", sweep, "--cluster", "slurm")[1]
    assert read_submissions(sweep / "slurm")[1].items_of == {"31": [2]}


def test_resources_come_from_a_file_and_options_win(sweep, tmp_path):
    (tmp_path / "resources.yaml").write_text("minutes: 5\npartition: long\ngpus: 1\n")
    options = ["--cluster", "slurm", "--print-sbatch", "--resources", tmp_path / "resources.yaml"]
    code, script = run("run", sweep, *options, "--partition", "short")
    assert code == 0
    assert "--partition=short" in script
    assert "--time=5 " in script
    assert "--gpus-per-node=1" in script
    assert "--array=0-2%3" in script
    assert read_submissions(sweep / "slurm") == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--partition", "long"], "--partition needs --cluster slurm; without it runs start here"),
        (["--print-sbatch", "--minutes", "5"], "--minutes, --print-sbatch needs --cluster slurm"),
        (
            ["--cluster", "slurm", "--jobs", "2"],
            "--jobs is for runs here; on a cluster, set max_pa",
        ),
    ],
)
def test_options_that_do_not_go_together_are_refused(sweep, options, words):
    code, said = run("run", sweep, *options)
    assert code == 2
    assert words in said


def test_a_script_for_nothing_is_refused(sweep):
    for index in range(3):
        fail(next_folder(sweep, index), "it melted", 1)
    code, said = run("run", sweep, "--cluster", "slurm", "--print-sbatch")
    assert code == 2
    assert "no run is left to do" in said
    assert run("run", sweep, "--cluster", "slurm", "--print-sbatch", "--retry-failed")[0] == 0


def next_folder(sweep: Path, index: int) -> Path:
    folder = jobs.read_manifest(sweep).run_folder(index)
    folder.mkdir(parents=True)
    return folder


STATES = """\
7_0|PENDING|Resources|0||
7_1|PENDING|BeginTime|1||
7_2|NODE_FAIL|NodeDown|0|n1|
"""


def test_status_says_what_each_job_waits_for(sweep, slurm):
    make_program(slurm / "squeue", f"printf '%s' '{STATES}'")
    _write_record(sweep / "slurm", Submission("slurm", {"3_0": [0, 1, 2]}))
    _write_record(sweep / "slurm", Submission("slurm", {f"7_{i}": [i] for i in range(3)}))
    states, silence = jobs.states_with_jobs(jobs.read_manifest(sweep))
    assert silence == ""
    assert [state.state for state in states] == ["waiting"] * 3
    assert [state.note for state in states] == [
        "job 7_0 waits (Resources: nodes are busy)",
        "job 7_1 requeued, waits (BeginTime: SLURM waits up to two minutes before it starts a job "
        "again)",
        "job 7_2 is over: its node failed (NodeDown); sweep run starts the run again",
    ]


def test_status_without_an_answer_from_slurm_says_so(sweep, slurm):
    make_program(slurm / "squeue", "echo cannot reach the controller >&2; exit 1")
    _write_record(sweep / "slurm", Submission("slurm", {"7_0": [0]}))
    code, said = run("status", sweep)
    assert code == 0
    assert "cannot reach the controller" in said
    assert "3 runs: 3 waiting." in said


@pytest.mark.parametrize(
    ("ends", "error", "words"),
    [
        (["failed"], SweepError, "run 0 failed: because"),
        (["waiting"], JobInterruptedError, "run 0 was told to stop before its end"),
        (["running", "running", "failed"], SweepError, "run 0 failed"),
    ],
)
def test_a_job_ends_as_its_run_did(monkeypatch, tmp_path, ends, error, words):
    said = iter(ends)
    monkeypatch.setattr(jobs, "_POLL", 0.0)
    monkeypatch.setattr(
        jobs, "run_entry", lambda *_, **__: RunState(0, "id", next(said), "because")
    )
    with pytest.raises(error, match=words):
        jobs.run_as_job(tmp_path, 0, "disabled")
    assert list(said) == []


@pytest.mark.parametrize("end", ["done", "running"])
def test_a_job_leaves_alone_what_another_one_does_or_did(monkeypatch, tmp_path, end):
    monkeypatch.setattr(jobs, "SILENCE", 0.0)
    monkeypatch.setattr(jobs, "run_entry", lambda *_, **__: RunState(0, "id", end))
    assert jobs.run_as_job(tmp_path, 0, "disabled") is None


def test_a_script_is_named_after_the_sweep(sweep):
    assert "--job-name=seeds-" in jobs.sweep_script(sweep, Resources())
