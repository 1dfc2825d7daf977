"""Settings: checked, hashed, and the same from files, options and Python; files from strangers."""

import json
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from circuitspex import metrics, tasks
from circuitspex._shared import parse_mapping, read_mapping
from circuitspex._shared.mappings import MAX_BYTES
from circuitspex.errors import CircuitSpexError, SettingsError
from circuitspex.runs import Settings, all_settings, parse_value
from circuitspex.runs.settings import DTYPES
from circuitspex.units import REPLACEMENTS

WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
COUNTS = st.integers(1, 2**53 - 1)


def or_none(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


VALID = st.builds(
    dict,
    model=WORDS,
    task=st.sampled_from(sorted(tasks.TASKS)),
    units=WORDS,
    decoder=st.sampled_from(["auto", "lasso", "hybrid", "gradient", "moebius", "coarse_to_fine"]),
    budget=COUNTS,
    keep_rate=or_none(st.floats(0, 1, exclude_min=True, exclude_max=True)),
    max_order=or_none(st.integers(1, 3)),
    prompts_per_mask=COUNTS | st.sampled_from(["all", "auto"]),
    n_prompts=COUNTS,
    ablation=st.sampled_from([*REPLACEMENTS]),
    metric=st.sampled_from(sorted(metrics.METRICS)),
    verify=st.integers(0, 2**53 - 1),
    circuit_size=or_none(COUNTS),
    seed=st.integers(0, 2**53 - 1),
    dtype=st.sampled_from(DTYPES),
)


OPTIONS: dict[str, dict[str, Any]] = {
    "auto": {"tolerance": 0.1, "n_threads": 2},
    "lasso": {"among": ["L0H1", 3], "max_pairs": 7, "n_folds": 3},
    "hybrid": {"tolerance": 1e-3},
    "gradient": {"max_order": 3, "order_shares": [0.25, 0.75], "search_share": 1.0},
    "moebius": {"origin": "ablated", "threshold": 2.5},
    "coarse_to_fine": {"n_blocks": 8},
}


@pytest.mark.slow
@given(VALID, st.booleans())
@hypothesis_settings(max_examples=40, deadline=None)
def test_settings_are_the_same_from_every_form(
    tmp_path_factory: Any, chosen: dict[str, Any], with_options: bool
) -> None:
    chosen = chosen | (OPTIONS[chosen["decoder"]] if with_options else {})
    made = Settings.from_mapping(chosen)
    assert made.as_dict() == chosen
    folder = tmp_path_factory.mktemp("forms")
    for name in ("run.yaml", "run.yml", "run.json", "run"):
        made.save(folder / name)
        read = Settings.load(folder / name)
        assert (read, read.run_id, hash(read)) == (made, made.run_id, hash(made))
    assert Settings.from_mapping(made.as_dict()) == made
    dashed = {name.replace("_", "-"): value for name, value in made.as_dict().items()}
    assert Settings.from_mapping(dashed) == made
    # As an option's text, as W&B's agent writes it.
    texts = {name: parse_value(name, str(value)) for name, value in made.as_dict().items()}
    assert Settings.from_mapping(texts) == made


@given(VALID)
@hypothesis_settings(max_examples=40, deadline=None)
def test_a_run_name_is_one_plain_folder_name(chosen: dict[str, Any]) -> None:
    name = Settings.from_mapping(chosen).run_name
    assert Path(name).name == name
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")


@pytest.mark.parametrize("model", ["../../etc/passwd", "..", "/", "a/..\n/b", "C:\\x", "~root"])
def test_a_model_cannot_lead_the_folder_away(model: str, tmp_path: Path) -> None:
    name = Settings(model=model).run_name
    assert (tmp_path / name).resolve().parent == tmp_path.resolve()


def test_the_run_id_does_not_change_from_version_to_version() -> None:
    # Pinned: with another, every folder and W&B run of the versions before would be lost.
    assert Settings().run_id == "f7cf3089cddcbe4b"
    assert Settings(keep_rate=0.9, seed=3).run_id == "bd1f93c848a28c8e"


def test_every_setting_is_in_the_run_id() -> None:
    other: dict[str, Any] = {
        **{"model": "gpt2", "task": "ioi", "units": "neurons", "decoder": "lasso", "budget": 7},
        **{"keep_rate": 0.9, "max_order": 2, "prompts_per_mask": "all"},
        **{"options": {"tolerance": 0.1}},
        **{"n_prompts": 8, "ablation": "mean", "metric": "negative_kl", "verify": 0},
        **{"circuit_size": 3, "seed": 1, "dtype": "bfloat16"},
    }
    assert other.keys() == {field.name for field in fields(Settings)}
    ids = {replace(Settings(), **{name: value}).run_id for name, value in other.items()}
    assert len(ids | {Settings().run_id}) == len(other) + 1


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError, match="budget"):
        Settings().budget = 1  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ({"keep_rte": 0.9}, "no setting 'keep_rte'; did you mean 'keep_rate'?"),
        ({"bugdet": 1}, "did you mean 'budget'"),
        ({"zzz": 1}, r"no setting 'zzz'\. There are model, task"),
        ({"keep-rate": 0.5, "keep_rate": 0.6}, "'keep_rate' is given twice"),
        ({"budget": "4096"}, "budget must be a whole number above 0 .* got '4096'"),
        ({"budget": True}, "got True"),
        ({"budget": 0}, "budget must"),
        ({"budget": 1.5}, "got 1.5"),
        ({"budget": 2**53}, r"below 2\^53; got 9007199254740992"),
        ({"budget": 10**5000}, "too long to show"),
        ({"keep_rate": 1.0}, "keep_rate must be a number above 0 and below 1; got 1.0"),
        ({"keep_rate": float("nan")}, "keep_rate must"),
        ({"prompts_per_mask": "some"}, "or 'all' or 'auto'; got 'some'"),
        ({"tolerance": -0.1}, "tolerance must be a number above 0 and below 1 or None; got -0.1"),
        ({"tolerance": 0}, "'hybrid': tolerance must be a number above 0 .* got 0. Stop before"),
        ({"decoder": "exact", "tolerance": 0.1}, "'exact' has no option 'tolerance'.* Its options"),
        ({"decoder": "spex", "keep_rate": 0.9}, "'spex': keep_rate must be .* equal to 0.5; got 0"),
        ({"decoder": "exact", "prompts_per_mask": 2}, "must be 'all' or 'auto'; got 2"),
        ({"tolerence": 0.1}, "no setting 'tolerence'; did you mean 'tolerance'"),
        ({"n_blocks": 4, "origin": "intact"}, "no decoder has all of .*n_blocks, origin"),
        ({"options": {"tolerance": 0.1}}, "no setting 'options'"),
        ({"seed": -1}, "seed must"),
        ({"model": ""}, "at least 1"),
        ({"model": "x" * 1001}, "at most 1000 characters"),
        ({"model": ["a"] * 1000}, r"got \['a', 'a', 'a', 'a', 'a', 'a', \.\.\.\]"),
        ({"model": None}, "model must"),
        ({"task": "iio"}, "no task 'iio'; did you mean 'ioi'"),
        ({"decoder": "proxyspx"}, "did you mean 'proxyspex'"),
        ({"metric": "logit_diffrence"}, "did you mean 'logit_difference'"),
        ({"ablation": "noise"}, "Choose one of zero, mean, resample"),
        ({"dtype": "int8"}, "no dtype 'int8'"),
        ({"budget": 0, "seed": "x"}, "budget must .*; seed must"),
    ],
)
def test_what_is_wrong_is_named(mapping: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        Settings.from_mapping(mapping)


def test_an_error_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("bugdet: 3\n")
    with pytest.raises(SettingsError, match=r"in .*run\.yaml: there is no setting 'bugdet'"):
        Settings.load(path)
    with pytest.raises(SettingsError, match="cannot be read"):
        Settings.load(tmp_path / "none.yaml")
    with pytest.raises(SettingsError, match="cannot be read"):
        Settings.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("budget", "32", 32),
        ("budget", "1e3", 1000.0),  # no whole number to Python, and refused
        ("keep_rate", "0.9", 0.9),
        ("keep_rate", "None", None),
        ("max_order", "null", None),
        ("prompts_per_mask", "all", "all"),
        ("prompts_per_mask", "4", 4),
        ("model", "123", "123"),
        ("task", "None", "None"),
    ],
)
def test_texts_of_options_become_values(name: str, text: str, value: object) -> None:
    assert parse_value(name, text) == value
    assert type(parse_value(name, text)) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        'model: !!python/object/apply:os.system ["touch {canary}"]',
        "!!python/object/new:os.system [touch {canary}]",
        'model: !!python/name:os.system ""',
        "model: !!python/module:os",
        'model: !!python/object/apply:subprocess.check_call [[touch, "{canary}"]]',
        "!!map {{!!python/tuple [a]: 1}}",
        "model: !unknown x",
    ],
)
def test_nothing_in_a_file_is_run(text: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    path = tmp_path / "run.yaml"
    path.write_text(text.format(canary=canary))
    with pytest.raises(SettingsError, match="no YAML of plain values"):
        Settings.load(path)
    assert not canary.exists()


def test_an_unsafe_loader_would_have_run_it(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    text = f'!!python/object/apply:os.system ["touch {canary}"]'
    yaml.load(text, yaml.UnsafeLoader)
    assert canary.exists()


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"seed: 1\nseed: 2\n", "'seed' is there twice"),
        (b"[1, 2]", "it holds list"),
        (b"", "it holds NoneType"),
        (b"1: 2", "other keys"),
        (b"a: [", "no YAML"),
        (b"\xff\xfe\x00", "no YAML"),
        (b"x: " + b"[" * 50_000, "no YAML"),
        (b"#" * (MAX_BYTES + 1), "at most 1,000,000 are read"),
        (b"x: 2001-99-99", "no YAML"),
        (b"&a [*a]: 1", "no YAML"),
    ],
)
def test_damaged_files_are_named(raw: bytes, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        parse_mapping(raw, "run.yaml")


@pytest.mark.parametrize("raw", [b"{", b"[" * 100_000, b"\xff", b'{"a": ' + b"9" * 5000 + b"}"])
def test_damaged_json_is_named(raw: bytes) -> None:
    with pytest.raises(SettingsError, match=r"run\.json is no JSON"):
        parse_mapping(raw, "run.json", is_json=True)


def test_aliases_cannot_blow_a_message_up(tmp_path: Path) -> None:
    levels = [f"a{i}: &a{i} [{', '.join(f'*a{i - 1}' for _ in range(9))}]" for i in range(1, 30)]
    path = tmp_path / "bomb.yaml"
    path.write_text("\n".join(["a0: &a0 [x]", *levels, "budget: *a29"]))
    with pytest.raises(SettingsError, match="no setting 'a0'"):
        Settings.load(path)
    mapping = read_mapping(path)
    with pytest.raises(SettingsError, match="budget must be") as caught:
        Settings.from_mapping({"budget": mapping["budget"]})
    assert len(str(caught.value)) < 500


def load(raw: bytes, suffix: str, folder: Path) -> Settings | None:
    path = folder / f"fuzzed{suffix}"
    path.write_bytes(raw)
    try:
        return Settings.load(path)
    except CircuitSpexError:
        return None


@given(raw=st.binary(max_size=200), suffix=st.sampled_from([".yaml", ".json"]))
@hypothesis_settings(max_examples=150)
def test_any_bytes_are_settings_or_a_clear_error(
    tmp_path_factory: Any, raw: bytes, suffix: str
) -> None:
    found = load(raw, suffix, tmp_path_factory.getbasetemp())
    assert found is None or isinstance(found, Settings)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
NAMES = st.sampled_from(list(all_settings())) | st.text(max_size=8)


@given(mapping=st.dictionaries(NAMES, VALUES, max_size=4), as_yaml=st.booleans())
@hypothesis_settings(max_examples=150)
def test_any_values_are_settings_or_a_clear_error(
    tmp_path_factory: Any, mapping: dict[str, Any], as_yaml: bool
) -> None:
    text = yaml.safe_dump(mapping) if as_yaml else json.dumps(mapping)
    found = load(text.encode(), ".yaml" if as_yaml else ".json", tmp_path_factory.getbasetemp())
    if found is not None:
        assert Settings.from_mapping(found.as_dict()) == found


# Pieces that YAML gives a meaning to, so that the fuzz gets past the first letter.
PIECES = st.sampled_from(
    [
        *"{}[]:,&*!|>-?%@`#'\"\n\t ",
        "budget",
        ": ",
        "!!python/object:",
        "<<",
        "&a",
        "*a",
        "---",
        "1e3",
    ]
)


@given(st.lists(PIECES, max_size=25))
@hypothesis_settings(max_examples=150)
def test_any_yaml_like_text_is_settings_or_a_clear_error(
    tmp_path_factory: Any, pieces: list[str]
) -> None:
    found = load("".join(pieces).encode(), ".yaml", tmp_path_factory.getbasetemp())
    assert found is None or isinstance(found, Settings)
