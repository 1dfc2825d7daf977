"""Options of decoders: every one, by every route, works or is refused with the same reason."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from circuitspex import Spec, decoders
from circuitspex.errors import DecoderError, SettingsError
from circuitspex.runs import DECIDES, Settings, all_settings, parse_value

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
