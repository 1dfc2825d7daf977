"""Runs and stores that are hurt, each fault a few times; ``table.py`` is the long form."""

import random
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from bytewise import damage_every_byte
from strangers import fuzz_results, fuzz_shards
from trials import TRIALS, World, finish, small_disk
from writers import lose_nothing

pytestmark = pytest.mark.slow

TIMES = {"kill -9 at a random moment": 6}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World.make(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize("fault", TRIALS)
def test_a_run_survives(fault: str, world: World, tmp_path: Path) -> None:
    if fault.startswith("disk full") and not may_mount(tmp_path / "disk"):
        pytest.skip("needs the right to mount; test_store.py fills disks without")
    for seed in range(TIMES.get(fault, 2)):
        assert TRIALS[fault](world, random.Random(f"{fault} {seed}")) == []


def may_mount(disk: Path) -> bool:
    try:
        with small_disk(disk, 64):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


@pytest.mark.parametrize("seed", range(2))
def test_four_writers_that_merge_and_are_killed_lose_nothing(seed: int, tmp_path: Path) -> None:
    assert lose_nothing(tmp_path / "writers", random.Random(seed)) == []


@pytest.mark.parametrize("cut", [True, False])
def test_damage_at_any_byte_is_found(cut: bool, tmp_path: Path) -> None:
    assert damage_every_byte(tmp_path, cut=cut, step=37) == []


@pytest.mark.parametrize("seed", range(40))
def test_results_of_strangers_are_read_or_refused(seed: int, world: World, tmp_path: Path) -> None:
    assert fuzz_results(world.whole.folder, tmp_path / "run", random.Random(seed)) == []


@pytest.mark.parametrize("seed", range(40))
def test_shards_of_strangers_are_read_or_set_aside(seed: int, tmp_path: Path) -> None:
    assert fuzz_shards(tmp_path / "store", random.Random(seed)) == []


# The complaints can be made


def test_a_run_that_is_another_is_complained_about(world: World) -> None:
    job = world.job(random.Random("another"))
    assert finish(replace(job, options={"seed": 1})) == 0
    complaints = world.complaints(job)
    assert "interactions.json differs" in complaints
    assert "other rows were evaluated" in complaints


def test_evaluations_made_twice_are_complained_about(world: World) -> None:
    job = world.job(random.Random("twice"))
    assert finish(job) == 0
    (job.folder / "evaluations").rename(job.folder / "elsewhere")
    assert finish(job) == 0
    (complaint,) = world.complaints(job)
    assert complaint.endswith("evaluations were made twice")


def test_a_run_without_results_is_complained_about(world: World) -> None:
    job = world.job(random.Random("without"))
    assert finish(replace(job, options={"model": "no-such-model"})) == 2
    assert "circuit.json is missing" in world.complaints(job)
