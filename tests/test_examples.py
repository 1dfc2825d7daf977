"""The files people copy: they parse, and every command in them is one that there is."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import typer
import yaml

from circuitspex._shared import read_mapping
from circuitspex.cli import app
from circuitspex.cluster import Resources
from circuitspex.runs import setting_name
from circuitspex.sweeps import plan_sweep

EXAMPLES = Path(__file__).parent.parent / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.sbatch"))
TEXTS = sorted(file for file in EXAMPLES.iterdir() if file.is_file())
COMMAND = re.compile(r"(?<![/\w.-])circuitspex +(discover|sweep|show|units)\b([^`#\n]*)")


def commands(text: str) -> list[str]:
    return [match.group(0) for match in COMMAND.finditer(text.replace("\\\n", " "))]


def check_command(line: str) -> None:
    """Check that the command line of the package has this command and these options."""
    words = [word for word in shlex.split(line)[1:] if word not in ("&", "…")]
    command = typer.main.get_command(app)
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]  # type: ignore[attr-defined]
    options = {name for parameter in command.params for name in parameter.opts}
    given = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert given <= options, f"{line}: there is no {given - options}"


@pytest.mark.parametrize("file", TEXTS, ids=lambda file: file.name)
def test_every_command_is_one_that_there_is(file):
    for line in commands(file.read_text()):
        check_command(line)


def test_there_are_commands_to_check():
    found = {file.name for file in TEXTS if commands(file.read_text())}
    assert {"README.md", "resources.yaml", "skypilot.yaml", "slurm_array.sbatch"} <= found


def test_the_check_of_commands_can_fail():
    with pytest.raises(AssertionError, match=r"there is no \{'--bugdet'\}"):
        check_command("circuitspex discover --bugdet 3")


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: file.name)
def test_scripts_are_shell(file):
    assert subprocess.run(["bash", "-n", file], capture_output=True).stderr == b""


def test_scripts_that_are_no_shell_are_found_out(tmp_path):
    (tmp_path / "a.sbatch").write_text("if then\n")
    assert subprocess.run(["bash", "-n", tmp_path / "a.sbatch"], capture_output=True).stderr


def test_the_sweep_can_be_planned(tmp_path):
    assert len(plan_sweep(EXAMPLES / "sweep.yaml", tmp_path / "sweep")) == 12


def test_the_resources_can_be_read():
    assert Resources.from_mapping(read_mapping(EXAMPLES / "resources.yaml")).max_parallel == 16


def test_the_sky_file_runs_settings_that_there_are():
    task = yaml.safe_load((EXAMPLES / "skypilot.yaml").read_text())
    assert set(task) == {"name", "resources", "workdir", "file_mounts", "envs", "setup", "run"}
    assert {setting_name(name.lower()) for name in task["envs"]} == {"model", "budget"}
    script = f"{task['setup']}\n{task['run']}"
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0


def test_every_file_is_described():
    listed = set(re.findall(r"\]\((\S+?)\)", (EXAMPLES / "README.md").read_text()))
    assert listed == {file.name for file in TEXTS} - {"README.md"}
