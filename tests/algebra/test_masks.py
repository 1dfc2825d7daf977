import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from circuitspex import masks as m
from circuitspex._shared import check_masks
from circuitspex.errors import MaskError


def random_masks(seed, rows, n_units):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, n_units, generator=generator) < 0.5


def assert_equal(actual, expected):
    torch.testing.assert_close(actual, expected)


def test_true_means_kept():
    assert_equal(m.all_kept(2), torch.tensor([[True, True]]))
    assert_equal(m.all_ablated(2), torch.tensor([[False, False]]))
    assert_equal(m.keep_only([[2, 0], []], 3), torch.tensor([[True, False, True], [False] * 3]))
    assert_equal(m.ablate_only([[2, 0]], 3), torch.tensor([[False, True, False]]))


@pytest.mark.parametrize("outside", [[-1], [3], [0, 3]])
def test_a_unit_outside_is_refused(outside):
    with pytest.raises(MaskError, match=r"must lie in 0\.\.2; got"):
        m.keep_only([outside], 3)


def test_index_bits_are_units():
    table = m.enumerate_masks(5)
    assert table.shape == (32, 5)
    for index, row in enumerate(table):
        assert sum(2**i for i in range(5) if row[i]) == index
    assert_equal(m.enumerate_masks(0), torch.zeros(1, 0, dtype=torch.bool))


def test_too_many_units_to_enumerate():
    with pytest.raises(MaskError, match="at most 24 units can be enumerated"):
        m.enumerate_masks(25)


@given(seed=st.integers(0, 2**32), rows=st.integers(0, 5), n_units=st.integers(1, 40))
def test_packing_is_undone_by_unpacking(seed, rows, n_units):
    masks = random_masks(seed, rows, n_units)
    packed = m.pack(masks)
    assert packed.shape == (rows, -(-n_units // 8))
    assert_equal(m.unpack(packed, n_units), masks)


def test_first_unit_is_the_highest_bit():
    assert m.pack(m.keep_only([[0], [7], [8]], 9)).tolist() == [[128, 0], [1, 0], [0, 128]]


def test_packed_bytes_must_fit_the_units():
    with pytest.raises(MaskError, match="9 units pack into 2 bytes; got 1"):
        m.unpack(m.pack(m.all_kept(8)), 9)


def test_digests_tell_masks_apart_and_never_change():
    digests = m.digest(m.enumerate_masks(8))
    assert len(set(digests)) == 256
    assert {len(digest) for digest in digests} == {16}
    # stored evaluations are found by this on other machines and in later versions
    assert digests[1].hex() == "ac69880be8c04c40e2fe726341145871"


@pytest.mark.parametrize(
    ("given_masks", "message"),
    [
        ([[True]], r"must be a torch bool tensor of shape \(masks, 1\).*got list"),
        (torch.ones(1, 1), r"must be bool, True = kept; got dtype torch\.float32"),
        (torch.ones(1, dtype=torch.bool), r"needs mask\[None, :\]"),
        (m.all_kept(2), r"must have shape \(masks, 1\).*got \(1, 2\)"),
    ],
)
def test_what_is_no_mask_is_refused(given_masks, message):
    with pytest.raises(MaskError, match=message):
        check_masks(given_masks, 1)


def test_masks_pass_the_check_unchanged():
    masks = m.all_kept(3)
    assert check_masks(masks, 3) is masks
