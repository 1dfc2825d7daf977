"""Prompts with answers: what the built-in tasks promise, and what is refused."""

import re
import sys

import pytest
import torch
from tiny_models import make_tiny, make_tokenizer, words_of
from torch.testing import assert_close

from circuitspex import tasks
from circuitspex.errors import TaskError
from circuitspex.tasks import Task, induction, ioi
from circuitspex.tasks.ioi import FRAMES, NAMES, PLACES, THINGS

FILLED = [
    frame.format(first="", second="", giver="", place=place, thing=thing)
    for frame in FRAMES
    for place in PLACES
    for thing in THINGS
]
SOME_NAMES = NAMES[:12]


def make_reader(names=SOME_NAMES):
    """Return a tiny model whose tokenizer reads the task's sentences, and only these names."""
    words = {*words_of(FILLED), *(f" {name}" for name in names), " New", " York"}
    return make_tiny("gpt2", tokenizer=make_tokenizer(sorted(words)))


@pytest.fixture(scope="module")
def reader():
    return make_reader()


# ---- indirect object identification ----


@pytest.fixture(scope="module")
def ioi_task(reader):
    return ioi(reader, n_prompts=16, seed=0)


def everybody(model, task):
    """Return each prompt's names in order, and its counterfactual's."""
    for tokens, other in zip(task.tokens, task.counterfactuals, strict=True):
        yield tuple(
            re.findall("|".join(NAMES), model.tokenizer.decode(ids)) for ids in (tokens, other)
        )


def test_ioi_asks_for_the_name_that_is_not_repeated(reader, ioi_task):
    parts = zip(everybody(reader, ioi_task), ioi_task.answers, ioi_task.wrong_answers, strict=True)
    for (names, _), answer, wrong in parts:
        assert len(names) == 3
        assert names[2] in names[:2], "the giver was named before"
        (other,) = {*names[:2]} - {names[2]}
        assert reader.tokenizer.decode(answer) == f" {other}"
        assert [reader.tokenizer.decode(token) for token in wrong] == [f" {names[2]}"]


def test_ioi_strata_say_the_order_of_names_and_are_balanced(reader, ioi_task):
    for (names, _), stratum in zip(everybody(reader, ioi_task), ioi_task.strata, strict=True):
        assert stratum == ("ABBA" if names[1] == names[2] else "BABA")
    for task in (ioi_task, ioi_task.held_out):
        assert task.strata.count("ABBA") == task.strata.count("BABA") == 8
        for stratum in ("ABBA", "BABA"):
            begins = [
                t.split()[0] for t, s in zip(task.texts, task.strata, strict=True) if s == stratum
            ]
            assert {begins.count(begin) for begin in set(begins)} == {2}, "frames take turns"


def test_ioi_counterfactuals_name_three_other_people(reader, ioi_task):
    assert len(ioi_task.counterfactuals) == 16
    for names, others in everybody(reader, ioi_task):
        assert len({*others}) == 3
        assert not {*others} & {*names}
    for tokens, other in zip(ioi_task.tokens, ioi_task.counterfactuals, strict=True):
        assert len(tokens) == len(other)
        assert int((tokens != other).sum()) == 3, "nothing but the names differs"


def test_ioi_uses_only_names_the_tokenizer_knows_as_one_token(reader, ioi_task):
    used = {name for pair in everybody(reader, ioi_task) for names in pair for name in names}
    assert used <= {*SOME_NAMES}
    assert len(used) > 6
    unknown = reader.tokenizer.unk_token_id
    everything = torch.cat([*ioi_task.tokens, *ioi_task.counterfactuals])
    assert unknown not in everything


def test_ioi_holds_out_other_prompts(ioi_task):
    assert len(ioi_task.held_out) == 16
    assert len({*ioi_task.texts, *ioi_task.held_out.texts}) == 32
    assert ioi_task.held_out.held_out is None


def test_a_seed_repeats_a_task(reader, ioi_task):
    again = ioi(reader, n_prompts=16, seed=0)
    assert again.digest == ioi_task.digest
    assert again.held_out is not None
    assert again.held_out.digest == ioi_task.held_out.digest
    assert ioi(reader, n_prompts=16, seed=1).digest != ioi_task.digest


def test_ioi_leaves_the_global_random_state_alone(reader):
    before = torch.random.get_rng_state()
    ioi(reader, n_prompts=2, seed=0)
    assert_close(torch.random.get_rng_state(), before, rtol=0, atol=0)


@pytest.mark.parametrize("prepend_bos", [True, False])
def test_bos_is_put_in_front_where_asked(reader, prepend_bos):
    task = ioi(reader, n_prompts=2, seed=0, prepend_bos=prepend_bos)
    assert task.counterfactuals is not None
    starts = {int(tokens[0]) for tokens in (*task.tokens, *task.counterfactuals)}
    assert (starts == {reader.tokenizer.bos_token_id}) == prepend_bos
    assert task.prepend_bos is prepend_bos
    assert task.describe()["prepend_bos"] is prepend_bos


def test_the_models_own_bos_is_the_default(reader):
    assert ioi(reader, n_prompts=2).prepend_bos is bool(reader.cfg.default_prepend_bos)


def test_too_few_names_are_refused():
    with pytest.raises(TaskError, match=r"at least 6 names that are single tokens.*it has 5"):
        ioi(make_reader(NAMES[:5]), n_prompts=2)


def test_more_prompts_than_there_are_are_refused(reader, monkeypatch):
    module = sys.modules["circuitspex.tasks.ioi"]  # the package's name for it is the function
    monkeypatch.setattr(module, "NAMES", NAMES[:6])
    monkeypatch.setattr(module, "FRAMES", FRAMES[:1])
    monkeypatch.setattr(module, "PLACES", PLACES[:1])
    monkeypatch.setattr(module, "THINGS", THINGS[:1])
    # 6 × 5 orders of two names, each in two templates; templates take turns.
    assert len(ioi(reader, n_prompts=30)) == 30
    with pytest.raises(TaskError, match="only 60 different IOI prompts could be made of 62"):
        ioi(reader, n_prompts=31)


def test_text_needs_a_tokenizer(toy):
    with pytest.raises(TaskError, match=r"has no tokenizer; use cs\.tasks\.induction"):
        ioi(toy)


# ---- induction ----


def period_of(task, row):
    return int(task.strata[row].removeprefix("period "))


@pytest.mark.parametrize("seed", [0, 1])
def test_induction_repeats_a_pattern_of_different_tokens(toy, seed):
    task = induction(toy, n_prompts=12, seed=seed)
    assert {period_of(task, row) for row in range(12)} <= set(range(6, 15))
    for row, tokens in enumerate(task.tokens):
        period, behind_bos = period_of(task, row), tokens[1:].tolist()
        assert tokens[0] == 0
        assert len(tokens) == 32
        pattern = behind_bos[:period]
        assert len({*pattern}) == period
        assert 0 not in pattern
        assert all(token == pattern[i % period] for i, token in enumerate(behind_bos))
        assert task.answers[row] == behind_bos[len(behind_bos) - period], "one period back"
        assert {*task.wrong_answers[row]} == {*pattern} - {task.answers[row]}
    assert task.prepend_bos


def test_inductions_counterfactuals_do_not_repeat(toy):
    task = induction(toy, n_prompts=12, seed=0)
    assert task.counterfactuals is not None
    for row, other in enumerate(task.counterfactuals):
        assert len(other) == len(task.tokens[row])
        assert other[0] == 0
        period = period_of(task, row)
        repeats = (other[1 + period :] == other[1:-period]).float().mean()
        assert repeats < 0.5


def test_induction_holds_out_other_prompts_and_repeats_by_seed(toy):
    task = induction(toy, n_prompts=6, seed=3)
    assert task.held_out is not None
    assert not {*task.texts} & {*task.held_out.texts}
    assert induction(toy, n_prompts=6, seed=3).digest == task.digest
    assert induction(toy, n_prompts=6, seed=4).digest != task.digest


def test_induction_asks_a_model_for_what_it_was_trained_on(toy_redundant):
    assert {*induction(toy_redundant, n_prompts=4).strata} == {"period 16"}
    assert {*induction(toy_redundant, n_prompts=4, periods=(5, 5)).strata} == {"period 5"}


def test_induction_runs_on_a_model_with_a_tokenizer(reader):
    task = induction(reader, n_prompts=3, n_tokens=20)
    special = {*reader.tokenizer.all_special_ids}
    for tokens in task.tokens:
        assert tokens[0] == reader.tokenizer.bos_token_id
        assert not special & {*tokens[1:].tolist()}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"periods": (1, 3)}, r"periods must satisfy 2 ≤ low ≤ high < 31; got \(1, 3\)"),
        ({"periods": (6, 5)}, r"got \(6, 5\)"),
        ({"periods": (6, 31)}, r"got \(6, 31\)"),
        ({"n_tokens": 33}, "prompts of 34 tokens do not fit the model's context of 33"),
        ({"n_tokens": 10}, r"high < 10; got \(6, 14\)"),
    ],
)
def test_impossible_inductions_are_refused(toy, options, words):
    with pytest.raises(TaskError, match=words):
        induction(toy, **options)


def test_a_vocabulary_too_small_for_the_period_is_refused(gpt2):
    with pytest.raises(TaskError, match="a period of 37 needs as many tokens; there are 36"):
        induction(gpt2, periods=(37, 37), n_tokens=40)


# ---- anybody's own prompts ----


def test_prompts_become_tokens(reader):
    bos = reader.tokenizer.bos_token_id
    one = reader.tokenizer(" book", add_special_tokens=False)["input_ids"]
    task = Task.from_prompts(
        reader,
        [" book to", torch.tensor([5, 6, 7]), [8, 9]],
        [" Emma", 3, " David"],
        [" David", [4, " Emma"], (" Emma", 5, 6)],
        prepend_bos=True,
    )
    assert task.tokens[0].tolist()[:2] == [bos, *one]
    assert task.tokens[1].tolist() == [5, 6, 7], "token ids are taken as they are"
    assert task.tokens[2].tolist() == [8, 9]
    emma, david = (
        reader.tokenizer(name, add_special_tokens=False)["input_ids"][0]
        for name in (" Emma", " David")
    )
    assert task.answers == (emma, 3, david)
    assert task.wrong_answers == ((david,), (4, emma), (emma, 5, 6))
    wrong, real = task.wrong_table
    assert wrong.tolist() == [[david, 0, 0], [4, emma, 0], [emma, 5, 6]]
    assert real.sum(dim=1).tolist() == [1, 2, 3]
    assert task.texts[0] == " book to"
    assert task.lengths_text == "2–3"
    assert repr(task) == "Task('prompts', 3 prompts of 2–3 tokens)"


def test_token_ids_alone_need_no_tokenizer(toy):
    task = Task.from_prompts(toy, [[0, 1, 2]], [3], [4])
    assert task.texts == ("0 1 2",)
    assert task.prepend_bos is False, "nothing was put in front of token ids"


def make(model, **changes):
    parts = {"prompts": [[1, 2], [3, 4]], "answers": [5, 6], "wrong_answers": [6, 5]}
    return Task.from_prompts(model, **{**parts, **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"answers": [" New York", 6]},
            r"' New York' is 2 tokens \[' New', ' York'\]; it must be one",
        ),
        ({"wrong_answers": [6, " New York"]}, r"' New York' is 2 tokens"),
        ({"answers": ["book,", 6]}, r"need a leading space: ' book,'"),
        ({"answers": [" Zanzibar", 6]}, r"' Zanzibar' is not in the vocabulary"),
        ({"answers": ["", 6]}, r"'' is 0 tokens"),
        ({"answers": [10_000, 6]}, r"token id 10000 is outside the vocabulary 0\.\."),
        ({"answers": [-1, 6]}, r"token id -1 is outside the vocabulary"),
        ({"answers": [5]}, r"got 2 prompts, 1 answers, 2 wrong_answers, 2 texts, 2 strata"),
        ({"wrong_answers": [6]}, r"2 answers, 1 wrong_answers"),
        ({"strata": ["a"]}, r"2 texts, 1 strata"),
        ({"counterfactuals": [[1, 2]]}, r"2 strata, 1 counterfactuals"),
        (
            {"counterfactuals": [[1, 2], [3, 4, 5]]},
            r"counterfactual 1 has 3 tokens and its prompt 2",
        ),
        (
            {"prompts": [], "answers": [], "wrong_answers": []},
            r"at least one prompt.*got 0 prompts",
        ),
        ({"prompts": [[1, 2], []]}, r"a prompt needs at least one token; got \[\]"),
        ({"wrong_answers": [6, 6]}, r"prompt 1 needs incorrect answers that differ.*got answer 6"),
        ({"wrong_answers": [[], 5]}, r"prompt 0 needs incorrect answers.*wrong answers \[\]"),
    ],
)
def test_prompts_and_answers_that_make_no_task_are_refused(reader, changes, words):
    with pytest.raises(TaskError, match=words):
        make(reader, **changes)


@pytest.mark.parametrize("changes", [{"prompts": ["a b", [1, 2]]}, {"answers": [" Emma", 6]}])
def test_text_for_a_model_without_tokenizer_is_refused(toy, changes):
    with pytest.raises(TaskError, match=r"has no tokenizer to read '.*'; give token ids instead"):
        make(toy, **changes)


# ---- tasks as values ----


def test_a_subset_keeps_everything_of_its_prompts(toy):
    task = induction(toy, n_prompts=6, seed=0)
    part = task.subset([4, 1])
    assert task.counterfactuals is not None
    assert part.counterfactuals is not None
    for new, old in enumerate([4, 1]):
        assert_close(part.tokens[new], task.tokens[old], rtol=0, atol=0)
        assert_close(part.counterfactuals[new], task.counterfactuals[old], rtol=0, atol=0)
        for name in ("answers", "wrong_answers", "texts", "strata"):
            assert getattr(part, name)[new] == getattr(task, name)[old]
    assert part.held_out is task.held_out


def test_a_split_sets_the_last_prompts_aside(toy):
    task = induction(toy, n_prompts=6, seed=0)
    part = task.split(2)
    assert part.texts == task.texts[:4]
    assert part.held_out is not None
    assert part.held_out.texts == task.texts[4:]
    assert part.held_out.held_out is None


@pytest.mark.parametrize("n_held_out", [0, 6, -1])
def test_a_split_leaves_prompts_on_both_sides(toy, n_held_out):
    with pytest.raises(TaskError, match=r"6 prompts cannot be split.*hold out 1 to 5"):
        induction(toy, n_prompts=6).split(n_held_out)


def test_the_digest_knows_everything_that_decides_values(gpt2):
    base = make(gpt2, counterfactuals=[[7, 8], [9, 9]])
    others = [
        make(gpt2, counterfactuals=[[7, 8], [9, 9]], prompts=[[1, 2], [3, 5]]),
        make(gpt2, counterfactuals=[[7, 8], [9, 9]], answers=[5, 7]),
        make(gpt2, counterfactuals=[[7, 8], [9, 9]], wrong_answers=[6, 4]),
        make(gpt2, counterfactuals=[[7, 8], [9, 8]]),
        make(gpt2),
        base.subset([1, 0]),
    ]
    digests = [task.digest for task in (base, *others)]
    assert len({*digests}) == len(digests)
    assert make(gpt2, counterfactuals=[[7, 8], [9, 9]], strata=["a", "b"]).digest == base.digest


def test_tasks_are_made_by_name(toy, reader):
    assert tasks.make("induction", toy, n_prompts=2, seed=5).digest == induction(toy, 2, 5).digest
    assert tasks.make("ioi", reader, n_prompts=2, seed=5).digest == ioi(reader, 2, 5).digest


def test_a_misspelt_task_is_refused_with_a_guess(toy):
    with pytest.raises(TaskError, match=r"no task 'inductoin'; choose.*mean 'induction'\?"):
        tasks.make("inductoin", toy)
    with pytest.raises(TaskError, match=r"there is no task 'xyz'; choose one of [\w, ]+\.$"):
        tasks.make("xyz", toy)
