"""A spec is an inert value: hashed the same everywhere, saved whole or not at all."""

import json

import pytest

from circuitspex._shared import Spec, current_versions, describe_differences, write_atomically
from circuitspex._shared.spec import ABSENT
from circuitspex.errors import ResultError


def make_spec(**evaluation) -> Spec:
    given = {"model": "toy", "processing": "none", "task": {"name": "ioi", "seed": 0}, "n_units": 8}
    return Spec(given | evaluation, {"decoder": "lasso", "keep_rate": 0.95}, {"torch": "2.13"})


def test_hashes_are_pinned_so_that_old_stores_keep_working():
    assert make_spec().evaluation_hash == "5c45d572f686f252f2ac34feec5c5f4b"
    assert make_spec().run_hash == "c9763dc3146d0cffcf82f7f420795f3e"


def test_the_evaluation_hash_ignores_order_discovery_and_versions():
    spec = make_spec()
    reordered = Spec(dict(reversed(list(spec.evaluation.items()))), {"decoder": "exact"}, {})
    assert reordered.evaluation_hash == spec.evaluation_hash
    assert reordered.run_hash != spec.run_hash
    assert make_spec(processing="folded").evaluation_hash != spec.evaluation_hash


def test_versions_are_no_part_of_a_hash_but_of_equality():
    spec = make_spec()
    upgraded = Spec(spec.evaluation, spec.discovery, {"torch": "3.0"})
    assert upgraded.run_hash == spec.run_hash
    assert upgraded != spec


def test_what_the_caller_changes_later_changes_nothing():
    prompts = ["a"]
    spec = Spec({"prompts": prompts})
    before = spec.evaluation_hash
    prompts.append("b")
    assert spec.evaluation_hash == before


def test_save_and_load_give_the_same_spec(tmp_path):
    spec = make_spec(prompts=["Émile <b> gave"], note=None)
    spec.save(tmp_path / "spec.json")
    assert Spec.load(tmp_path / "spec.json") == spec
    assert [path.name for path in tmp_path.iterdir()] == ["spec.json"]


def test_differences_name_nested_keys_with_both_values():
    other = make_spec(processing="folded", task={"name": "ioi", "seed": 1, "bos": True})
    differences = make_spec().differences(other)
    assert differences == {
        "evaluation.processing": ("none", "folded"),
        "evaluation.task.seed": (0, 1),
        "evaluation.task.bos": (ABSENT, True),
    }
    assert describe_differences(differences).startswith(
        "evaluation.processing: 'none' here, 'folded' there; evaluation.task.seed: 0 here, 1 there"
    )
    assert make_spec().differences(other, parts=("discovery",)) == {}


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, object()])
def test_what_is_not_plain_json_is_refused(value):
    with pytest.raises(ResultError, match="evaluation holds something that is not plain JSON"):
        Spec({"metric": value})


def damage_truncate(text: str) -> str:
    return text[: len(text) // 2]


def damage_part(text: str) -> str:
    return json.dumps({key: part for key, part in json.loads(text).items() if key != "discovery"})


def damage_value(text: str) -> str:
    return text.replace("0.95", "0.90")


def damage_shape(text: str) -> str:
    return "[1, 2]"


@pytest.mark.parametrize(
    "damage", [damage_truncate, damage_part, damage_value, damage_shape], ids=lambda d: d.__name__
)
def test_a_damaged_file_is_refused(tmp_path, damage):
    path = tmp_path / "spec.json"
    make_spec().save(path)
    path.write_text(damage(path.read_text()))
    with pytest.raises(ResultError, match=r"spec.json is not a spec that can be read .* repeat"):
        Spec.load(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ResultError, match="FileNotFoundError"):
        Spec.load(tmp_path / "spec.json")


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "page"
    write_atomically(path, b"old")

    def fail(descriptor):
        raise OSError("no sync")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="no sync"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_current_versions_name_the_stack():
    assert {"python", "torch", "transformer_lens"} <= current_versions().keys()
