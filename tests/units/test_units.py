"""What can be named, joined, read back and refused."""

import pytest

from circuitspex.errors import UnitError
from circuitspex.units import (
    MLP,
    AttentionLayer,
    Head,
    Neuron,
    NeuronBlock,
    UnitSet,
    attention_layers,
    check_units,
    heads,
    mlps,
    neuron_blocks,
    neurons,
    parse_unit,
    parse_units,
)

LABELS = {
    "L3H1": Head(3, 1),
    "L0N17": Neuron(0, 17),
    "L12N0-63": NeuronBlock(12, 0, 64),
    "L3N5-5": NeuronBlock(3, 5, 6),
    "L3attn": AttentionLayer(3),
    "L3mlp": MLP(3),
}


@pytest.mark.parametrize(("label", "unit"), LABELS.items())
def test_labels_are_read_back(label, unit):
    assert str(unit) == label
    assert parse_unit(label) == unit


@pytest.mark.parametrize("label", ["", "H1", "L3", "L3h1", "l3H1", "L3H1 ", "L3H-1", "L3N1-", "x"])
def test_what_is_no_label_is_refused(label):
    with pytest.raises(UnitError, match=r"is not the label of a unit.*L3H1 \(head\)"):
        parse_unit(label)


def test_choosers_go_layer_by_layer(gpt2):
    n_heads, d_mlp = 4, 64
    assert heads(gpt2).labels == tuple(f"L{i}H{h}" for i in range(2) for h in range(n_heads))
    assert neurons(gpt2).labels == tuple(f"L{i}N{n}" for i in range(2) for n in range(d_mlp))
    assert neurons(gpt2, layers=[1], indices=[9, 2]).labels == ("L1N9", "L1N2")
    assert attention_layers(gpt2).labels == ("L0attn", "L1attn")
    assert mlps(gpt2, layers=[1]).labels == ("L1mlp",)
    assert heads(gpt2, layers=[1]).labels == ("L1H0", "L1H1", "L1H2", "L1H3")


def test_blocks_cover_every_neuron_once(gpt2):
    blocks = neuron_blocks(gpt2, size=24)
    assert blocks.labels[:3] == ("L0N0-23", "L0N24-47", "L0N48-63")
    covered = [(unit.layer, i) for unit in blocks for i in unit.span or ()]
    assert covered == [(layer, i) for layer in range(2) for i in range(64)]


def test_grouped_queries_give_query_heads():
    from conftest import shared_tiny

    llama = shared_tiny("llama-grouped")
    assert llama.cfg.n_key_value_heads == 2
    assert len(heads(llama)) == 2 * 4


def test_sets_join_slice_and_compare(gpt2):
    both = heads(gpt2) + mlps(gpt2)
    assert both.labels == heads(gpt2).labels + mlps(gpt2).labels
    assert both[8] == MLP(0)
    assert both[6:9] == UnitSet([Head(1, 2), Head(1, 3), MLP(0)])
    assert hash(both[:8]) == hash(heads(gpt2))
    assert both != heads(gpt2)
    assert MLP(1) in both
    assert both.index(MLP(1)) == 9
    assert repr(both) == "UnitSet(10 units: L0H0, L0H1, L0H2, L0H3, …)"


@pytest.mark.parametrize(
    "units",
    [
        [Head(0, 1), Head(0, 1)],
        [NeuronBlock(0, 0, 4), Neuron(0, 3)],
        [NeuronBlock(0, 0, 4), NeuronBlock(0, 3, 6)],
        [MLP(1), AttentionLayer(1), MLP(1)],
    ],
)
def test_overlapping_units_are_refused(units):
    with pytest.raises(UnitError, match=f"{units[-1]} and {units[0]} overlap at {units[0].hook}"):
        UnitSet(units)


def test_units_at_different_hooks_do_not_overlap():
    # Whole layers and their parts may be ablated separately: they sit at different hooks.
    assert len(UnitSet([Head(0, 0), AttentionLayer(0), Neuron(0, 0), MLP(0), Head(1, 0)])) == 5


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("heads@1", ["L1H0", "L1H1", "L1H2", "L1H3"]),
        ("attention + mlps", ["L0attn", "L1attn", "L0mlp", "L1mlp"]),
        ("mlps@1,0", ["L1mlp", "L0mlp"]),
        ("mlps@0-1", ["L0mlp", "L1mlp"]),
        ("blocks@0", ["L0N0-63"]),
        ("blocks32@1", ["L1N0-31", "L1N32-63"]),
    ],
)
def test_choices_are_read_as_the_command_line_writes_them(gpt2, text, labels):
    assert list(parse_units(text, gpt2).labels) == labels


def test_neurons_are_read_too(gpt2):
    assert parse_units("neurons@1", gpt2) == neurons(gpt2, layers=[1])


@pytest.mark.parametrize(
    "text", ["", "head", "heads@", "heads@1-", "heads4", "heads++mlps", "blocksx"]
)
def test_what_is_no_choice_is_refused(gpt2, text):
    with pytest.raises(UnitError, match="names no units; write heads, neurons, blocks"):
        parse_units(text, gpt2)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda m: heads(m, layers=[0, 2]), r"the model has layers 0\.\.1; got \[2\]"),
        (lambda m: heads(m, layers=[-1]), r"the model has layers 0\.\.1; got \[-1\]"),
        (lambda m: neurons(m, indices=[0, 64]), r"neurons must lie in 0\.\.63; got \[0, 64\]"),
        (lambda m: neuron_blocks(m, size=0), "at least one neuron; got size=0"),
        (lambda m: parse_units("blocks0", m), "at least one neuron; got size=0"),
        (lambda m: parse_units("heads@7", m), r"the model has layers 0\.\.1; got \[7\]"),
    ],
)
def test_what_the_model_lacks_cannot_be_chosen(gpt2, make, words):
    with pytest.raises(UnitError, match=words):
        make(gpt2)


@pytest.mark.parametrize(
    ("unit", "words"),
    [
        (Head(0, 4), r"L0H4 does not exist: layer 0 has heads 0\.\.3"),
        (Head(2, 0), r"the model has layers 0\.\.1; got \[2\]"),
        (Neuron(1, 64), r"L1N64 does not exist: layer 1 has neurons 0\.\.63"),
        (NeuronBlock(1, 60, 65), r"L1N60-64 does not exist: layer 1 has neurons 0\.\.63"),
        (NeuronBlock(1, 5, 5), r"does not exist"),
    ],
)
def test_units_the_model_lacks_are_refused(gpt2, unit, words):
    with pytest.raises(UnitError, match=words):
        check_units(UnitSet([Head(0, 0), unit]), gpt2)


def test_no_units_are_refused(gpt2):
    with pytest.raises(UnitError, match="there are no units to ablate; pass at least one"):
        check_units(UnitSet([]), gpt2)


@pytest.mark.parametrize("choose", [neurons, neuron_blocks, mlps])
def test_a_model_without_mlps_says_so(toy, choose):
    with pytest.raises(UnitError, match="the model has no MLPs; choose heads"):
        choose(toy)
    with pytest.raises(UnitError, match="the model has no MLPs; choose heads"):
        check_units(UnitSet([Neuron(0, 0)]), toy)
