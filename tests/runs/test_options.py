"""Options of decoders: every one, by every route, works or is refused with the same reason."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import circuitspex as cs
from circuitspex import Spec, decoders
from circuitspex.cli import app
from circuitspex.errors import DecoderError, SettingsError
from circuitspex.runs import DECIDES, Settings, all_settings, discover, parse_value
from circuitspex.units import parse_units

TRIED: dict[str, list[Any]] = {
    "among": [["L0H1", 3], [], [0.5]],
    "origin": ["ablated", "here"],
    "order_shares": [[0.5, 0.5], [1.0], [-1.0, 2.0]],
    "prompts_per_mask": ["all", 2, 0, "some"],
}
SHARED = ("keep_rate", "max_order", "prompts_per_mask")
NUMBERS = [-1, 0, 0.5, 1, 2, 3, 4096]


def outcome(make: Any) -> str:
    try:
        return repr(make())
    except (DecoderError, SettingsError) as error:
        return str(error)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", decoders.DECODERS)
def test_every_pair_of_decoder_and_option_is_the_same_by_every_route(name: str) -> None:
    refused = 0
    for option in decoders.all_options():
        for value in TRIED.get(option, NUMBERS):
            python = outcome(lambda o=option, v=value: decoders.choose(name, **{o: v}).decoder)
            text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            refused += "got" in python or "no option" in python
            for given in (value, parse_value(option, text)):
                asked = {"decoder": name, option: given}
                settings = outcome(lambda a=asked: Settings.from_mapping(a).resolve(30, 4) and "")
                worked = "Decoder(" in python
                assert (settings == "''") == worked, (option, value, python, settings)
                if not worked:
                    assert f"{option} must be" in settings or "no option" in settings
                if (
                    not worked and value != [] and option not in SHARED
                ):  # whose type is checked first
                    assert settings.partition("got")[0] == python.partition("got")[0]
    assert refused > 20


def test_every_setting_says_what_it_decides() -> None:
    own = [field for field in all_settings().values() if "decides" in field.metadata]
    assert {field.metadata["decides"] for field in own} == DECIDES.keys()
    assert len(own) == len(all_settings()) - len(decoders.all_options()) + 3


def test_the_recipe_is_in_the_hash_of_a_result_alone() -> None:
    spec = Spec({"model": "toy"}, {"budget": 1})
    other = replace(spec, recipe=spec.recipe + 1)
    assert other.run_hash != spec.run_hash
    assert other.evaluation_hash == spec.evaluation_hash
    assert replace(spec, asked={"verify": 5}).run_hash == spec.run_hash


@pytest.mark.parametrize("word", ["a\x85b", "a\u2028b", "\x1f", "ü", "\ufeffx", "\U0001f600"])
def test_every_character_survives_a_file(word: str, tmp_path: Path) -> None:
    made = Settings(model=word)
    made.save(tmp_path / "run.yaml")
    assert Settings.load(tmp_path / "run.yaml") == made


def hashes(spec: Spec) -> tuple[str, str]:
    return spec.evaluation_hash, spec.run_hash


def from_python(toy: Any, n_prompts: int, units: str, **asked: Any) -> Spec:
    task = cs.tasks.induction(toy, n_prompts=n_prompts, seed=0)
    with cs.CircuitSpex(toy, task, parse_units(units, toy)) as spex:
        spex.discover(**asked)
        return spex.spec


@pytest.mark.slow
def test_the_default_run_is_the_same_by_every_route(toy: Any, tmp_path: Path) -> None:
    python = from_python(toy, 16, "heads", budget=4096)
    runs = discover(Settings(), tmp_path / "runs").spec
    done = CliRunner().invoke(app, ["discover", "--out", str(tmp_path / "cli")])
    assert done.exit_code == 0, done.output
    line = Spec.load(tmp_path / "cli" / "spec.json")
    assert hashes(python) == hashes(runs) == hashes(line)


SMALL = {"units": "heads@1", "n_prompts": 2, "budget": 64, "decoder": "lasso", "n_folds": 3}


def test_a_run_with_options_is_the_same_by_every_route(toy: Any, tmp_path: Path) -> None:
    python = from_python(toy, **SMALL)
    made = decoders.LassoDecoder(keep_rate=0.95, n_folds=3)
    passed = from_python(
        toy, **{k: SMALL[k] for k in ("units", "n_prompts", "budget")}, decoder=made
    )
    runs = discover(Settings.from_mapping(SMALL), tmp_path, model=toy).spec
    assert hashes(python) == hashes(passed) == hashes(runs)
    other = discover(Settings.from_mapping({**SMALL, "n_folds": 4}), tmp_path, model=toy).spec
    assert other.evaluation_hash == runs.evaluation_hash
    assert other.run_hash != runs.run_hash


def test_options_beside_a_made_decoder_are_refused(toy: Any) -> None:
    asked = {"decoder": decoders.LassoDecoder(), "budget": 64, "keep_rate": 0.9, "n_folds": 3}
    with pytest.raises(
        DecoderError, match=r"keep_rate, n_folds cannot be .* to LassoDecoder\(\.\.\."
    ):
        from_python(toy, 2, "heads@1", **asked)


def test_another_report_of_a_run_evaluates_nothing_for_its_discovery(
    toy: Any, tmp_path: Path
) -> None:
    settings = Settings.from_mapping({**SMALL, "keep_rate": 0.6, "verify": 2, "circuit_size": 2})
    first = discover(settings, tmp_path, model=toy)
    before = (tmp_path / "interactions.json").read_bytes()
    fewer = discover(replace(settings, verify=1, circuit_size=1), tmp_path, model=toy)
    assert fewer.n_evaluated == 0
    assert fewer.n_replayed >= first.interactions.n_evaluations > 0
    more = discover(replace(settings, verify=6), tmp_path, model=toy)
    assert more.verification is not None
    assert more.n_replayed >= first.interactions.n_evaluations
    assert more.n_evaluated <= more.verification.n_evaluations
    assert (tmp_path / "interactions.json").read_bytes() == before
    assert hashes(first.spec) == hashes(fewer.spec) == hashes(more.spec)
    assert fewer.circuit is not None
    assert len(fewer.circuit.units) == 1
