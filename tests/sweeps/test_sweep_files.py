"""Sweep files: what they mean, what is refused, and what is planned of them."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from circuitspex import sweeps
from circuitspex.errors import CircuitSpexError, SweepError
from circuitspex.runs import Settings, all_settings
from circuitspex.sweeps import parse_sweep, running
from circuitspex.sweeps.distributions import percentile

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "wandb_sweeps.json").read_text())


def sweep(parameters: Any = None, **keys: Any) -> dict[str, Any]:
    varied = {"seed": {"values": [0, 1]}} if parameters is None else parameters
    return {"method": "grid", "parameters": varied, **keys}


def write(folder: Path, document: dict[str, Any], name: str = "sweep.yaml") -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(document))
    return path


# What a sweep file means


@pytest.mark.parametrize("case", GOLDEN["distributions"], ids=lambda case: str(case["parameter"]))
def test_distributions_are_those_of_wandb(case: dict[str, Any]) -> None:
    for x, wanted in zip(GOLDEN["percentiles"], case["values"], strict=True):
        ours = percentile("p", case["parameter"], x)
        assert ours == (pytest.approx(wanted) if isinstance(wanted, float) else wanted)


@pytest.mark.parametrize("case", GOLDEN["grids"], ids=lambda case: " ".join(case["parameters"]))
def test_grids_are_those_of_wandb_in_its_order(case: dict[str, Any]) -> None:
    runs = sweeps.expand(parse_sweep(sweep(case["parameters"])))
    distinct = list(dict.fromkeys(runs))
    assert distinct == [Settings.from_mapping(run) for run in case["runs"]]


def test_whole_numbers_stay_whole() -> None:
    values = [
        percentile("p", {"distribution": "q_uniform", "min": 1, "max": 9}, x) for x in (0.0, 1 / 3)
    ]
    assert [type(value) for value in values] == [int, int]


@pytest.mark.slow
def test_random_draws_repeat_and_follow_the_seed() -> None:
    drawn = parse_sweep(sweep({"keep_rate": {"min": 0.5, "max": 0.9}}, method="random"))
    runs = sweeps.expand(drawn, n_runs=200, seed=3)
    assert runs == sweeps.expand(drawn, n_runs=200, seed=3)
    assert runs != sweeps.expand(drawn, n_runs=200, seed=4)
    rates = np.array([run.keep_rate for run in runs])
    # the mean of 200 uniform draws is within four standard errors
    assert abs(rates.mean() - 0.7) < 4 * 0.4 / 12**0.5 / 200**0.5


def test_random_needs_an_end() -> None:
    drawn = parse_sweep(sweep(method="random"))
    with pytest.raises(SweepError, match="give --n-runs, or run_cap"):
        sweeps.expand(drawn)
    assert len(sweeps.expand(replace(drawn, run_cap=2))) == 2
    with pytest.raises(SweepError, match="--n-runs is for random sweeps"):
        sweeps.expand(parse_sweep(sweep()), n_runs=3)


def test_a_cap_counts_runs_that_differ() -> None:
    values = {"seed": {"values": [0, 0, 1, 1, 2]}}
    runs = sweeps.expand(parse_sweep(sweep(values, run_cap=2)))
    assert [run.seed for run in runs] == [0, 0, 1, 1]


ONE = {"seed": {"value": 1}}


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"method": "bayes"}, "only W&B's server does. Start it with wandb sweep"),
        ({"method": "gird"}, "grid or random; did you mean 'grid'"),
        ({"method": None}, "method must be grid or random"),
        ({"early_terminate": {"type": "hyperband"}}, "early_terminate cannot be honoured offline"),
        ({"controller": {"type": "local"}}, "controller cannot be honoured"),
        ({"scheduler": {"engine": "optuna"}}, "scheduler cannot be honoured"),
        ({"job": "x"}, "launch jobs"),
        ({"metrics": []}, "Give one metric"),
        ({"paramters": {}}, "no key 'paramters'; did you mean 'parameters'"),
        ({"name": 3}, "name must be a text"),
        ({"run_cap": 0}, "run_cap must be"),
        ({"run_cap": True}, "run_cap must be"),
        ({"metric": "loss"}, "metric must have a name"),
        ({"metric": {"name": "loss"}}, "no run logs 'loss'"),
        ({"metric": {"name": "fit/r2_heldout", "target": 1}}, "target cannot be honoured"),
        ({"metric": {"name": "fit/r2_heldout", "goal": "up"}}, "minimize or maximize"),
        ({"parameters": {}}, "at least one setting"),
        ({"parameters": []}, "at least one setting"),
        ({"parameters": {"sead": {"value": 1}}}, "did you mean 'seed'"),
        ({"parameters": {"seed": 3}}, "each parameter must be"),
        ({"parameters": {"keep-rate": {"value": 1}, "keep_rate": {"value": 1}}}, "there twice"),
        ({"parameters": {"seed": {"parameters": {}}}}, "'seed' is nested"),
        ({"parameters": {"seed": {}}}, "needs value, values, or min and max"),
        ({"parameters": {"seed": {"min": 1}}}, "it has min"),
        ({"parameters": {"seed": {"values": []}}}, "list that is not empty"),
        ({"parameters": {"seed": {"values": [1], "min": 0}}}, "does not take min"),
        ({"parameters": {"seed": {"min": 2, "max": 1}}}, "not below max"),
        ({"parameters": {"seed": {"min": 1, "max": 2, "q": 1}}}, "int_uniform does not take q"),
        ({"parameters": {"seed": {"distribution": "unifrom"}}}, "did you mean 'uniform'"),
        ({"parameters": {"seed": {"distribution": ["x"]}}}, "no known distribution"),
        ({"parameters": {"seed": {"distribution": "normal", "sigma": 0}}}, "must be above 0"),
        ({"parameters": {"seed": {"distribution": "normal", "mu": "x"}}}, "finite number"),
        (
            {"parameters": {"seed": {"distribution": "log_uniform_values", "min": 0, "max": 1}}},
            "min above 0",
        ),
        (
            {"parameters": {"seed": {"distribution": "log_uniform", "min": 16, "max": 4096}}},
            "log_uniform_values takes the limits",
        ),
        (
            {"parameters": {"seed": {"values": [1, 2], "probabilities": [0.5, 0.6]}}},
            "add up to 1",
        ),
        ({"program": "train.py"}, "only circuitspex is run offline"),
        ({"command": "circuitspex"}, "list of words"),
        ({"command": ["python", "train.py", "${args}"]}, "must run circuitspex discover"),
        ({"command": ["rm", "-rf", "discover", "${args}"]}, "must run circuitspex discover"),
        ({"command": ["circuitspex", "discover"]}, r"must hold \$\{args\}"),
        ({"command": ["circuitspex", "discover", "--out=/etc", "${args}"]}, "a sweep has folders"),
        ({"command": ["circuitspex", "discover", "--sead=1", "${args}"]}, "did you mean 'seed'"),
        ({"command": ["circuitspex", "discover", "--seed=1", "${args}"]}, "fixes seed, and param"),
        ({"command": ["circuitspex", "discover", "${envvar:HOME}", "${args}"]}, "nothing that can"),
        ({"command": ["circuitspex", "discover", "--model=${envvar:KEY}", "${args}"]}, "nothing"),
    ],
)
def test_what_cannot_be_honoured_is_refused_in_words(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(CircuitSpexError, match=words):
        parse_sweep(sweep(**keys))


@pytest.mark.parametrize(
    "command",
    [
        ["circuitspex", "discover", "--task=ioi", "--wandb=online", "${args}"],
        ["${env}", "circuitspex", "discover", "--task", "ioi", "${args_no_hyphens}"],
        ["${env}", "${interpreter}", "-m", "circuitspex.cli", "discover", "--task=ioi", "${args}"],
        ["circuitspex", "discover", "--config", "${args_json_file}", "--task", "ioi"],
    ],
)
def test_what_the_command_fixes_is_honoured(command: list[str]) -> None:
    read = parse_sweep(sweep(command=command, program="circuitspex"))
    assert read.fixed == {"task": "ioi"}
    assert {run.task for run in sweeps.expand(read)} == {"ioi"}


def test_options_of_the_command_reach_the_run(tmp_path: Path) -> None:
    command = ["circuitspex", "discover", "--device=cpu", "--batch_size", "8", "${args}"]
    plan = sweeps.plan_sweep(write(tmp_path, sweep(command=command)), tmp_path / "s")
    words = running._command(plan, tmp_path, "disabled")
    assert {"--device=cpu", "--batch-size=8", "--wandb=disabled"} <= set(words)


def test_grids_of_what_has_no_list_are_refused() -> None:
    with pytest.raises(SweepError, match="'keep_rate' is uniform, of which a grid has no list"):
        sweeps.expand(parse_sweep(sweep({"keep_rate": {"min": 0.5, "max": 0.9}})))
    with pytest.raises(SweepError, match="alone makes more than 100,000"):
        sweeps.expand(parse_sweep(sweep({"seed": {"min": 0, "max": 10**9}})))


def test_a_grid_of_too_many_runs_is_refused() -> None:
    lists = {"seed": {"values": list(range(400))}, "budget": {"values": list(range(1, 400))}}
    with pytest.raises(SweepError, match="more than 100,000 runs"):
        sweeps.expand(parse_sweep(sweep(lists)))


# Any file: a sweep or a clear error


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 99) | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
WORDS = st.sampled_from(["uniform", "q_normal", "constant", "beta", "categorical", "int_uniform"])
PARAMETER = st.fixed_dictionaries(
    {},
    optional={
        **{key: VALUES for key in ("value", "min", "max", "mu", "sigma", "q", "a", "b")},
        "values": st.lists(VALUES, max_size=3) | VALUES,
        "probabilities": st.lists(st.floats(0, 1), max_size=3),
        "distribution": WORDS | VALUES,
    },
)
DOCUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "method": st.sampled_from(["grid", "random", "bayes"]) | VALUES,
        "parameters": st.dictionaries(st.sampled_from(list(all_settings())), PARAMETER, max_size=2)
        | VALUES,
        "metric": st.fixed_dictionaries({"name": st.just("fit/r2_heldout") | VALUES}) | VALUES,
        "command": st.lists(
            st.sampled_from(["circuitspex", "discover", "${args}", "--seed=1", "--out", "x"])
            | VALUES,
            max_size=5,
        ),
        "run_cap": st.integers(1, 3) | VALUES,
        "name": VALUES,
        "program": VALUES,
    },
)


@given(DOCUMENTS)
@hypothesis_settings(max_examples=300)
def test_any_document_is_a_sweep_or_a_clear_error(document: dict[str, Any]) -> None:
    message, runs = "", []
    try:
        read = parse_sweep(document)
        runs = sweeps.expand(read, n_runs=3 if read.method == "random" else None)
    except CircuitSpexError as error:
        message = str(error)
    assert bool(message) != bool(runs)
    assert len(message) < 3000
    assert all(isinstance(run, Settings) for run in runs)


@given(raw=st.binary(max_size=200), suffix=st.sampled_from([".yaml", ".json"]))
@hypothesis_settings(max_examples=100)
def test_any_bytes_are_a_sweep_or_a_clear_error(
    tmp_path_factory: Any, raw: bytes, suffix: str
) -> None:
    path = tmp_path_factory.getbasetemp() / f"fuzzed-sweep{suffix}"
    path.write_bytes(raw)
    with pytest.raises(SweepError, match="fuzzed-sweep"):
        sweeps.read_sweep(path)


def test_nothing_in_a_sweep_file_is_run(tmp_path: Path) -> None:
    path, canary = tmp_path / "sweep.yaml", tmp_path / "canary"
    path.write_text(f'method: !!python/object/apply:os.system ["touch {canary}"]')
    with pytest.raises(SweepError, match="no YAML of plain values"):
        sweeps.plan_sweep(path, tmp_path / "s")
    assert not canary.exists()
    assert not (tmp_path / "s").exists()


# What is planned


def test_a_plan_is_a_folder_with_every_run(tmp_path: Path) -> None:
    values = {"seed": {"values": [0, 1, 0]}, "budget": {"value": 64}}
    path = write(tmp_path, sweep(values, name="mine", project="p", entity="e"))
    plan = sweeps.plan_sweep(path, tmp_path / "s")
    assert (len(plan), plan.n_duplicates, plan.varied) == (2, 1, ["seed"])
    assert (plan.group, plan.project, plan.entity) == ("mine", "p", "e")
    assert sweeps.read_manifest(tmp_path / "s") == plan
    assert (tmp_path / "s" / "sweep.yaml").read_bytes() == path.read_bytes()
    assert [plan.settings(i).seed for i in range(2)] == [0, 1]
    assert plan.run_folder(1).name == plan.settings(1).run_id
    assert sweeps.plan_sweep(path, tmp_path / "s") == plan
    with pytest.raises(SweepError, match="holds another sweep"):
        sweeps.plan_sweep(write(tmp_path, sweep(ONE)), tmp_path / "s")


def test_one_bad_run_and_nothing_is_planned(tmp_path: Path) -> None:
    path = write(tmp_path, sweep({"decoder": {"values": ["lasso", "lassso"]}}))
    with pytest.raises(SweepError, match=r"run 1 of the sweep: there is no decoder 'lassso'"):
        sweeps.plan_sweep(path, tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_a_sweep_without_a_name_has_a_folder_and_a_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = sweeps.plan_sweep(write(tmp_path, sweep(), "my sweep;.yaml"))
    assert re.fullmatch(r"sweeps/my_sweep_-[0-9a-f]{8}", str(plan.folder))
    assert plan.group == plan.folder.name


def tamper(folder: Path, **entry: Any) -> sweeps.Manifest:
    path = folder / "manifest.json"
    document = json.loads(path.read_text())
    document["entries"][0] |= entry
    path.write_text(json.dumps(document))
    return sweeps.read_manifest(folder)


@pytest.mark.parametrize("name", ["../../evil", "/tmp/evil", "..", "", 3, None, "A" * 16, "a" * 17])
def test_an_id_cannot_lead_out_of_the_folder(tmp_path: Path, name: object) -> None:
    sweeps.plan_sweep(write(tmp_path, sweep()), tmp_path / "s")
    plan = tamper(tmp_path / "s", id=name)
    with pytest.raises(SweepError, match="has no hash as id"):
        plan.run_folder(0)
    with pytest.raises(SweepError, match="was changed"):
        sweeps.run_entry(tmp_path / "s", 0)


def test_a_link_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    plan = sweeps.plan_sweep(write(tmp_path, sweep()), tmp_path / "s")
    outside = tmp_path / "outside"
    outside.mkdir()
    plan.run_folder(0).symlink_to(outside)
    with pytest.raises(SweepError, match="leads out of the sweep's folder"):
        sweeps.run_entry(tmp_path / "s", 0)
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"settings": {"seed": 5}}, "was changed, or planned by another version"),
        ({"settings": {"sead": 5}}, "no setting 'sead'"),
        ({"settings": []}, "was changed"),
        ({"extra": 1}, "was changed"),
    ],
)
def test_a_changed_run_is_refused(tmp_path: Path, entry: dict[str, Any], words: str) -> None:
    sweeps.plan_sweep(write(tmp_path, sweep()), tmp_path / "s")
    with pytest.raises(SweepError, match=words):
        tamper(tmp_path / "s", **entry).settings(0)


def test_a_folder_without_a_plan_is_named(tmp_path: Path) -> None:
    with pytest.raises(SweepError, match="must be a folder that circuitspex sweep plan wrote"):
        sweeps.read_manifest(tmp_path)
    plan = sweeps.plan_sweep(write(tmp_path, sweep()), tmp_path / "s")
    with pytest.raises(SweepError, match="no run 2; the sweep has runs 0 to 1"):
        plan.settings(2)


def test_the_sweep_of_the_readme_is_one(tmp_path: Path) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    [block] = re.findall(r"```yaml\n(.*?)```", readme, flags=re.DOTALL)
    (tmp_path / "sweep.yaml").write_text(block)
    plan = sweeps.plan_sweep(tmp_path / "sweep.yaml", tmp_path / "s")
    assert (len(plan), plan.varied) == (30, ["budget", "keep_rate", "seed"])
    assert plan.settings(0).model == "gpt2"
