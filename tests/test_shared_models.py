"""The check of shared models can fail: after the test that changes one, and at the end."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from shared_models import SharedModels
from tiny_models import make_tiny

HERE = Path(__file__).parent


def _add_hook(model: Any) -> None:
    model.original_model.register_forward_hook(lambda *_: None)


def _move_a_weight(model: Any) -> None:
    with torch.no_grad():
        next(model.original_model.parameters()).view(-1)[0] += 1e-3


def _ask_for_no_gradient(model: Any) -> None:
    next(model.original_model.parameters()).requires_grad_(False)


CHANGES = {
    "torch hooks": _add_hook,
    "training": lambda model: model.original_model.train(),
    "parameters": _move_a_weight,
    "gradients": _ask_for_no_gradient,
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_of_a_model_that_a_test_asked_for_is_found(what: str) -> None:
    shared = SharedModels()
    CHANGES[what](shared.get("a", lambda: make_tiny("gpt2")))
    with pytest.raises(AssertionError, match=f"a test changed the shared model a: .*{what}"):
        shared.check_used()


def test_a_model_is_made_once_and_again_after_a_change() -> None:
    shared, made = SharedModels(), []

    def make() -> Any:
        made.append(make_tiny("gpt2"))
        return made[-1]

    assert shared.get("a", make) is shared.get("a", make) is made[0]
    shared.check_used()
    shared.check_all()
    _move_a_weight(shared.get("a", make))
    with pytest.raises(AssertionError, match="parameters"):
        shared.check_used()
    assert shared.get("a", make) is made[1]
    shared.check_all()


def test_a_change_by_a_test_that_did_not_ask_is_found_at_the_end() -> None:
    shared = SharedModels()
    held = shared.get("a", lambda: make_tiny("gpt2"))
    shared.check_used()
    _move_a_weight(held)
    shared.get("b", lambda: make_tiny("gpt2"))
    shared.check_used()  # the last test asked for another model only
    with pytest.raises(AssertionError, match="some test changed the shared model a: parameters"):
        shared.check_all()


HOLD_AND_CHANGE = """
import pytest, torch
from conftest import shared_tiny

@pytest.fixture(scope="module")
def held():
    return shared_tiny("gpt2")

def test_asks(held):
    assert held.cfg.n_layers == 2

def test_changes_at_once():
    {now}

def test_changes_what_it_was_given(held):
    {later}
"""
CHANGE = "next({}.original_model.parameters()).requires_grad_(False)"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("now", "later", "said"),
    [
        (CHANGE.format("shared_tiny('gpt2')"), "pass", "a test changed the shared model gpt2"),
        ("pass", CHANGE.format("held"), "some test changed the shared model gpt2"),
    ],
    ids=["by a test that asks", "by a test that was given it"],
)
def test_a_changed_model_fails_the_run_on_a_worker_too(
    now: str, later: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / "test_it.py").write_text(HOLD_AND_CHANGE.format(now=now, later=later))
    (tmp_path / "pytest.ini").touch()
    command = [sys.executable, "-m", "pytest", "-p", "conftest", "-q", "-n", "1", str(tmp_path)]
    path = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 1, done.stdout
    assert said in done.stdout
    assert "3 passed, 1 error" in done.stdout
