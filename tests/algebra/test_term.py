"""One interaction and the one way it is written."""

import pandas as pd
import pytest

from circuitspex.algebra import Measured, Term, as_columns, as_text, number, to_dataframe

PAIR = Term(("L0H0", "L1H1"), (0, 3), "moebius", "intact", -2.0, 0.1, (-2.196, -1.804), 0.01)
TRIPLE = Term(("a", "b", "c"), (0, 1, 2), "moebius", "intact", 0.5)
MEASURED = Measured(-1.328, 0.206, (-1.8, -0.9), 0.001, (-1.5, -1.156))
CHECKED = PAIR._replace(measured=MEASURED, verdict="verified", significant=True, average=0.02)


@pytest.mark.parametrize(
    ("value", "text"),
    [(-0.25, "−0.250"), (1.0, "1.000"), (-0.0001, "0.000"), (0.0, "0.000"), (None, "–")],
)
def test_numbers_have_a_true_minus_and_no_negative_zero(value, text):
    assert number(value) == text


def test_every_word_of_a_term():
    assert CHECKED.words() == {
        "units": "L0H0 + L1H1",
        "order": "2",
        "kind": "redundant",
        "coefficient": "−2.000",
        "estimate": "−2.000 ± 0.100 ★",
        "interval": "−2.196 … −1.804 ★",
        "average": "0.020",
        "measured": "−1.328 ± 0.206",
        "verdict": "verified",
    }
    bare = TRIPLE.words()
    nothing = {"kind": "–", "interval": "–", "average": "–", "measured": "–"}
    assert bare | nothing | {"verdict": "not checked", "estimate": "0.500"} == bare


def test_a_term_reads_well():
    assert str(PAIR) == "L0H0 + L1H1: −2.000, 95 % interval −2.196 … −1.804, redundant"
    assert repr(TRIPLE) == "Term(a + b + c: 0.500, moebius at intact)"
    said = "L0H0 + L1H1: −1.328 ± 0.206 verified, estimate −2.000, 95 % interval"
    assert str(CHECKED).startswith(said)


def test_what_was_measured_counts_and_what_was_refuted_has_no_kind():
    opposite = PAIR._replace(measured=Measured(0.5), verdict="undecided")
    assert (opposite.effect, opposite.kind) == (0.5, "synergistic")
    assert opposite._replace(verdict="refuted").kind is None
    assert PAIR.kind == "redundant"
    assert TRIPLE.kind is None
    assert PAIR._replace(basis="fourier", origin=None).kind is None


def test_an_interval_that_holds_zero_is_not_clear():
    assert PAIR.is_clear
    assert TRIPLE.is_clear
    assert not PAIR._replace(interval=(-1.0, 0.0)).is_clear
    assert not PAIR._replace(interval=(0.0, 1.0)).is_clear


def test_columns_say_nothing_only_where_they_must():
    always = ["units", "order", "coefficient", "std_error", "low", "high"]
    assert list(as_columns([])) == [*always, "basis"]
    assert list(as_columns([TRIPLE])) == [*always, "basis", "origin"]
    assert list(as_columns([PAIR, TRIPLE])) == [*always, "p_value", "kind", "basis", "origin"]
    unchecked = as_columns([TRIPLE._replace(verdict="not checked")])
    assert unchecked["measured"] == unchecked["measured_p_value"] == [None]


def test_the_table_has_numbers_where_numbers_are_missing():
    table = to_dataframe([CHECKED, TRIPLE._replace(verdict="not checked")])
    assert table.measured[0] == -1.328
    assert (table.measured_low[0], table.measured_high[0]) == (-1.8, -0.9)
    for name in ("std_error", "low", "p_value", "average", "measured", "measured_p_value"):
        assert pd.api.types.is_float_dtype(table[name]), name
        assert table[name].isna().tolist()[1], name


def test_lines_are_aligned_and_the_rest_is_counted():
    headings = {"units": "units", "coefficient": "estimate", "verdict": "verdict"}
    assert as_text([CHECKED, TRIPLE, TRIPLE], headings, "nothing", n_shown=2).splitlines() == [
        "units        estimate  verdict",
        "L0H0 + L1H1    −2.000  verified",
        "a + b + c       0.500  not checked",
        "and 1 more",
    ]
    assert as_text([], headings, "nothing") == "nothing"
