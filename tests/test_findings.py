"""What one run found: its terms, and that it can be saved, loaded, compared and shown."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from found import (
    HEADS,
    findings,
    make_circuit,
    make_interactions,
    make_report,
    make_spec,
    make_verified,
)

import circuitspex as cs
from circuitspex.errors import ResultError
from circuitspex.findings import SUMMARY, read_summary


def joint(found: cs.Findings) -> list[cs.Term]:
    return [term for term in found.terms if term.order > 1]


# Terms


def test_rows_rank_by_size_with_interval_and_kind():
    rows = joint(findings())
    assert [row.units for row in rows] == [
        ("L0H0", "L1H1"),
        ("L0H1", "L2H1"),
        ("L0H0", "L0H1", "L2H0"),
        ("L1H0", "L1H1", "L2H0", "L2H1"),
    ]
    assert [row.kind for row in rows] == ["redundant", "synergistic", None, "synergistic"]
    first = rows[0]
    assert (first.indices, first.order, first.coefficient) == ((0, 3), 2, -2.0)
    assert first.interval == pytest.approx((-2.196, -1.804), abs=1e-3)


def test_rows_are_the_same_from_any_basis():
    from_fourier = findings(make_interactions().to("fourier"))
    for row, other in zip(findings().terms, from_fourier.terms, strict=True):
        assert row.units == other.units
        assert row.coefficient == pytest.approx(other.coefficient)
        assert row.average == pytest.approx(other.average)


def test_the_fourier_column_is_the_one_at_the_keep_rate():
    interactions = make_interactions(terms={(0, 1): 2.0})
    (row,) = findings(interactions).terms
    # Ablated indicators are -sqrt(p q) χ + q, so a pair's coefficient is θ p q.
    assert row.average == pytest.approx(2.0 * 0.9 * 0.1)


def test_without_errors_there_is_no_interval():
    row = findings(make_interactions(std_error=None)).terms[0]
    assert (row.std_error, row.interval) == (None, None)
    assert row.is_clear


def test_what_was_verified_comes_first_and_what_was_measured_counts():
    rows = joint(findings(verification=make_verified()))
    assert [row.indices for row in rows] == [(0, 1, 4), (1, 5), (0, 3), (2, 3, 4, 5)]
    assert [row.effect for row in rows] == [0.625, 0.5, -0.125, 0.25]
    assert [row.coefficient for row in rows] == [0.75, 1.5, -2.0, 0.25]
    assert [row.kind for row in rows] == [None, "synergistic", None, "synergistic"]
    assert [row.verdict for row in rows] == ["verified", "verified", "refuted", "not checked"]


def test_the_kind_is_that_of_the_measured_sign():
    verified = make_verified(
        verdicts=("undecided", "verified", "verified", "not checked"),
        measured=(0.25, 0.5, 0.625, None),
    )
    rows = joint(findings(verification=verified))
    assert {row.indices: row.kind for row in rows}[0, 3] == "synergistic"


@pytest.mark.parametrize("fields", [{"around": "contexts"}, {"units": HEADS[::-1]}])
def test_a_verification_of_something_else_is_refused(fields):
    with pytest.raises(ResultError, match="measured around the intact model, of the same 6 units"):
        findings(verification=make_verified(**fields))


def test_units_of_the_same_label_are_told_apart():
    words = ("the", "cat", "the")
    interactions = make_interactions(words, {(0, 1): 1.0, (1, 2): -2.0})
    first, second = findings(interactions).terms
    assert (first.indices, second.indices) == ((1, 2), (0, 1))
    assert first.average == pytest.approx(-2 * (second.average or 0.0))


def test_terms_are_made_once():
    found = findings(verification=make_verified())
    assert found.terms is found.terms
    assert found.intact is found.intact
    assert found.interactions.terms is found.interactions.terms


def test_a_verification_of_nothing_is_no_verdict():
    nothing = make_verified(
        verdicts=("not checked",) * 4, measured=(None,) * 4, prompt_values=(None,) * 4
    )
    assert {term.verdict for term in findings(verification=nothing).terms} == {None}
    assert {term.verdict for term in findings().terms} == {None}


def test_the_table_is_that_of_the_terms():
    found = findings(verification=make_verified())
    table = found.to_dataframe()
    assert table.units.tolist() == [term.label for term in found.terms]
    assert table.verdict.tolist()[:3] == ["verified", "verified", "refuted"]
    assert table.measured.tolist()[:3] == [0.625, 0.5, -0.125]
    assert table.measured_std_error.tolist()[:3] == [0.125, 0.1, 0.25]
    assert table.coefficient.tolist()[:3] == [0.75, 1.5, -2.0]
    assert set(table.basis) == {"moebius"}
    assert "verdict" not in findings().to_dataframe().columns


def test_findings_read_well():
    assert repr(whole()) == (
        "Findings(6 interactions, 2 verified, circuit of 3 of 6 units, faithfulness 0.700)"
    )
    assert repr(findings()) == "Findings(6 interactions)"
    assert str(whole()) == f"{make_verified()}\n{make_report()}"
    assert str(findings()) == str(make_interactions())


# Files


def whole(**found: Any) -> cs.Findings:
    given = {
        "verification": make_verified(),
        "circuit": make_circuit(),
        "criteria": make_report(),
        "n_evaluated": 1264,
        "n_replayed": 96,
        "seconds": 2.5,
    }
    return findings(**given | found)


def test_findings_come_back_as_they_were_saved(tmp_path: Path):
    found = whole()
    found.save(tmp_path / "a" / "b")
    read = cs.load(tmp_path / "a" / "b")
    for name in ("spec", "verification", "circuit", "criteria"):
        assert getattr(read, name) == getattr(found, name)
    assert (read.n_evaluated, read.n_replayed, read.seconds) == (1264, 96, 2.5)
    assert read.terms == found.terms
    assert read.scalars == found.scalars
    assert found.differences(read) == {}
    assert read_summary(tmp_path / "a" / "b")["run_id"] == found.spec.run_hash


def test_findings_without_a_circuit_come_back_too(tmp_path: Path):
    whole().save(tmp_path)
    findings().save(tmp_path)  # of the earlier ones nothing is left
    read = cs.Findings.load(tmp_path)
    assert (read.verification, read.circuit, read.criteria) == (None, None, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "interactions.json", "spec.json", "summary.json",
    ]  # fmt: skip


def test_parts_alone_do_not_say_that_a_run_is_done(tmp_path: Path):
    whole().save(tmp_path)
    whole().save_parts(tmp_path)
    assert not (tmp_path / SUMMARY).exists()
    assert cs.load(tmp_path).n_evaluated == 0


@pytest.mark.parametrize("part", ["spec.json", "interactions.json", "circuit.json"])
def test_half_a_run_is_named(tmp_path: Path, part: str):
    whole().save(tmp_path)
    (tmp_path / part).unlink()
    with pytest.raises(ResultError, match=rf"no finished run: {part} missing"):
        cs.load(tmp_path)


def test_a_damaged_summary_is_refused(tmp_path: Path):
    whole().save(tmp_path)
    (tmp_path / SUMMARY).write_text("{}")
    with pytest.raises(ResultError, match=r"summary\.json must be of format"):
        cs.load(tmp_path)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultError, match=r"file cannot be made.*Choose another folder"):
        whole().save(tmp_path / "file")


def test_differences_are_those_of_settings_and_of_numbers():
    found = whole()
    spec = make_spec(metric="negative_kl")
    other = replace(found, spec=spec, criteria=make_report(faithfulness=0.5), circuit=None)
    assert found.differences(other) == {
        "evaluation.metric": ("logit_difference", "negative_kl"),
        "circuit/n_units": (3.0, None),
        "eval/faithfulness": (0.7, 0.5),
    }


def test_the_page_is_made_from_python(tmp_path: Path):
    path = whole().page(tmp_path / "ioi.html")
    assert path == tmp_path / "ioi.html"
    assert "L0H0 + L0H1 + L2H0" in path.read_text()
