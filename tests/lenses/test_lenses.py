"""The contract of lenses: one suite for all of them, which a new one passes by one line below."""

import numpy as np
import pytest
import torch

import circuitspex as cs
from circuitspex.errors import DecoderError, LensError, MaskError, UnitError
from circuitspex.lenses import LENSES, Lens

LABELS = ("age", "income", "history", "city")


def score(masks):
    age, income, history, city = masks.double().T
    return 1.0 + 2.0 * age - city + 3.0 * (income + history - income * history)


def slopes(masks):
    _, income, history, _ = masks.double().T
    one = torch.ones(len(masks), dtype=torch.float64)
    return torch.stack([2 * one, 3 * (1 - history), 3 * (1 - income), -one], dim=1)


EXAMPLES = {"function": lambda: cs.lenses.function(score, units=LABELS, gradient=slopes)}
"""A lens of every kind; those of models or data come with small ones."""


def test_every_lens_has_an_example():
    assert EXAMPLES.keys() == LENSES.keys()


@pytest.mark.parametrize("name", LENSES)
class TestEveryLens:
    def test_is_a_set_function_with_a_label_for_each_unit(self, name):
        lens = EXAMPLES[name]()
        assert isinstance(lens, Lens)
        assert isinstance(lens, cs.SetFunction)
        assert len(set(lens.units)) == len(lens.units) == lens.n_units
        assert all(isinstance(label, str) for label in lens.units)

    def test_gives_one_finite_value_per_mask_whatever_else_is_asked(self, name):
        lens = EXAMPLES[name]()
        masks = cs.masks.enumerate_masks(lens.n_units)
        before = masks.clone()
        values = lens(masks)
        assert values.shape == (len(masks),)
        assert values.isfinite().all()
        assert values.std() > 0
        assert torch.equal(masks, before)
        torch.testing.assert_close(lens(masks.flip(0)).flip(0), values)
        torch.testing.assert_close(lens(masks[:1]), values[:1])

    @pytest.mark.usefixtures("unchecked")
    def test_refuses_masks_of_other_units(self, name):
        lens = EXAMPLES[name]()
        for wrong in (torch.ones(2, lens.n_units + 1, dtype=torch.bool), torch.ones(lens.n_units)):
            with pytest.raises(MaskError, match=r"masks must (be bool|have shape)"):
                lens(wrong)

    def test_gradients_where_it_has_them_are_of_the_values(self, name):
        lens = EXAMPLES[name]()
        if not isinstance(lens, cs.DifferentiableSetFunction):
            pytest.skip("a lens without gradients")
        masks = cs.masks.enumerate_masks(lens.n_units)
        values, gradients = lens.value_and_gradient(masks)
        torch.testing.assert_close(values, lens(masks))
        assert gradients.shape == masks.shape

    def test_decoded_interactions_carry_its_labels_and_are_verified(self, name):
        lens = EXAMPLES[name]()
        found = cs.decoders.get("exact").decode(lens, budget=2**lens.n_units, seed=0)
        assert found.units == tuple(lens.units)
        torch.testing.assert_close(
            found.predict(cs.masks.enumerate_masks(lens.n_units)),
            lens(cs.masks.enumerate_masks(lens.n_units)).double(),
        )
        verification = cs.verify_interactions(lens, found.to("moebius", "intact"), top=3)
        assert all(label in lens.units for row in verification.checked for label in row.units)
        assert set(verification.verdicts) == {"verified"}

    def test_circuits_of_it_carry_its_labels(self, name):
        lens = EXAMPLES[name]()
        found = cs.decoders.get("exact").decode(lens, budget=2**lens.n_units, seed=0)
        circuit = cs.best_circuit(found, lens.n_units - 1)
        assert set(circuit.units) < set(lens.units)
        report = cs.criteria.verify_circuit(lens, circuit, held_out=False)
        assert report.units == circuit.units
        kept = cs.masks.keep_only([circuit.indices], lens.n_units)
        assert report.circuit == pytest.approx(float(lens(kept)))


# ---- a function ----


@pytest.mark.parametrize("kind", [list, np.asarray, torch.Tensor.float])
def test_a_function_may_return_lists_arrays_and_tensors(kind):
    lens = cs.lenses.function(lambda masks: kind(score(masks)), units=LABELS)
    masks = cs.masks.enumerate_masks(4)
    assert lens(masks).dtype == torch.float64
    torch.testing.assert_close(lens(masks), score(masks))


def test_a_function_has_a_gradient_only_where_one_is_given():
    names = [*LABELS, *map(str, range(20))]  # more units than are decoded from all their masks
    call = lambda masks: score(masks[:, :4])  # noqa: E731
    gradient = lambda masks: torch.nn.functional.pad(slopes(masks[:, :4]), (0, 20))  # noqa: E731
    decoder, plain = cs.decoders.get("gradient", keep_rate=0.9), cs.lenses.function(call, names)
    assert not isinstance(plain, cs.DifferentiableSetFunction)
    with pytest.raises(DecoderError, match="value_and_gradient"):
        decoder.decode(plain, budget=300, seed=0)
    lens = cs.lenses.function(call, names, gradient)
    assert isinstance(lens, cs.DifferentiableSetFunction)
    found = decoder.decode(lens, budget=300, seed=0).to("moebius", "intact")
    pair = found.top(1, min_order=2)[0]
    assert (pair.units, pair.coefficient) == (("income", "history"), pytest.approx(-3.0))


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_function_or_has_no_labels_is_refused():
    for wrong in (score(torch.ones(2, 4)), None):
        with pytest.raises(LensError, match=r"must be functions of keep-masks; got (Tens|None)"):
            cs.lenses.function(wrong, units=LABELS)  # pyright: ignore[reportArgumentType]
    with pytest.raises(LensError, match=r"must be functions of keep-masks; got int"):
        cs.lenses.function(score, LABELS, gradient=1)  # pyright: ignore[reportArgumentType]
    for units in ([], ["age", "age"], "ages"):
        with pytest.raises(UnitError, match=r"different labels, one per unit; got (\[\]|.*age)"):
            cs.lenses.function(score, units=units)


def test_a_function_that_returns_something_else_is_named():
    masks = cs.masks.enumerate_masks(4)
    one = cs.lenses.function(lambda masks: float(masks.sum()), units=LABELS)
    with pytest.raises(LensError, match=r"function must return .* \(16,\); got shape \(\)\. It is"):
        one(masks)
    text = cs.lenses.function(lambda masks: ["high"] * len(masks), units=LABELS)
    with pytest.raises(LensError, match=r"function must return numbers of shape \(16,\); got list"):
        text(masks)
    narrow = cs.lenses.function(score, LABELS, gradient=lambda masks: slopes(masks)[:, :3])
    assert isinstance(narrow, cs.DifferentiableSetFunction)
    with pytest.raises(LensError, match=r"gradient must .* \(16, 4\); got shape \(16, 3\)"):
        narrow.value_and_gradient(masks)
