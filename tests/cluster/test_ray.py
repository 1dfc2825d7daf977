"""One run on several workers: the bits of a run without, whoever dies, and nothing left behind."""

import contextlib
import itertools
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from conftest import shared_tiny
from light_actors import LightActor
from slow_truth import random_masks, random_tokens

import circuitspex as cs
from circuitspex._shared import SampledDifferentiableSetFunction
from circuitspex.ablation import Pass, Rows
from circuitspex.cluster.pool import Parcel, WorkerPool
from circuitspex.cluster.session import _own_defaults, _signals_kept
from circuitspex.cluster.worker import Chunk
from circuitspex.decoders import DECODERS
from circuitspex.errors import (
    HookError,
    MissingExtraError,
    ModelError,
    NonFiniteError,
    TaskError,
    WorkerError,
    WorkerWarning,
)
from circuitspex.evaluation import Workers
from circuitspex.evaluation.store import MemoryStore
from circuitspex.runs import Settings, discover
from circuitspex.tasks import logit_difference

pytestmark = pytest.mark.slow

HERE = Path(__file__).parents[1]
LENGTHS = (5, 7, 5)
BATCH = 16


@pytest.fixture(autouse=True)
def _as_many_threads_here_as_in_a_worker():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # other numbers of threads add up in another order
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def cluster():
    """A cluster of the tests' own, which workers must leave as it is."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        folders = [Path(__file__).parent, HERE, HERE.parent]  # workers import this file too
        path = os.pathsep.join([*map(str, folders), os.environ.get("PYTHONPATH", "")])
        patch.setenv("PYTHONPATH", path)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        with _signals_kept():
            ray.init(
                "local",
                num_cpus=8,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        yield ray
        ray.shutdown()


def make_llama() -> Any:
    from tiny_models import make_tiny

    return make_tiny("llama-grouped")


@pytest.fixture(scope="module")
def workers(cluster):
    """Two workers per model, shared by the tests that ask for them."""
    entered: dict[str, Any] = {}

    def get(name: str) -> Any:
        if name not in entered:
            load = make_llama if name == "llama-grouped" else name
            entered[name] = cs.cluster.ray_workers(load, 2).__enter__()
        return entered[name]

    yield get
    for each in entered.values():
        each.__exit__()


@pytest.fixture
def llama() -> Any:
    return shared_tiny("llama-grouped")


def make_task(model: Any) -> Any:
    """Prompts of two lengths, with counterfactuals and held-out prompts."""

    def tokens(seed: int) -> list[Any]:
        return [random_tokens(model, 1, n, seed=i + seed)[0] for i, n in enumerate(LENGTHS)]

    wrong = [[8], [9, 10], [11]]
    held_out = cs.Task.from_prompts(model, tokens(90), [3, 4, 5], wrong, tokens(70))
    return cs.Task.from_prompts(model, tokens(0), [3, 4, 5], wrong, tokens(50), held_out=held_out)


def make_units(model: Any) -> Any:
    return cs.heads(model) + cs.mlps(model)


def wrap(model: Any, workers: Any = None, **options: Any) -> Any:
    options = {"batch_size": BATCH, "store": MemoryStore(len(make_units(model)), 3)} | options
    return cs.CircuitSpex(
        model, make_task(model), units=make_units(model), workers=workers, **options
    )


def wrap_toy(model: Any, workers: Any = None, **options: Any) -> Any:
    task = cs.tasks.induction(model, n_prompts=4, seed=0)
    options = {"batch_size": BATCH} | options
    return cs.CircuitSpex(model, task, units=cs.heads(model), workers=workers, **options)


def children(name: str = "ray::") -> list[psutil.Process]:
    """Processes below this one whose command line holds the name."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if name in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def wait_until(holds: Any, seconds: float = 30) -> bool:
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.1)
    return bool(holds())


def everything(spex: Any) -> list[torch.Tensor]:
    """What every way of asking gives, in order."""
    n = spex.n_units
    pairs = cs.masks.ablate_only(itertools.combinations(range(n), 2), n)
    gates = torch.rand(9, n, generator=torch.Generator().manual_seed(0))
    return [
        spex(pairs),
        spex.per_prompt(random_masks(40, n, seed=1)),
        *spex.sample(random_masks(60, n, seed=2), 1, np.random.default_rng(0)),
        *spex.value_and_gradient(random_masks(20, n, seed=3)),
        *spex.value_and_gradient(gates),
        *spex.sample_gradients(random_masks(30, n, seed=4), 2, np.random.default_rng(1)),
    ]


# ---- the same bits ----


@pytest.mark.parametrize(
    ("ablation", "metric"),
    [("zero", "logit_difference"), ("resample", "negative_kl"), ("mean", "answer_log_probability")],
)
def test_every_way_of_asking_gives_the_bits_of_a_run_without_workers(
    workers, llama, ablation, metric
):
    asked = {"ablation": ablation, "metric": metric}
    with wrap(llama, **asked) as spex:
        local, counts = everything(spex), spex.evaluation.n_evaluated
        table = spex.evaluation.store.table()
    with wrap(llama, workers("llama-grouped"), **asked) as spex:
        remote = everything(spex)
        assert spex.evaluation.n_evaluated == counts
        order = [("prompt", "ascending"), ("mask", "ascending")]
        assert spex.evaluation.store.table().sort_by(order).equals(table.sort_by(order))
    assert all(torch.equal(a, b) for a, b in zip(local, remote, strict=True))
    assert local[0].std() > 0.01


def test_without_a_batch_size_rows_run_together_as_they_would_here(workers, llama):
    with wrap(llama, batch_size=None) as spex:
        local = everything(spex)
    with wrap(llama, workers("llama-grouped"), batch_size=None) as spex:
        assert all(torch.equal(a, b) for a, b in zip(local, everything(spex), strict=True))


BUDGETS = {"exact": 1024, "gradient": 600, "coarse_to_fine": 600}
KEEP_RATES = {"spex": 0.5, "moebius": 0.5}


@pytest.mark.parametrize("name", DECODERS)
def test_every_decoder_finds_the_same(workers, toy, name):
    found = []
    for pool in (None, workers("toy-induction")):
        with wrap_toy(toy, pool) as spex:
            found.append(
                spex.discover(
                    name,
                    budget=BUDGETS.get(name, 400),
                    keep_rate=KEEP_RATES.get(name, 0.7),
                    seed=3,
                )
            )
    local, remote = found
    assert remote.support == local.support
    assert np.array_equal(remote.coefficients, local.coefficients)
    assert remote.n_evaluations == local.n_evaluations > 0
    assert remote.held_out_r2 == local.held_out_r2
    assert len(local.support) > 1


def test_verification_on_other_prompts_and_back_gives_the_same(workers, llama):
    found = []
    for pool in (None, workers("llama-grouped")):
        with wrap(llama, pool) as spex:
            interactions = spex.discover("lasso", budget=300, keep_rate=0.7)
            held_out = spex.verify_interactions(interactions, top=3, task=spex.task.held_out)
            here = spex.verify_interactions(interactions, top=3)
            report = spex.verify(spex.circuit(interactions, 4))
            found.append((held_out, here, report, spex(random_masks(5, spex.n_units)).tolist()))
    assert found[0] == found[1]


def test_a_worker_computes_with_the_precision_that_is_set_here(workers, toy):
    def read_precision(logits: torch.Tensor, targets: Any) -> torch.Tensor:
        return torch.full((len(logits),), float(len(torch.get_float32_matmul_precision())))

    torch.set_float32_matmul_precision("medium")
    try:
        with wrap_toy(toy, workers("toy-induction"), metric=read_precision) as spex:
            assert spex(cs.masks.all_kept(8)).item() == len("medium")
    finally:
        torch.set_float32_matmul_precision("highest")


# ---- failures ----


def test_a_killed_worker_costs_nothing_but_its_batches(cluster, llama):
    masks = random_masks(400, len(make_units(llama)), seed=7)
    with wrap(llama, batch_size=4) as spex:
        local, n_evaluated = spex(masks), spex.evaluation.n_evaluated
    killed, counts = [], []

    def kill_one(evaluated: int, replayed: int) -> None:
        counts.append(evaluated)
        if not killed and sum(counts) > 40:
            killed.append(children("ray::_Actor")[-1])
            killed[0].send_signal(signal.SIGKILL)

    before = {process.pid for process in children("ray::_Actor")}
    with cs.cluster.ray_workers(make_llama, 2) as pool:
        own = {process.pid for process in children("ray::_Actor")} - before
        assert len(own) == 2
        with wrap(llama, pool, batch_size=4, progress=kill_one) as spex:
            with pytest.warns(WorkerWarning, match="a worker died; another one takes its place"):
                values = spex(masks)
            assert torch.equal(values, local)
            assert spex.evaluation.n_evaluated == len(spex.evaluation.store) == n_evaluated
        assert killed[0].pid in own
        assert wait_until(lambda: not killed[0].is_running() or killed[0].status() == "zombie")
    assert wait_until(lambda: {p.pid for p in children("ray::_Actor")} == before)
    assert cluster.is_initialized(), "a cluster that was there is left alone"


def fail_on_second_prompt(logits: torch.Tensor, targets: Any) -> torch.Tensor:
    if (targets.answers == 4).any():
        raise ZeroDivisionError("no such prompt")
    return logit_difference(logits, targets)


def test_a_poisoned_batch_fails_with_its_masks_named(workers, llama):
    masks = random_masks(40, len(make_units(llama)), seed=8)
    store = MemoryStore(len(make_units(llama)), 3)
    pool = workers("llama-grouped")
    words = r"ZeroDivisionError on a worker, in a batch of prompt 1 without L\d+.*: no such prompt"
    with (
        wrap(llama, pool, metric=fail_on_second_prompt, store=store, batch_size=8) as spex,
        pytest.raises(WorkerError, match=words) as raised,
    ):
        spex(masks)
    assert raised.value.prompts.tolist() == [1] * 8
    assert all((masks == mask).all(dim=1).any() for mask in raised.value.masks)
    assert "fail_on_second_prompt" in str(raised.value.__cause__), "where it failed is not told"
    # Prompts 0 and 2 are shorter, so they ran before; what was done of them is kept.
    assert len(store) == 80
    with wrap(llama, pool) as spex:
        assert spex(masks).isfinite().all(), "workers go on after a failure"


def test_errors_of_our_own_keep_their_kind(workers, toy):
    words = r"one number per row, shape \(\d+,\); got \(\d+, 33\)\. This was on a worker, in a"
    with (
        wrap_toy(toy, workers("toy-induction"), metric=lambda logits, targets: logits) as spex,
        pytest.raises(TaskError, match=words),
    ):
        spex(cs.masks.all_kept(8))


def test_values_that_are_not_finite_are_named_as_in_a_run_without_workers(workers, llama):
    def broken(logits: torch.Tensor, targets: Any) -> torch.Tensor:
        values = logit_difference(logits, targets)
        return values.where(targets.answers != 4, torch.nan)

    masks, messages = random_masks(10, len(make_units(llama)), seed=8), []
    for pool in (None, workers("llama-grouped")):
        store = MemoryStore(len(make_units(llama)), 3)
        with (
            wrap(llama, pool, metric=broken, store=store) as spex,
            pytest.raises(NonFiniteError, match="mask 0 on prompt 1, which ablates L0H") as raised,
        ):
            spex(masks)
        messages.append(str(raised.value))
        assert len(store) == 20
    assert messages[0] == messages[1]


def test_a_model_that_cannot_be_loaded_gives_the_loaders_error(cluster):
    before = {process.pid for process in children("ray::_Actor")}
    with pytest.raises(ModelError, match="there is no file nowhere"):
        cs.cluster.ray_workers("nowhere.gguf", 1).__enter__()
    assert wait_until(lambda: {p.pid for p in children("ray::_Actor")} <= before)


def test_another_model_than_the_workers_is_refused(workers, toy_redundant, llama):
    with (
        pytest.raises(WorkerError, match=r"hold another model .*: weights \w+ there, \w+ here"),
        wrap_toy(toy_redundant, workers("toy-induction")),
    ):
        pass
    look = [("blocks.0.hook_resid_pre", lambda activation, hook: None)]
    with (
        llama.hooks(fwd_hooks=look),
        pytest.raises(HookError, match="hooks of your own on the model"),
        wrap(llama, workers("llama-grouped")),
    ):
        pass


# ---- interrupted and gone on with ----


def test_what_came_back_is_in_the_store_and_not_run_again(workers, toy, tmp_path):
    counts = []

    def stop(evaluated: int, replayed: int) -> None:
        counts.append(evaluated)
        if sum(counts) > 300:
            raise KeyboardInterrupt("stop")

    def run(pool: Any, store: Path | None, progress: Any = None) -> Any:
        with wrap_toy(toy, pool, store=store, progress=progress) as spex:
            return spex.discover("exact", budget=1024, keep_rate=0.5), spex.evaluation

    pool = workers("toy-induction")
    with pytest.raises(KeyboardInterrupt, match=r"^stop$"):
        run(pool, tmp_path, stop)
    found, evaluation = run(pool, tmp_path)
    # The intact mask is asked for twice: on the way in, and among all masks.
    assert evaluation.n_evaluated == 1024 - sum(counts), "what came back is run again"
    assert evaluation.n_replayed == sum(counts) + 4
    again, evaluation = run(None, tmp_path)
    assert evaluation.n_evaluated == 0, "a run without workers goes on from one with"
    local, _ = run(None, None)
    assert np.array_equal(found.coefficients, local.coefficients)
    assert np.array_equal(again.coefficients, local.coefficients)


def test_ctrl_c_leaves_no_process_and_a_run_without_workers_goes_on(toy, tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "circuitspex.cli", "discover", "--out", str(out)]
    command += ["--decoder", "exact", "--n-prompts", "8", "--verify", "0"]
    with subprocess.Popen(
        [*command, "--batch-size", "1", "--workers", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={name: text for name, text in os.environ.items() if not name.startswith("RAY_")},
    ) as process:
        assert wait_until(lambda: list((out / "evaluations").rglob("*.parquet")), 120)
        family = psutil.Process(process.pid).children(recursive=True)
        assert sum("ray::_Actor" in " ".join(each.cmdline()) for each in family) == 2
        os.killpg(process.pid, signal.SIGINT)
        text, _ = process.communicate(timeout=60)
    assert process.returncode == 130, text
    assert "Stopped. What was evaluated is in" in text
    assert "Traceback" not in text
    _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == []
    settings = Settings(decoder="exact", n_prompts=8, verify=0)
    assert discover(settings, out, model=toy).n_replayed > 0


# ---- the pool alone, with workers that load nothing ----


@pytest.fixture
def make_pool(cluster):
    """Make a pool of light workers; every one is stopped in the end."""
    pools = []

    def make(n_workers: int = 2, patience: int = 60, cpus: int = 1, **options: Any) -> WorkerPool:
        actor = cluster.remote(LightActor).options(num_cpus=cpus)
        pools.append(WorkerPool(lambda: actor.remote(**options), n_workers, patience))
        return pools[-1]

    yield make
    for pool in pools:
        pool.stop()


def parcels(prompts: list[int]) -> list[Parcel]:
    masks = cs.masks.ablate_only([[0, 2], [1]], 3)
    return [
        Parcel(
            Chunk.of(
                Rows(masks, torch.arange(2), torch.tensor([p, p])),
                Pass(torch.arange(2)),
                gradients=False,
            ),
            tag=p,
        )
        for p in prompts
    ]


@pytest.mark.filterwarnings("ignore:a worker died:circuitspex.errors.WorkerWarning")
def test_a_batch_that_kills_workers_is_named_and_its_neighbours_are_not(make_pool, toy):
    pool, came = make_pool(n_workers=1), []
    assert len(pool.start()) == 1
    words = r"a batch was lost 3 times, .*: prompt 7 without L0H0, L0H2; prompt 7 without L0H1\."
    with pytest.raises(WorkerError, match=words) as raised:
        for parcel, done in pool.run(("job", []), cs.heads(toy), parcels([6, 7, 8, 9])):
            assert done.values.tolist() == [parcel.tag] * 2
            came.append(parcel.tag)
    assert raised.value.prompts.tolist() == [7, 7]
    assert came[0] == 6
    assert set(came) <= {6, 8}, "nothing fresh is begun once a batch has failed"
    again = [parcel.tag for parcel, _ in pool.run(("job", []), cs.heads(toy), parcels([1, 2]))]
    assert again == [1, 2], "the pool goes on after a failure"


@pytest.mark.filterwarnings("ignore:a worker died:circuitspex.errors.WorkerWarning")
def test_workers_that_only_ever_die_are_given_up(make_pool):
    pool = make_pool(n_workers=1, dies_at_start=True)
    with pytest.raises(WorkerError, match="4 workers died and none finished anything in between"):
        pool.start()


def test_workers_that_never_come_are_not_waited_for_forever(make_pool):
    with pytest.raises(WorkerError, match=r"waited 1 seconds .* has 8 CPU \(.* free\)\. Ask for"):
        make_pool(n_workers=1, patience=1, cpus=1000).start()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_that_ray_loses_ends_the_run_all_the_same(
    make_pool, cluster, toy, monkeypatch, number
):
    pool, wait = make_pool(n_workers=1), cluster.wait
    pool.start()

    def losing(*args: Any, **options: Any) -> Any:
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), number)
            time.sleep(1)
        return wait(*args, **options)

    found = signal.signal(number, signal.default_int_handler)
    monkeypatch.setattr(cluster, "wait", losing)
    try:
        with pytest.raises(KeyboardInterrupt, match=r"^$"):
            list(pool.run(("job", []), cs.heads(toy), parcels([1, 2])))
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, found)


# ---- what is asked for ----


def test_workers_are_workers_and_run_inside_a_block_only(toy):
    pool = cs.cluster.ray_workers("toy-induction")
    assert isinstance(wrap_toy(toy, pool), SampledDifferentiableSetFunction)
    assert isinstance(pool, Workers)
    with pytest.raises(WorkerError, match="inside a block only"):
        pool.room()


def test_bad_requests_are_refused(toy):
    with pytest.raises(WorkerError, match=r"give its name or path, or a function .* Transformer"):
        cs.cluster.ray_workers(toy)
    with pytest.raises(WorkerError, match=r"n_workers and cpus_per_worker of .*; got 0, 1 and 0"):
        cs.cluster.ray_workers("toy-induction", 0)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"gpus_per_worker": 1}, r"2 workers with 1 GPUs each need 2; the Ray cluster has 0\."),
        ({"cpus_per_worker": 5}, r"2 workers with 5 CPUs each need 10; the Ray cluster has 8\."),
    ],
)
def test_more_than_there_is_is_refused_at_once(cluster, asked, words):
    with pytest.raises(WorkerError, match=words):
        cs.cluster.ray_workers("toy-induction", 2, **asked).__enter__()


def test_a_missing_package_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'circuitspex\[ray\]'"):
        cs.cluster.ray_workers("toy-induction")


def test_starting_a_cluster_changes_neither_signals_nor_the_environment(monkeypatch):
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    monkeypatch.setenv("RAY_worker_niceness", "7")
    before = signal.getsignal(signal.SIGTERM)
    with _signals_kept(), _own_defaults():
        assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
        assert os.environ["RAY_worker_niceness"] == "7", "what the owner chose stays"
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGTERM) is before
    assert "RAY_USAGE_STATS_ENABLED" not in os.environ
