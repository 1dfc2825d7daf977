"""Sweeps as they run: how far a run is, what ends it, what is collected, and W&B's own agent."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import yaml
from typer.testing import CliRunner

from circuitspex import sweeps
from circuitspex.cli import app
from circuitspex.cli.sweep import read_ranges
from circuitspex.errors import SweepError
from circuitspex.findings import SUMMARY
from circuitspex.runs import Settings
from circuitspex.sweeps import running, state

SMALL = {"units": "heads@1", "n_prompts": 2, "decoder": "lasso", "prompts_per_mask": "all"}


def sweep(parameters: Any = None, **keys: Any) -> dict[str, Any]:
    varied = {"seed": {"values": [0, 1]}} if parameters is None else parameters
    return {"method": "grid", "parameters": varied, **keys}


def write(folder: Path, document: dict[str, Any]) -> Path:
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


# How far a run is


@pytest.fixture
def plan(tmp_path: Path) -> sweeps.Manifest:
    return sweeps.plan_sweep(write(tmp_path, sweep()), tmp_path / "s")


def state_of(plan: sweeps.Manifest) -> tuple[str, str]:
    found = sweeps.run_state(plan, 0)
    return found.state, found.note


def start(plan: sweeps.Manifest) -> Path:
    folder = plan.run_folder(0)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def summary(folder: Path, **fields: Any) -> None:
    document = {
        "format": "circuitspex.summary/1",
        **{"run_id": folder.name, "evaluation_hash": "e" * 32, "run_hash": "r" * 32},
        **{"scalars": {"fit/r2_heldout": 0.5}, "seconds": 1.0},
        **{"n_evaluated": 3, "n_replayed": 0},
    }
    (folder / SUMMARY).write_text(json.dumps(document | fields))


def test_states_follow_the_files(plan: sweeps.Manifest) -> None:
    assert state_of(plan) == ("waiting", "")
    folder = start(plan)
    state.fail(folder, "no luck", 2)
    assert state_of(plan) == ("failed", "no luck")
    state.beat(folder)
    assert state_of(plan) == ("running", f"on {socket.gethostname()}")
    summary(folder)
    assert state_of(plan) == ("done", "1 s")


@pytest.mark.parametrize(
    "fields", [{"run_id": "0" * 16}, {"run_hash": 3}, {"seconds": "long"}, {"scalars": {"a": "b"}}]
)
def test_a_summary_of_something_else_is_not_done(
    plan: sweeps.Manifest, fields: dict[str, Any]
) -> None:
    summary(start(plan), **fields)
    assert state_of(plan)[0] == "waiting"


def beat_of(folder: Path, **fields: Any) -> None:
    state.beat(folder)
    path = folder / state.RUNNING
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"processes": [[2**22 + 5, 0.0]]}, "waiting"),  # no such process
        ({"processes": [[os.getpid(), 0.0]]}, "waiting"),  # its number went to another process
        ({"processes": [[]]}, "waiting"),
        ({"heartbeat": 0.0}, "running"),  # here, the process itself is asked, not the clock
        ({"host": "elsewhere"}, "running"),
        ({"host": "elsewhere", "ago": 1e4}, "waiting"),
        ({"host": "elsewhere", "ago": -30}, "running"),  # a clock behind
        ({"host": "elsewhere", "ago": -1e7}, "waiting"),
        ({"host": 3}, "waiting"),
    ],
)
def test_a_dead_runner_holds_nothing(
    plan: sweeps.Manifest, fields: dict[str, Any], wanted: str
) -> None:
    if "ago" in fields:
        fields = {"host": fields["host"], "heartbeat": time.time() - fields["ago"]}
    beat_of(start(plan), **fields)
    assert state_of(plan)[0] == wanted


def run_instead(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Have runs be a few lines of Python, in a process of their own all the same."""

    def command(manifest: sweeps.Manifest, run: Path, wandb: str) -> list[str]:
        finish = f"import json, os, pathlib, signal, sys, time\nrun = pathlib.Path({str(run)!r})\n"
        return [sys.executable, "-c", finish + code]

    monkeypatch.setattr(running, "_command", command)


FINISH = """
(run / "summary.json").write_text(json.dumps({"format": "circuitspex.summary/1",
    "run_id": run.name, "evaluation_hash": "", "run_hash": "", "scalars": {}, "seconds": 0.0,
    "n_evaluated": 0, "n_replayed": 0}))
"""


@pytest.mark.parametrize(
    ("code", "wanted"),
    [
        (FINISH, ("done", "0 s")),
        ("sys.exit('error: UnitError: no heads')", ("failed", "error: UnitError: no heads (exit")),
        ("1 / 0", ("failed", "ZeroDivisionError: division by zero (exit code 1)")),
        (
            "print('error: A: old'); print('error: B: new'); print('bye'); sys.exit(3)",
            ("failed", "error: B: new"),
        ),
        ("sys.exit(4)", ("failed", "it said nothing (exit code 4)")),
        ("pass", ("failed", "it said nothing (exit code 0)")),  # and left no result
        ("os.kill(os.getpid(), signal.SIGKILL)", ("failed", "killed by SIGKILL, as when memory")),
        ("os.kill(os.getpid(), signal.SIGSEGV)", ("failed", "killed by SIGSEGV")),
        ("os.kill(os.getpid(), signal.SIGTERM)", ("waiting", "")),  # told to stop, not failed
        ("sys.exit(130)", ("waiting", "")),
        ("sys.stderr.buffer.write(b'\\xff\\xfe'); sys.exit(1)", ("failed", "��")),
    ],
)
def test_how_a_run_ends_is_told(
    plan: sweeps.Manifest, monkeypatch: pytest.MonkeyPatch, code: str, wanted: tuple[str, str]
) -> None:
    run_instead(monkeypatch, code)
    ended = sweeps.run_entry(plan.folder, 0)
    assert ended.state == wanted[0]
    assert ended.note.startswith(wanted[1])
    assert not (plan.run_folder(0) / state.RUNNING).exists()
    assert Settings.load(plan.run_folder(0) / "settings.yaml") == plan.settings(0)


def test_only_what_is_not_done_is_run(
    plan: sweeps.Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 'open(run / "count", "a").write("x")\n'
    run_instead(monkeypatch, count + FINISH + "if run.name == sys.argv[0]: pass")
    assert [s.state for s in sweeps.run_sweep(plan.folder, only=[1])] == ["done"]
    assert [s.index for s in sweeps.run_sweep(plan.folder, jobs=2)] == [0]
    assert sweeps.run_sweep(plan.folder) == []
    assert sweeps.run_entry(plan.folder, 0).state == "done"
    assert [(plan.run_folder(i) / "count").read_text() for i in range(2)] == ["x", "x"]
    with pytest.raises(SweepError, match="no run 7"):
        sweeps.run_sweep(plan.folder, only=[7])


def test_what_failed_is_run_again_when_asked(
    plan: sweeps.Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_instead(monkeypatch, "sys.exit('error: first')")
    reported: list[sweeps.RunState] = []
    sweeps.run_sweep(plan.folder, report=reported.append)
    assert {s.state for s in reported} == {"failed"}
    run_instead(monkeypatch, FINISH)
    assert sweeps.run_sweep(plan.folder) == []
    assert {s.state for s in sweeps.run_sweep(plan.folder, retry_failed=True)} == {"done"}
    assert "error: first" in (plan.run_folder(0) / state.LOG).read_text()  # logs are kept


def test_a_run_that_is_told_to_stop_waits(
    plan: sweeps.Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_instead(monkeypatch, 'print("begun", flush=True); time.sleep(600)')
    stop = threading.Event()

    def stop_soon() -> None:
        log = plan.run_folder(0) / state.LOG
        while not (log.exists() and log.read_text()):
            time.sleep(0.02)
        assert sweeps.run_state(plan, 0).state == "running"
        assert sweeps.run_entry(plan.folder, 0).state == "running"  # not started twice
        stop.set()

    other = threading.Thread(target=stop_soon)
    other.start()
    ended = sweeps.run_entry(plan.folder, 0, stop=stop)
    other.join()
    assert ended.state == "waiting"


WAITER = """
import sys
from circuitspex import sweeps
from circuitspex.sweeps import running
running._command = lambda *_: [sys.executable, "-c", "import time; time.sleep(600)"]
sweeps.run_entry(sys.argv[1], 0)
"""


def wait_for_both_processes(plan: sweeps.Manifest) -> list[Any]:
    """Return the processes of run 0, who waits and what runs, once both are known."""
    running_file = plan.run_folder(0) / state.RUNNING
    deadline = time.monotonic() + 120
    processes: list[Any] = []
    while len(processes) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
        if running_file.exists():
            processes = json.loads(running_file.read_text())["processes"]
    return processes


@pytest.mark.slow
def test_a_run_whose_waiter_was_killed_is_running_until_it_ends(plan: sweeps.Manifest) -> None:
    waiter = subprocess.Popen([sys.executable, "-c", WAITER, str(plan.folder)])
    processes = wait_for_both_processes(plan)
    deadline = time.monotonic() + 120
    waiter.kill()
    waiter.wait()
    assert state_of(plan)[0] == "running"
    os.kill(processes[1][0], signal.SIGKILL)
    while state_of(plan)[0] == "running" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert state_of(plan) == ("waiting", "interrupted")


COMMAND_LINE = """
import sys
from circuitspex.cli import app
from circuitspex.sweeps import running
running._command = lambda *_: [sys.executable, "-c", "import time; time.sleep(600)"]
app(["sweep", "run", sys.argv[1]])
"""


@pytest.mark.slow
def test_a_request_to_stop_stops_the_runs_too(plan: sweeps.Manifest) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND_LINE, str(plan.folder)],
        stderr=subprocess.PIPE,
        text=True,
        # As for what a batch script starts in the background.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    processes = wait_for_both_processes(plan)
    process.terminate()
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "Go on with: circuitspex sweep run" in said
    assert not psutil.pid_exists(int(processes[1][0]))
    assert [s.state for s in sweeps.sweep_states(plan)] == ["waiting"] * 2


# A real sweep on the toy


SECRETS = {
    "WANDB_API_KEY": "5ec2e7" * 6 + "abcd",
    "HF_TOKEN": "hf_5ec2e7",
    "MY_PASSWORD": "pa5sw0rd",
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> sweeps.Manifest:
    """Run three runs of the toy, one of which cannot succeed, logged offline."""
    folder = tmp_path_factory.mktemp("sweep")
    values = {name: {"value": value} for name, value in SMALL.items()}
    values |= {"keep_rate": {"value": 0.6}, "budget": {"values": [64, 80]}}
    values["units"] = {"values": ["heads@1", "heads@7"]}
    document = sweep(values, name="<b>toy</b>", project="toys", run_cap=3)
    plan = sweeps.plan_sweep(write(folder, document), folder / "s")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SECRETS.items():
            patch.setenv(name, value)
        patch.setenv("WANDB_SILENT", "true")
        sweeps.run_sweep(plan.folder, jobs=2)
    return plan


@pytest.mark.slow
def test_runs_end_done_or_with_their_reason(finished: sweeps.Manifest) -> None:
    ends = {finished.settings(s.index).units: s for s in sweeps.sweep_states(finished)}
    assert ends["heads@1"].state == "done"
    assert ends["heads@7"].state == "failed"
    assert ends["heads@7"].note.startswith("error: UnitError: ")
    assert "layers 0..1" in ends["heads@7"].note


@pytest.mark.slow
def test_offline_runs_carry_id_group_and_settings(finished: sweeps.Manifest) -> None:
    run = finished.run_folder(0)
    [log] = (run / "wandb").glob("offline-run-*")
    assert log.name.endswith(f"-{run.name}")  # the hash of the settings is the id on W&B
    [record] = log.glob("*.wandb")
    raw = record.read_bytes()
    for text in (
        b"<b>toy</b>",
        b"toys",
        b"keep_rate",
        b"heads@1",
        finished.settings(0).run_name.encode(),
    ):
        assert text in raw


@pytest.mark.slow
def test_no_environment_variable_is_in_any_file(finished: sweeps.Manifest) -> None:
    files = [path for path in finished.folder.rglob("*") if path.is_file()]
    assert len(files) > 30
    for path in files:
        raw = path.read_bytes()
        assert [name for name, value in SECRETS.items() if value.encode() in raw] == [], path


@pytest.mark.slow
def test_the_check_for_secrets_would_notice(finished: sweeps.Manifest) -> None:
    raw = b"".join(p.read_bytes() for p in finished.folder.rglob("*.wandb"))
    assert b"circuitspex" in raw  # what is logged is there to be found


@pytest.mark.slow
def test_results_are_collected(finished: sweeps.Manifest) -> None:
    found = sweeps.collect(finished.folder)
    table = pd.read_parquet(finished.folder / "results.parquet")
    assert list(table["state"]) == list(found.table["state"])
    done = table[table["state"] == "done"]
    assert len(done) == 2
    for column in ("fit/n_evaluations", "eval/faithfulness", "interactions/n_verified", "seconds"):
        assert not any(value != value for value in done[column].tolist()), column
    assert set(done["budget"]) == {64, 80}
    assert list(pd.read_csv(finished.folder / "results.csv").columns) == list(table.columns)
    page = found.page.read_text()
    assert "&lt;b&gt;toy&lt;/b&gt;" in page
    assert "<b>toy" not in page
    assert "UnitError" in page
    # Of four heads every mask was evaluated, so none was left to predict.
    assert "No run has held-out R², so faithfulness stands in." in page


@pytest.mark.slow
def test_the_same_run_again_evaluates_nothing(finished: sweeps.Manifest) -> None:
    run = finished.run_folder(0)
    before = (run / "interactions.json").read_bytes()
    (run / SUMMARY).unlink()  # as if it had been killed just before its end
    assert sweeps.run_entry(finished.folder, 0, wandb="disabled").state == "done"
    assert json.loads((run / SUMMARY).read_text())["n_evaluated"] == 0
    assert (run / "interactions.json").read_bytes() == before


@pytest.mark.slow
def test_logs_are_handed_to_wandb(finished: sweeps.Manifest) -> None:
    assert sweeps.sync(finished.folder, "--dry-run") >= 2
    with pytest.raises(SweepError, match=r"wandb sync failed: .*Is this machine online"):
        sweeps.sync(finished.folder, "--no-such-option")


# Online: W&B's own agent makes the command


CHOSEN = {**SMALL, "keep_rate": 0.6, "budget": 64, "max_order": None}


def start_as_agent(
    folder: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> dict[str, Any]:
    """Have W&B's agent start a run, and return what it would have started."""
    from wandb import wandb_agent

    monkeypatch.chdir(folder)
    monkeypatch.setenv("WANDB_DIR", str(folder))
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep123")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):  # which the agent sets for good
        monkeypatch.setenv(name, "")
    started: dict[str, Any] = {}
    monkeypatch.setattr(
        wandb_agent, "AgentProcess", lambda **options: started.update(options) or Started()
    )
    agent = object.__new__(wandb_agent.Agent)
    vars(agent).update(
        _sweep_command=["${env}", sys.executable, "-m", "circuitspex.cli", "discover", *words],
        **{"_in_jupyter": False, "_function": None, "_run_processes": {}},
        _forward_signals=False,
    )
    args = {name: {"value": value} for name, value in CHOSEN.items()}
    agent._command_run({"run_id": "run123", "args": args, "program": "circuitspex"})
    monkeypatch.setenv(
        "WANDB_RUN_ID", "run123"
    )  # which the agent sets, and is undone with the rest
    return started


class Started:
    """A process that the agent believes it started."""


@pytest.mark.slow
def test_an_agent_of_wandb_runs_our_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = start_as_agent(tmp_path, monkeypatch, ["${args}"])
    assert "--keep_rate=0.6" in started["command"]
    done = subprocess.run(started["command"], env=started["env"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    made = Settings.from_mapping(CHOSEN)
    assert Settings.load(tmp_path / "runs" / made.run_name / "settings.yaml") == made
    # The agent named the run, so W&B's server knows whose result it is.
    assert list(tmp_path.rglob("offline-run-*-run123"))
    assert "Ignor" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [["${args_no_hyphens}"], ["${args_no_equals}"], ["--config", "${args_json_file}"]],
    ids=str,
)
def test_other_ways_of_wandb_to_pass_parameters_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    def stop(settings: Settings, folder: Path, **_: Any) -> None:
        raise SweepError(f"would run {settings.run_id}")

    command = start_as_agent(tmp_path, monkeypatch, words)["command"]
    monkeypatch.setattr("circuitspex.cli.discover.discover", stop)
    after = command[command.index("discover") :]
    said = CliRunner().invoke(app, after, env={"COLUMNS": "200"}).output
    assert f"would run {Settings.from_mapping(CHOSEN).run_id}" in said


# The command line


def invoke(*words: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["sweep", *words], env={"COLUMNS": "160"})
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def test_the_command_line_plans_runs_and_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    path, folder = write(tmp_path, sweep({"seed": {"values": [0, 1, 2, 2]}})), str(tmp_path / "s")
    text = invoke("plan", str(path), "--out", folder)
    assert "1 runs with the settings of another were left out" in text
    assert f"3 runs planned in {folder}" in text
    run_instead(monkeypatch, "sys.exit('error: E: <no> [luck]')")
    assert "run 1 failed error: E: <no> [luck]" in invoke("run", folder, "--only", "1", code=1)
    run_instead(monkeypatch, FINISH)
    assert "2 done, 1 failed" in invoke("run", folder, "--jobs", "2")
    assert "error: E: <no> [luck] (exit code 1)" in invoke("status", folder)
    found = json.loads(invoke("status", folder, "--json"))
    assert [run["state"] for run in found["runs"]] == ["done", "failed", "done"]
    assert found["runs"][1]["settings"]["seed"] == 1
    assert "2 of 3 runs in" in invoke("collect", folder)
    assert "3 done" in invoke("run", folder, "--retry-failed")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "{0}", "--only", "a"], "--only takes places and ranges"),
        (["run", "{0}", "--only", "2-1"], "the sweep has runs 0 to 1"),
        (["run", "{0}", "--only", "0,9"], "the sweep has runs 0 to 1"),
        (["status", "{0}/nowhere"], "must be a folder that circuitspex sweep plan wrote"),
        (["plan", "{0}/none.yaml"], "cannot be read"),
    ],
)
def test_the_command_line_says_what_is_wrong(
    plan: sweeps.Manifest, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert message in invoke(*(word.format(plan.folder) for word in words), code=2)


def test_ranges() -> None:
    assert read_ranges("3,5-7,5", 8) == [3, 5, 6, 7]
