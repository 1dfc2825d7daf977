"""The command line, run as a user runs it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from circuitspex.cli import app
from circuitspex.cli.discover import default_folder
from circuitspex.runs import Settings

RUNNER = CliRunner()
SMALL = ["--n-prompts", "2", "--units", "heads@1", "--budget", "32"]


def run(*arguments: str) -> str:
    result = RUNNER.invoke(app, list(arguments), catch_exceptions=False, env={"COLUMNS": "160"})
    assert result.exit_code == 0, result.output
    return result.output


def fail(*arguments: str) -> str:
    result = RUNNER.invoke(app, list(arguments), catch_exceptions=False, env={"COLUMNS": "160"})
    assert result.exit_code == 2, result.output
    return " ".join(result.output.split())


def test_discover_writes_a_whole_run_and_show_reads_it(tmp_path: Path) -> None:
    out = tmp_path / "run"
    text = run("discover", *SMALL, "--out", str(out))
    names = {path.name for path in out.iterdir()}
    assert names == {
        "settings.yaml",
        "summary.json",
        "spec.json",
        "evaluations",
        "interactions.json",
        "verified_interactions.json",
        "circuit.json",
        "verification.json",
        "report.html",
    }
    assert "L1H0 + L1H1" in text
    assert "32 evaluations run" in text
    assert "L1H0 + L1H1" in run("show", str(out))
    settings = json.loads((out / "spec.json").read_text())["asked"]
    assert settings["units"] == "heads@1"
    assert settings["decoder"] == "exact"


def test_the_same_command_again_evaluates_nothing(tmp_path: Path) -> None:
    command = ["discover", *SMALL, "--out", str(tmp_path)]
    run(*command)
    first = (tmp_path / "interactions.json").read_bytes()
    # 16 masks and the intact model for the warning; the verification asks for all masks again.
    assert "0 evaluations run, 66 replayed" in run(*command)
    assert (tmp_path / "interactions.json").read_bytes() == first


def test_what_was_measured_is_shown_beside_the_estimates(tmp_path: Path) -> None:
    out = str(tmp_path)
    exact = ["--units", "heads@1", "--budget", "256", "--n-prompts", "16", "--out", out]
    words = run("discover", *exact).split()
    assert {"measured", "verdict", "estimate", "verified"} <= set(words)
    at = next(i for i in range(len(words)) if words[i : i + 2] == ["verified", "│"])
    assert words[at - 4 : at - 1] == words[at + 2 : at + 5]  # the decoder is exact too
    assert words[at - 3] == "±"
    text = " ".join(words)
    assert "Measured around the intact model, on 16 prompts of the discovery" in text
    assert "verdict" in run("show", out)


def test_verifying_can_be_left_out(tmp_path: Path) -> None:
    text = run("discover", *SMALL, "--verify", "0", "--out", str(tmp_path))
    assert "verdict" not in text
    assert "Fourier" in text


def test_another_spec_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    run("discover", *SMALL, "--out", str(tmp_path))
    text = fail("discover", *SMALL, "--out", str(tmp_path), "--ablation", "mean")
    assert "StoreMismatchError" in text
    assert "ablation" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--task", "inductoin"], "did you mean 'induction'"),
        (["--units", "haeds"], "names no units"),
        (["--units", "neurons"], "no MLPs"),
        (["--units", "heads@7"], "layers 0..1"),
        (["--model", "./nowhere.gguf"], "there is no file"),
        (["--decoder", "lassso"], "'lasso'"),
        (["--decoder", "exact", "--budget", "100"], "4096"),
        (["--metric", "accuracy"], "no metric 'accuracy'"),
        (["--ablation", "noise"], "one of zero, mean, resample"),
        (["--prompts-per-mask", "some"], "'all' or 'auto'; got 'some'"),
        (["--keep-rate", "1.5"], "keep_rate"),
        (["--dtype", "float12"], "float12"),
    ],
)
def test_bad_options_give_one_clear_line(arguments: list[str], words: str, tmp_path: Path) -> None:
    assert words in fail("discover", *arguments, "--out", str(tmp_path))


def test_finding_no_interaction_is_said_in_words(tmp_path: Path) -> None:
    order_one = ["--decoder", "lasso", "--max-order", "1", "--prompts-per-mask", "all"]
    text = run("discover", *SMALL, *order_one, "--keep-rate", "0.6", "--out", str(tmp_path))
    assert "That is what these evaluations can tell, not that there is none" in " ".join(
        text.split()
    )


def test_show_refuses_a_folder_without_a_run(tmp_path: Path) -> None:
    assert "holds no finished run" in fail("show", str(tmp_path))


def test_units_lists_hooks() -> None:
    text = run("units", "--units", "heads@1+attention@0")
    assert "blocks.1.attn.hook_z" in text
    assert "blocks.0.hook_attn_out" in text
    assert "5 units" in text


def test_folder_is_named_after_the_settings() -> None:
    assert default_folder(Settings()) == default_folder(Settings())
    assert default_folder(Settings()) != default_folder(Settings(seed=1))
    assert default_folder(Settings(model="/a/b/c.gguf")).name.startswith("c-induction-")


def test_a_file_of_settings_is_run_and_options_override_it(tmp_path: Path) -> None:
    config, out = tmp_path / "run.yaml", tmp_path / "run"
    config.write_text("n-prompts: 4\nunits: heads@1\nbudget: 64\nkeep_rate: 0.6\n")
    run(
        "discover",
        "n_prompts=3",
        "--config",
        str(config),
        "--n_prompts=2",
        "--budget=32",
        "--keep-rate=None",
        "--out",
        str(out),
    )
    made = Settings(n_prompts=2, units="heads@1", budget=32)
    assert Settings.load(out / "settings.yaml") == made
    assert json.loads((out / "summary.json").read_text())["run_id"] == made.run_id


def test_any_setting_can_be_given_by_name_and_once(tmp_path: Path) -> None:
    lasso = ["discover", *SMALL, "--decoder", "lasso", "--keep-rate", "0.6", "--out", str(tmp_path)]
    run(*lasso, "--option", "max-pairs=7", "--option", "n_folds=3")
    assert Settings.load(tmp_path / "settings.yaml").options == {"max_pairs": 7, "n_folds": 3}
    for twice in (["--option", "n_folds=4"], ["--n-folds", "3"]):
        text = fail(*lasso, "--option", "n-folds=3", *twice)
        assert "the setting 'n_folds' is given twice" in text
    assert "did you mean 'max_pairs'" in fail(*lasso, "--option", "max_pair=7")
    assert "'n_folds' is no assignment" in fail(*lasso, "--option", "n_folds")


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, as a shell does."""
    words = [sys.executable, "-m", "circuitspex.cli", "discover", *SMALL, *arguments]
    environment = {**os.environ, "COLUMNS": "200"}
    return subprocess.run(words, capture_output=True, text=True, env=environment)


@pytest.mark.slow
def test_an_option_of_a_decoder_reaches_the_result(tmp_path: Path) -> None:
    lasso = ["--decoder", "lasso", "--keep-rate", "0.6", "--out", str(tmp_path)]
    done = call(*lasso, "--n-folds", "3")
    assert done.returncode == 0, done.stderr
    options = json.loads((tmp_path / "spec.json").read_text())["discovery"]["options"]
    assert (options["n_folds"], options["keep_rate"]) == (3, 0.6)


@pytest.mark.slow
def test_a_bad_option_of_a_decoder_is_one_line(tmp_path: Path) -> None:
    done = call("--decoder", "lasso", "--n-folds", "1", "--out", str(tmp_path / "run"))
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert line.startswith("error: SettingsError: decoder 'lasso': n_folds must be a whole number")
    assert "got 1." in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [("bugdet: 3", "did you mean 'budget'"), ("model: !!python/name:os.system", "no YAML")],
)
def test_a_bad_file_of_settings_is_named(text: str, words: str, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(text)
    assert words in fail("discover", "--config", str(config))
    assert "is no assignment" in fail("discover", "budget")


def test_help_shows_the_defaults_there_are() -> None:
    words = " ".join(run("discover", "--help").replace("│", " ").split())
    for name, value in Settings().as_dict().items():
        if value is not None:
            assert f"--{name.replace('_', '-')} " in words
            assert f"[default: {value}]" in words or f"{value}: all for exact, else 1" in words


def test_help_names_every_command_and_option() -> None:
    assert {"discover", "show", "units", "sweep"} <= set(run("--help").split())
    text = run("discover", "--help")
    for option in ("--model", "--task", "--units", "--decoder", "--budget", "--verify", "--out"):
        assert option in text


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_run_goes_on_where_it_was(tmp_path: Path, stop: signal.Signals) -> None:
    command = [
        *(sys.executable, "-m", "circuitspex.cli", "discover", "--out", str(tmp_path)),
        *("--decoder", "exact", "--batch-size", "8"),
    ]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # What a shell starts in the background ignores interrupts, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    shards = tmp_path / "evaluations"
    deadline = time.monotonic() + 120
    while len(list(shards.glob("*.parquet"))) < 20 and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    process.send_signal(stop)
    _, errors = process.communicate(timeout=120)
    if stop is signal.SIGINT:
        assert process.returncode == 130
        assert "run the same command again to go on" in " ".join(errors.split())
    else:
        assert process.returncode == -signal.SIGKILL
    text = run("discover", "--out", str(tmp_path), "--decoder", "exact")
    evaluated = int(text.split(" evaluations run")[0].split()[-1].replace(",", ""))
    # At least the 20 finished batches of 8 rows were kept.
    assert 0 < evaluated <= 4096 - 20 * 8 + 16
