"""Trials of one fault each: a run is hurt, started again if need be, and compared with a whole one.

A trial returns what went wrong, in words; nothing if the run survived.
"""

import random
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from job import BATCH, Job, start

from circuitspex.algebra import Interactions

RESULTS = (
    *("spec.json", "interactions.json", "verified_interactions.json", "circuit.json"),
    "verification.json",
)
GRACE = 30.0


@dataclass(frozen=True)
class World:
    """A run that nothing happened to, and room for others."""

    folder: Path
    whole: Job
    seconds: float
    """That it took."""

    @classmethod
    def make(cls, folder: Path) -> "World":
        """Run it, and once more for the time when nothing is loaded for the first time."""
        for name in ("first", "whole"):
            started = time.monotonic()
            job = Job(folder / name / "disk" / "run")
            assert finish(job) == 0, job.said.read_text()
        return cls(folder, job, time.monotonic() - started)

    def job(self, rng: random.Random, fault: str = "") -> Job:
        """A job with a folder of its own."""
        seed = rng.getrandbits(48)
        return Job(self.folder / f"{seed:012x}" / "disk" / "run", fault, seed)

    def complaints(self, job: Job, *, bits: bool = True, again: int = BATCH) -> list[str]:
        """Compare a run with the one that nothing happened to.

        Args:
            job: What was run, as often as it took.
            bits: Whether results must agree bit for bit.
            again: How many evaluations may have been made twice.

        Returns:
            What is wrong.
        """
        found = []
        for name in RESULTS:
            path = job.folder / name
            if not path.is_file():
                found.append(f"{name} is missing")
            elif bits and path.read_bytes() != (self.whole.folder / name).read_bytes():
                found.append(f"{name} differs")
        if not found and not bits:
            found += _differences(self.whole.folder, job.folder)
        rows, whole = (Counter(j.evaluated.read_text().split()) for j in (job, self.whole))
        twice = sum((rows - whole).values())
        if twice > again:
            found.append(f"{twice} evaluations were made twice")
        if whole.keys() != rows.keys():
            found.append("other rows were evaluated")
        return found


def _differences(one: Path, other: Path) -> list[str]:
    a, b = (Interactions.load(folder / "interactions.json") for folder in (one, other))
    if a.support != b.support:
        return ["the support differs"]
    gap = float((a.coefficients - b.coefficients).abs().max())
    return [f"coefficients differ by {gap:.1e}"] if gap > 1e-5 else []


def finish(job: Job) -> int:
    """Run a job to its end; its exit code."""
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    process = start(job)
    process.join(120)
    if process.exitcode is None:
        process.kill()
        process.join()
        return -99
    return process.exitcode


def calm(job: Job) -> Job:
    """The same command again, with nothing happening to it."""
    return replace(job, fault="", environment={})


def resume(world: World, job: Job, again: int = BATCH) -> list[str]:
    """Finish an interrupted job, and compare."""
    code = finish(calm(job))
    if code != 0:
        return [f"the second run ended with {code}: {last_words(job)}"]
    return world.complaints(job, again=again)


def last_words(job: Job) -> str:
    """What a job said last, however wide its terminal was."""
    return " ".join(job.said.read_text(errors="replace").split())[-400:]


def kill_9(world: World, rng: random.Random) -> list[str]:
    """Killed at a random moment, and again while it resumes in half of the trials."""
    job = world.job(rng)
    n_kills = rng.choice([1, 2])
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(n_kills):
        process = start(job)
        time.sleep(rng.uniform(0, world.seconds))
        process.kill()
        process.join()
    return resume(world, job, again=n_kills * BATCH)


def disk_full(world: World, rng: random.Random) -> list[str]:
    """A disk that is full after a random number of bytes, then larger, and the same command."""
    job = world.job(rng)
    kilobytes = int(10 ** rng.uniform(0.7, 3.7))  # the page alone takes 5 MB
    with small_disk(job.folder.parent, kilobytes):
        code = finish(job)
        if code != 2 or "space" not in last_words(job):
            return [f"a disk of {kilobytes} kB ended the run with {code}: {last_words(job)}"]
        enlarge(job.folder.parent)
        return resume(world, job)


@contextmanager
def small_disk(disk: Path, kilobytes: int) -> Iterator[None]:
    """Mount a disk of that size; needs the right to."""
    disk.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(disk)]
    subprocess.run(mount, check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def enlarge(disk: Path) -> None:
    """Make room on it."""
    subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)


def damage(world: World, rng: random.Random) -> list[str]:
    """A shard of a killed run cut short or with a bit flipped, anywhere, and the same command."""
    job = world.job(rng, "slow")
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    process = start(job)
    shards: list[Path] = []
    while process.is_alive() and len(shards) < 3:
        time.sleep(0.01)
        shards = sorted(job.folder.glob("evaluations/*.parquet"))
    process.kill()
    process.join()
    shard = rng.choice(shards)
    data, place = bytearray(shard.read_bytes()), rng.randrange(shard.stat().st_size)
    if rng.random() < 0.5:
        shard.write_bytes(data[:place])
    else:
        data[place] ^= 1 << rng.randrange(8)
        shard.write_bytes(data)
    found = resume(world, job, again=2 * BATCH)
    if f"{shard.name} cannot be used" not in job.said.read_text():
        found.append("the damaged shard was not named")
    if not shard.with_name(f"{shard.name}.aside").exists():
        found.append("the damaged shard was not set aside")
    return found


def two_at_once(world: World, rng: random.Random) -> list[str]:
    """The same run in the same folder by two processes, one of them a little later."""
    job = world.job(rng)
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    processes = [start(job)]
    time.sleep(rng.uniform(0, 0.3 * world.seconds))
    processes.append(start(job))
    found = []
    for process in processes:
        process.join(120)
        if process.exitcode != 0:
            found.append(f"one ended with {process.exitcode}: {last_words(job)}")
    return found + world.complaints(job, again=10**6)


def sigterm(world: World, rng: random.Random) -> list[str]:
    """Asked to end at a random moment of a run, with thirty seconds of grace."""
    job = world.job(rng, "slow")
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    process = start(job)
    evaluations = job.folder / "evaluations"
    while process.is_alive() and not evaluations.exists():
        time.sleep(0.01)
    time.sleep(rng.uniform(0, 1.5))
    process.terminate()
    process.join(GRACE)
    if process.exitcode not in (0, 143):
        process.kill()
        return [f"it ended with {process.exitcode}: {last_words(job)}"]
    told = process.exitcode == 0 or "run the same command again" in last_words(job)
    found = [] if told else ["no word"]
    return found + resume(world, job)


def out_of_memory(world: World, rng: random.Random) -> list[str]:
    """Memory runs out at two random passes; halves are other batches, so bits may differ."""
    job = world.job(rng, "out of memory")
    code = finish(job)
    if code != 0 or "no memory this time" not in job.said.read_text():
        return [f"it ended with {code}: {last_words(job)}"]
    return world.complaints(job, bits=False, again=0)


def clock(world: World, rng: random.Random) -> list[str]:
    """A clock that only goes backwards and files of 1970 or 2096; killed, and resumed in it."""
    job = world.job(rng, "clock")
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    process = start(job)
    time.sleep(rng.uniform(0, world.seconds))
    process.kill()
    process.join()
    code = finish(job)
    return world.complaints(job) if code == 0 else [f"it ended with {code}: {last_words(job)}"]


def broken_wandb(world: World, rng: random.Random) -> list[str]:
    """W&B throws at a random one of all calls that a run makes of it."""
    job = replace(world.job(rng, "wandb"), options={"wandb": "online"})
    code = finish(job)
    if code != 0 or "Weights & Biases failed" not in job.said.read_text():
        return [f"it ended with {code}: {last_words(job)}"]
    return world.complaints(job, again=0)


TRIALS: dict[str, Callable[[World, random.Random], list[str]]] = {
    "kill -9 at a random moment": kill_9,
    "disk full at a random byte": disk_full,
    "a shard cut short or a bit flipped": damage,
    "two processes in one folder": two_at_once,
    "SIGTERM at a random moment": sigterm,
    "out of memory at random passes": out_of_memory,
    "a clock that goes backwards": clock,
    "W&B throwing at a random call": broken_wandb,
}
