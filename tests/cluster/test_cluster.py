"""Jobs through submitit on this machine, what a cluster is asked for, and what it answers."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cluster_jobs
import psutil
import pytest
from cluster_jobs import make_program, search_path

from circuitspex.cluster import (
    JobState,
    Resources,
    job_states,
    read_submissions,
    sbatch_script,
    slurm,
    submit_array,
)
from circuitspex.cluster.slurm import log_of
from circuitspex.errors import ClusterError, MissingExtraError

FIVE_MINUTES = Resources(minutes=5)


@pytest.fixture(autouse=True)
def _jobs_find_the_tests(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", search_path())


def submit_here(function: Callable[..., Any], items: list, folder: Path) -> list[Any]:
    numbered = dict(enumerate(items))
    return list(
        submit_array(function, numbered, folder=folder, resources=FIVE_MINUTES, engine="local").jobs
    )


def wait_until(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not happened():
        assert time.monotonic() < end, "waited two minutes"
        time.sleep(0.2)


@pytest.mark.slow
def test_a_local_job_that_is_signalled_is_called_again(tmp_path):
    (job,) = submit_here(cluster_jobs.wait_for, [(tmp_path / "run" / "go",)], tmp_path / "jobs")
    wait_until(lambda: cluster_jobs.diary(tmp_path / "run") == ["start"])
    (worker,) = psutil.Process(job._process.pid).children()
    worker.send_signal(slurm._submitit().JobEnvironment._usr_sig())
    wait_until(lambda: cluster_jobs.diary(tmp_path / "run") == ["start", "start"])
    (tmp_path / "run" / "go").touch()
    assert job.result() is None
    assert job._process.wait() == 0


@pytest.mark.slow
def test_a_local_job_that_fails_leaves_the_others_alone(tmp_path):
    jobs = submit_here(cluster_jobs.wait_for, [(tmp_path / "b" / "diary",)], tmp_path / "jobs")
    jobs += submit_here(cluster_jobs.fail, [(tmp_path / "a",)], tmp_path / "jobs")
    good, bad = jobs
    assert good.result() is None
    assert "the model melted" in str(bad.exception())
    assert good._process.wait() == 0
    assert bad._process.wait() == 0
    assert "the model melted" in log_of(tmp_path / "jobs", bad.job_id).read_text()
    kept = read_submissions(tmp_path / "jobs")
    assert [dict(one.items_of) for one in kept] == [{good.job_id: [0]}, {bad.job_id: [0]}]
    assert [one.engine for one in kept] == ["local", "local"]


# submitit's debugging job does not close its log files.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_debug_engine_runs_in_this_process_and_several_items_in_a_job(tmp_path):
    submission = submit_array(
        cluster_jobs.run_toy,
        {4: (tmp_path / "a",), 6: (tmp_path / "b",), 9: (tmp_path / "c",)},
        folder=tmp_path / "jobs",
        resources=Resources(runs_per_job=2),
        engine="debug",
    )
    assert list(submission.items_of.values()) == [[4, 6], [9]]
    submission.jobs[0].results()
    one, other = (cluster_jobs.results(tmp_path / name) for name in "ab")
    assert one == other
    assert cluster_jobs.diary(tmp_path / "c") == []


def test_every_item_has_its_turn_before_failures_are_raised(tmp_path):
    work = slurm.Requeued(cluster_jobs.fail)
    with pytest.raises(ExceptionGroup, match="2 of 2 runs failed"):
        work((tmp_path / "a",), (tmp_path / "b",))
    assert cluster_jobs.diary(tmp_path / "b") == ["start"]


@pytest.mark.parametrize("n_items", [1, 7])
def test_the_script_holds_what_was_asked_for(tmp_path, n_items):
    resources = Resources(
        minutes=90,
        gpus=1,
        cpus=8,
        memory_gb=1.5,
        partition="long",
        account="lab",
        qos="low",
        constraint="a100",
        max_parallel=3,
        grace_seconds=60,
        setup=("module load cuda",),
        sbatch={"nodelist": "n[1-4]", "exclusive": True, "mail-user": "a b"},
    )
    script = sbatch_script(n_items, folder=tmp_path, resources=resources, name="a-sweep")
    lines = script.splitlines()
    settings = [line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH")]
    options = {name: value for name, _, value in (line.partition("=") for line in settings)}
    assert ("array" in options) == (n_items > 1)
    assert options.pop("array", "0-6%3") == "0-6%3"
    for name in ("output", "error", "wckey", "open-mode"):
        options.pop(name)
    assert options == {
        "job-name": "a-sweep",
        "time": "90",
        "gpus-per-node": "1",
        "cpus-per-task": "8",
        "mem": "1536M",
        "partition": "long",
        "account": "lab",
        "qos": "low",
        "constraint": "a100",
        "signal": "USR2@60",
        "nodes": "1",
        "requeue": "",
        "nodelist": "'n[1-4]'",
        "exclusive": "",
        "mail-user": "'a b'",
    }
    assert lines.index("module load cuda") < next(i for i, x in enumerate(lines) if "srun" in x)
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"minuts": 5}, "no resource 'minuts'; did you mean 'minutes'"),
        ({"zzz": 5}, "no resource 'zzz'; there are minutes, gpus"),
        ({"minutes": "5"}, "resource minutes must be a whole number; got '5'"),
        ({"minutes": True}, "resource minutes must be a whole number; got True"),
        ({"minutes": None}, "resource minutes must be a whole number; got None"),
        ({"memory_gb": "4G"}, "resource memory_gb must be a number; got '4G'"),
        ({"partition": 3}, "resource partition must be a word; got 3"),
        ({"setup": "module load"}, "resource setup must be a list of lines"),
        ({"sbatch": {"a": [1]}}, "resource sbatch must be options and their values"),
        ({"minutes": 0}, "minutes must be at least 1; got 0"),
        ({"memory_gb": 0}, "memory_gb must be at least 0.1; got 0"),
        ({"memory_gb": float("nan")}, "memory_gb must be at least 0.1; got nan"),
        (["minutes"], "resources must be a mapping such as 'minutes: 60'; got list"),
    ],
)
def test_resources_that_make_no_sense_are_refused(given, words):
    with pytest.raises(ClusterError, match=words):
        Resources.from_mapping(given)


def test_resources_are_read_as_they_are_written():
    given = {"minutes": 5, "setup": ["a", "b"], "sbatch": {"x": 1}, "qos": None, "memory_gb": 2}
    read = Resources.from_mapping(given)
    assert read == Resources(minutes=5, setup=("a", "b"), sbatch={"x": 1}, memory_gb=2)
    assert Resources.from_mapping({}) == Resources()


def test_what_cannot_be_submitted_is_refused(tmp_path, monkeypatch):
    def submit(function, items, **options):
        resources = Resources(**options)
        numbered = dict(enumerate(items))
        submit_array(function, numbered, folder=tmp_path, resources=resources)

    with pytest.raises(ClusterError, match=r"<lambda> cannot be imported by a job"):
        submit(lambda: None, [()])
    with pytest.raises(ClusterError, match="There is nothing to submit: no run is left"):
        submit(cluster_jobs.fail, [])
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError, match=r"no SLURM here: srun was not found.*--print-sbatch"):
        submit(cluster_jobs.fail, [(tmp_path,)])
    make_program(tmp_path / "srun", "exit 0")
    make_program(tmp_path / "scontrol", "echo MaxArraySize = 100")
    with pytest.raises(ClusterError, match=r"401 jobs are too many.*arrays of 100.*to 5 or more"):
        submit(cluster_jobs.fail, [(tmp_path,)] * 401)
    make_program(tmp_path / "sbatch", "echo error: invalid partition specified: long >&2; exit 1")
    with pytest.raises(ClusterError, match=r"SLURM refused the array: .*invalid partition"):
        submit(cluster_jobs.fail, [(tmp_path,)], partition="long")
    assert read_submissions(tmp_path) == []


def test_a_missing_submitit_is_named_with_its_cure(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'circuitspex\[slurm\]'"):
        sbatch_script(3, folder=tmp_path, resources=Resources())


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"engine": 1, "jobs": [1]}', '{"jobs": {}}'])
def test_a_damaged_record_is_refused(tmp_path, text):
    (tmp_path / "submissions").mkdir()
    (tmp_path / "submissions" / "0000.json").write_text(text)
    with pytest.raises(ClusterError, match=r"0000.json is not a record of submitted jobs"):
        read_submissions(tmp_path)


SQUEUE = """\
7_0|COMPLETED|None|0|n1|
7_1|PENDING|JobArrayTaskLimit|0||
7_2|PENDING|BeginTime|2||
7_3|RUNNING|None|1|n[1-2]|
7_4|FAILED|NonZeroExitCode|0|n1|
7_5|PENDING|Nodes required for job are DOWN, DRAINED or reserved|0||
8|NODE_FAIL|NodeDown|3|n1|
"""
SACCT = "9|CANCELLED by 0|n3\n9_1|TIMEOUT|n3\n"


def test_states_come_from_squeue_and_else_from_accounts(tmp_path, monkeypatch):
    make_program(tmp_path / "squeue", f"printf '%s' '{SQUEUE}'")
    make_program(tmp_path / "sacct", f"printf '%s' '{SACCT}'")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    found = job_states([*(f"7_{i}" for i in range(6)), "8", "9", "9_1", "10"])
    assert {job: (state.describe(), state.is_over) for job, state in found.items()} == {
        "7_0": ("completed", True),
        "7_1": ("waits (JobArrayTaskLimit: max_parallel jobs of this array run already)", False),
        "7_2": (
            "requeued, waits (BeginTime: SLURM waits up to two minutes before it starts a job "
            "again)",
            False,
        ),
        "7_3": ("runs after 1 requeue", False),
        "7_4": ("failed (NonZeroExitCode: the run failed; see its log)", True),
        "7_5": ("waits (Nodes: nodes are drained, down or reserved)", False),
        "8": ("its node failed after 3 requeues (NodeDown)", True),
        "9": ("cancelled", True),
        "9_1": ("reached its time limit", True),
        "10": ("SLURM no longer knows it", True),
    }
    assert found["7_3"].node == "n[1-2]"
    assert job_states([]) == {}


def test_a_cluster_without_accounts_and_one_that_is_silent(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError, match="squeue was not found here"):
        job_states(["3"])
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin:/bin")
    make_program(tmp_path / "squeue", "echo slurm_load_jobs error: Invalid job id >&2; exit 1")
    make_program(tmp_path / "sacct", "echo Slurm accounting storage is disabled >&2; exit 1")
    assert job_states(["3"]) == {"3": JobState("UNKNOWN")}
    make_program(tmp_path / "squeue", "echo Unable to contact slurm controller >&2; exit 1")
    with pytest.raises(ClusterError, match="Unable to contact slurm controller"):
        job_states(["3"])


def test_records_are_plain_json(tmp_path):
    submission = slurm.Submission("slurm", {"12_0": [0, 1], "12_1": [2]})
    slurm._write_record(tmp_path, submission)
    text = (tmp_path / "submissions" / "0000.json").read_text()
    assert json.loads(text) == {"engine": "slurm", "jobs": {"12_0": [0, 1], "12_1": [2]}}
    assert read_submissions(tmp_path) == [submission]
