"""Where does it go? One file and one line in a room's registry, and every route knows the member.

Each test below adds a member as someone who works on this repository would: what stands at the top
is the new file, ``monkeypatch`` writes the line. Where a second place would be needed, it fails.
"""

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import pytest
import torch
from annotated_types import Gt
from typer.testing import CliRunner

import circuitspex as cs
from circuitspex.algebra import ablate_only, all_kept
from circuitspex.cli import app
from circuitspex.decoders import DECODERS, Decoder
from circuitspex.decoders.measuring import unit_labels
from circuitspex.errors import SettingsError
from circuitspex.games import GAMES, Game
from circuitspex.lenses import LENSES
from circuitspex.report import SECTIONS
from circuitspex.runs import Settings, discover
from circuitspex.tasks import METRICS, TASKS, induction
from circuitspex.tracking import NullTracker, Tracker
from circuitspex.units import REPLACEMENTS, Replacement

# ---- the new files ----


@dataclass(frozen=True, kw_only=True)
class OneByOne(Decoder):
    """Ablates every unit alone; what the intact model loses is its effect."""

    name: ClassVar[str] = "one_by_one"

    scale: Annotated[float, Gt(0)] = 1.0
    """What effects are multiplied with."""

    def _decode(self, meter, rng):
        n_units = meter.n_units
        masks = torch.cat([all_kept(n_units), ablate_only([[i] for i in range(n_units)], n_units)])
        intact, *alone = meter.values(masks).tolist()
        effects = [intact, *(self.scale * (value - intact) for value in alone)]
        return cs.Interactions(
            n_units=n_units,
            units=unit_labels(meter),
            basis="moebius",
            origin="intact",
            keep_rate=self.keep_rate,
            support=((), *((unit,) for unit in range(n_units))),
            coefficients=torch.tensor(effects, dtype=torch.float64),
            n_evaluations=meter.n_evaluations,
            decoder=self.name,
        )


def short_induction(model, n_prompts=16, seed=0):
    """Make an induction task of short patterns only."""
    return replace(induction(model, n_prompts, seed, periods=(6, 8)), name="short_induction")


def answer_logit(logits, targets):
    """Return the correct answer's logit."""
    return logits.gather(1, targets.answers[:, None])[:, 0]


class Twice(Replacement):
    """Ablated activations become twice the counterfactual's."""

    name = "twice"
    one_per_prompt = True

    @classmethod
    def of_prompts(cls, reference, counterfactuals):
        assert counterfactuals is not None
        return cls(cs.resample(counterfactuals).sequences)

    def combine(self, activations):
        return 2 * activations


def motto(findings):
    """Return a section that says what was found in a sentence."""
    return f"<p>{len(findings.interactions.support)} terms of {findings.spec.run_hash}.</p>"


class Diary(NullTracker):
    """Writes down what a run does."""

    def __init__(self):
        self.entries = []

    def start(self, spec):
        self.entries.append(("start", spec.run_hash))

    def finish(self, findings, *, page=None, evaluations=None):
        self.entries.append(("finish", findings.spec.run_hash, page))


class Majority(Game):
    """Won while more than half of all units are kept."""

    def __init__(self, n_units, seed=0):
        self.n_units = n_units

    def truth(self, masks):
        return (masks.sum(dim=1) > self.n_units / 2).double().numpy()


def additive_lens(weights):
    """Look at a weighted sum through numbered units."""
    call = lambda masks: masks.double() @ torch.tensor(weights, dtype=torch.float64)  # noqa: E731
    return cs.lenses.function(call, units=[f"w{i}" for i in range(len(weights))])


# ---- what a new member is known by ----

SMALL = {"units": "heads@1", "n_prompts": 2, "budget": 64}


def run(*arguments: str) -> str:
    """Return what a command prints."""
    result = CliRunner().invoke(app, arguments, catch_exceptions=False, env={"COLUMNS": "160"})
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def extended(monkeypatch) -> None:
    """One line for each new member."""
    monkeypatch.setitem(DECODERS, "one_by_one", OneByOne)
    monkeypatch.setitem(TASKS, "short_induction", short_induction)
    monkeypatch.setitem(METRICS, "answer_logit", answer_logit)
    monkeypatch.setitem(REPLACEMENTS, "twice", Twice)


def test_without_their_lines_none_of_them_is_known():
    for setting in ("decoder", "task", "metric", "ablation"):
        name = {"decoder": "one_by_one", "task": "short_induction", "metric": "answer_logit"}
        with pytest.raises(SettingsError, match=f"there is no {setting}"):
            Settings.from_mapping({setting: name.get(setting, "twice")})


@pytest.mark.usefixtures("extended")
def test_a_decoder_is_known_to_python(toy):
    game = cs.games.additive(6, seed=1)
    found = cs.decoders.get("one_by_one", scale=2.0).decode(game, budget=7, seed=0)
    truth = dict(zip(game.support, game.coefficients.tolist(), strict=True))
    for term, value in zip(found.support, found.coefficients.tolist(), strict=True):
        assert value == pytest.approx(truth[term] * (2.0 if term else 1.0))
    task = cs.tasks.make("short_induction", toy, n_prompts=2)
    with cs.CircuitSpex(toy, task, cs.heads(toy)) as spex:
        found = spex.discover("one_by_one", budget=64, keep_rate=0.9, scale=3.0)
        assert found.units == spex.units.labels
        assert found.coefficients.tolist()[0] == pytest.approx(float(spex(all_kept(spex.n_units))))
        circuit = spex.circuit(found, 2)
        assert spex.verify(circuit).units == circuit.units


@pytest.mark.usefixtures("extended")
def test_a_task_a_metric_and_an_ablation_are_known_to_python(toy):
    task = cs.tasks.make("short_induction", toy, n_prompts=4, seed=1)
    assert (task.name, len(task)) == ("short_induction", 4)
    units = cs.heads(toy)
    nothing = cs.masks.all_ablated(len(units))
    values = {}
    for ablation in ("zero", "twice"):
        with cs.CircuitSpex(toy, task, units, ablation=ablation, metric="answer_logit") as spex:
            values[ablation] = float(spex(nothing))
            assert spex.spec.evaluation["metric"] == "answer_logit"
            assert ablation in str(spex.spec.evaluation["ablation"])
    assert values["zero"] != values["twice"]
    twice = torch.stack([2 * torch.ones(3), torch.zeros(3)])
    assert torch.equal(Twice().combine(twice / 2), twice)


@pytest.mark.usefixtures("extended")
def test_all_of_them_are_known_to_settings_files_runs_and_pages(toy, tmp_path):
    names = {"decoder": "one_by_one", "task": "short_induction"}
    names |= {"metric": "answer_logit", "ablation": "twice"}
    Settings.from_mapping({**SMALL, **names}).save(tmp_path / "mine.yaml")
    settings = Settings.load(tmp_path / "mine.yaml")
    assert {name: getattr(settings, name) for name in names} == names
    found = discover(settings, tmp_path / "run", model=toy)
    assert found.interactions.decoder == "one_by_one"
    assert found.interactions.n_evaluations == 2 * (len(found.interactions.units) + 1)
    page = (tmp_path / "run" / "report.html").read_text()
    for word in ("one_by_one", "short_induction", "answer logit", "twice"):
        assert word in page


@pytest.mark.usefixtures("extended")
def test_all_of_them_are_known_to_the_command_line(tmp_path):
    options = ["--units", "heads@1", "--n-prompts", "2", "--budget", "64"]
    options += ["--decoder", "one_by_one", "--task", "short_induction"]
    options += ["--metric", "answer_logit", "--ablation", "twice", "--out", str(tmp_path)]
    text = run("discover", *options)
    assert "10 evaluations" in text or "evaluations run" in text
    assert "one_by_one" in run("show", str(tmp_path))
    assert "0 evaluations run" in run("discover", *options)


# ---- what a run is shown and recorded by ----


@pytest.fixture
def with_motto():
    """The line for a section; monkeypatch knows no lists."""
    SECTIONS.insert(1, motto)
    yield
    SECTIONS.remove(motto)


@pytest.mark.usefixtures("with_motto")
def test_a_section_is_on_every_page(toy, tmp_path):
    found = discover(Settings.from_mapping(SMALL), tmp_path, model=toy)
    said = motto(found)
    assert said in (tmp_path / "report.html").read_text()
    assert said in found.page(tmp_path / "again.html").read_text()
    assert said in cs.load(tmp_path).page(tmp_path / "loaded.html").read_text()


def test_without_its_line_a_section_is_on_no_page(toy, tmp_path):
    found = discover(Settings.from_mapping(SMALL), tmp_path, model=toy)
    assert motto(found) not in (tmp_path / "report.html").read_text()


def test_a_tracker_is_told_of_every_run(toy, tmp_path):
    diary = Diary()
    assert isinstance(diary, Tracker)
    found = discover(Settings.from_mapping(SMALL), tmp_path, model=toy, tracker=diary)
    run_hash = found.spec.run_hash
    assert diary.entries[0][0] == "start"
    assert diary.entries[-1] == ("finish", run_hash, tmp_path / "report.html")


# ---- games and lenses ----


def test_a_game_is_known_by_its_name(monkeypatch):
    monkeypatch.setitem(GAMES, "majority", Majority)
    game = cs.games.make("majority", n_units=5, seed=0)
    found = cs.decoders.get("exact").decode(game, budget=32, seed=0)
    expected = game.interactions()
    masks = cs.masks.enumerate_masks(5)
    torch.testing.assert_close(found.predict(masks), expected.predict(masks))
    assert expected.to("moebius", "ablated").top(1, min_order=3, max_order=3)[0].coefficient == (
        pytest.approx(1.0)
    )


def test_a_lens_is_decoded_like_a_model(monkeypatch):
    monkeypatch.setitem(LENSES, "additive", additive_lens)
    lens = LENSES["additive"]([1.0, -2.0, 0.5])
    found = cs.decoders.get("exact").decode(lens, budget=8, seed=0).to("moebius", "ablated")
    assert [(t.units, t.coefficient) for t in found.top(2)] == [
        (("w1",), pytest.approx(-2.0)),
        (("w0",), pytest.approx(1.0)),
    ]
