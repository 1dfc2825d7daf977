"""Loading models, refusing what is none, and telling models apart."""

import os
import shutil
import struct

import pytest
import torch
from slow_truth import random_tokens
from tiny_models import make_hf_model, make_tiny, make_tokenizer
from torch.testing import assert_close

from circuitspex import models
from circuitspex.errors import MissingExtraError, ModelError
from circuitspex.models import describe_model
from circuitspex.models.loading import check_gguf
from circuitspex.models.toys import TOYS, WEIGHTS

# ---- the toys that ship ----


@pytest.mark.parametrize("name", TOYS)
def test_a_toy_is_small_and_trained(name):
    assert (WEIGHTS / f"{name}.safetensors").stat().st_size < 200_000
    model = models.load(name)
    cfg = model.cfg
    assert (cfg.n_layers, cfg.n_heads, cfg.d_model, cfg.n_ctx) == (2, 4, 64, 33)
    assert cfg.attn_only
    assert cfg.model_name == name
    assert not any(module.training for module in model.modules())
    period = TOYS[name].periods[0]
    pattern = 1 + torch.randperm(32, generator=torch.Generator().manual_seed(0))[:period]
    tokens = torch.cat([torch.tensor([0]), pattern.repeat(6)[:31]])
    predicted = model(tokens[None])[0].argmax(dim=-1)
    # From the second repetition on, every next token is determined.
    share = (predicted[2 * period : -1] == tokens[2 * period + 1 :]).float()
    if len(share):
        assert share.mean() > 0.9
    assert predicted[-1] == tokens[32 - period]


def test_a_toy_is_the_same_every_time(toy):
    again = models.load("toy-induction")
    assert describe_model(again) == describe_model(toy)
    tokens = random_tokens(toy, 2, 20)
    assert_close(again(tokens), toy(tokens), rtol=0, atol=0)


def test_a_toy_can_be_had_in_another_precision():
    model = models.load("toy-induction", dtype=torch.float64)
    assert {p.dtype for p in model.original_model.parameters()} == {torch.float64}
    assert describe_model(model)["dtype"] == "float64"


def test_weights_of_another_shape_of_model_are_refused(monkeypatch, tmp_path):
    from safetensors.torch import load_file, save_file

    weights = load_file(WEIGHTS / "toy-induction.safetensors")
    weights["extra"] = torch.zeros(1)
    save_file(weights, tmp_path / "toy-induction.safetensors")
    monkeypatch.setattr("circuitspex.models.toys.WEIGHTS", tmp_path)
    with pytest.raises(ModelError, match=r"name other parameters.*python -m circuitspex\.models"):
        models.load("toy-induction")


# ---- names, folders ----


def test_an_unknown_name_says_what_there_is():
    words = r"'no-such-model' is neither a toy \(toy-induction, toy-redundant\), a folder, a \.gguf"
    with pytest.raises(ModelError, match=words):
        models.load("no-such-model")


@pytest.mark.parametrize("name", ["/no/such/folder", "./no-such-folder", "~/no-such-folder"])
def test_a_missing_folder_is_not_taken_for_a_name(name):
    with pytest.raises(ModelError, match=r"there is no model at .*no.such.folder; give a folder"):
        models.load(name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny-llama")
    make_hf_model("llama-grouped").save_pretrained(path)
    make_tokenizer([" a", " b"]).save_pretrained(path)
    return path


def test_a_folder_is_loaded_with_its_tokenizer(folder):
    model = models.load(str(folder))
    truth = make_hf_model("llama-grouped")
    tokens = random_tokens(model, 2, 6)
    with torch.no_grad():
        assert_close(model(tokens), truth(tokens).logits, rtol=0, atol=1e-5)
    assert model.to_tokens(" a b a", prepend_bos=True).tolist() == [[0, 2, 3, 2]]
    assert not model.training


def damage_config(path):
    (path / "config.json").write_text("{}")


def damage_weights(path):
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(path):
    for file in path.iterdir():
        file.unlink()


@pytest.mark.parametrize("damage", [damage_config, damage_weights, empty])
def test_a_damaged_folder_is_named(folder, tmp_path, damage):
    copy = shutil.copytree(folder, tmp_path / "copy")
    damage(copy)
    with pytest.raises(ModelError, match=r"the folder .*copy holds no whole model"):
        models.load(str(copy))


# ---- models in memory ----


def test_a_model_in_memory_is_wrapped_without_a_tokenizer():
    hf = make_hf_model("qwen2")
    tokens = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        truth = hf(tokens).logits
    model = models.from_hugging_face(hf, name="mine")
    assert model.tokenizer is None
    assert model.cfg.model_name == "mine"
    assert_close(model(tokens), truth, rtol=0, atol=1e-5)


def test_a_tokenizer_in_memory_is_used_as_it_is():
    model = make_tiny("gpt2", tokenizer=make_tokenizer([" a", " b"]))
    assert model.to_tokens(" b a", prepend_bos=False).tolist() == [[3, 2]]
    assert model.to_tokens(" b a", prepend_bos=True).tolist() == [[0, 3, 2]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_get_the_type_that_is_recorded(dtype):
    model = models.from_hugging_face(make_hf_model("gpt2").double(), dtype=dtype)
    assert {p.dtype for p in model.original_model.parameters()} == {dtype}
    assert describe_model(model)["dtype"] == str(dtype).removeprefix("torch.")


def test_nothing_is_left_in_the_temporary_folder(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    make_tiny("gpt2")
    assert list(tmp_path.iterdir()) == []


# ---- GGUF files ----


def write_gguf(path, n_values=256, keep=None):
    """Write a small but whole GGUF file, or its first bytes."""
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_tensor("token_embd.weight", np.zeros(n_values, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if keep is not None:
        os.truncate(path, keep(path.stat().st_size))
    return path


def test_a_whole_gguf_file_passes(tmp_path):
    check_gguf(write_gguf(tmp_path / "model.gguf"))


def test_a_missing_gguf_file_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"there is no file .*none\.gguf"):
        models.load(str(tmp_path / "none.gguf"))


@pytest.mark.parametrize("content", [b"", b"GGU", b"PK\x03\x04 a zip"])
def test_a_file_that_is_no_gguf_says_how_it_begins(tmp_path, content):
    file = tmp_path / "model.gguf"
    file.write_bytes(content)
    with pytest.raises(ModelError, match=r"is not a GGUF file: it begins with b'.*', not b'GGUF'"):
        models.load(str(file))


@pytest.mark.parametrize(
    "content",
    [
        b"GGUF",
        b"GGUF" + struct.pack("<I", 3),
        b"GGUF" + struct.pack("<IQQ", 3, 5, 2),
        b"GGUF" + struct.pack("<IQQ", 99, 1, 0),
        b"GGUF" + struct.pack("<IQQ", 3, 2**40, 2**40) + bytes(64),
        b"GGUF" + bytes(range(256)),
    ],
    ids=["magic only", "version only", "header only", "unknown version", "huge counts", "garbage"],
)
def test_a_damaged_gguf_header_is_refused(tmp_path, content):
    file = tmp_path / "model.gguf"
    file.write_bytes(content)
    with pytest.raises(
        ModelError, match=r"is cut short or damaged \(\d+ bytes\).*Download it again"
    ):
        models.load(str(file))


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9, 0.99])
def test_a_gguf_file_that_is_cut_anywhere_is_refused(tmp_path, share):
    file = write_gguf(tmp_path / "model.gguf", keep=lambda size: int(share * size))
    with pytest.raises(ModelError, match=r"is cut short.*Download it again"):
        models.load(str(file))


def test_a_missing_gguf_package_says_how_to_install_it(tmp_path, monkeypatch):
    file = write_gguf(tmp_path / "model.gguf")
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'circuitspex\[gguf\]'"):
        models.load(str(file))


# ---- telling models apart ----


def test_a_description_says_what_decides_values():
    described = describe_model(make_tiny("gpt2"))
    assert described.pop("weights") == describe_model(make_tiny("gpt2"))["weights"]
    assert described == {
        "name": "tiny-gpt2",
        "architecture": "GPT2LMHeadModel",
        "processing": "raw",
        "dtype": "float32",
        "n_layers": 2,
        "n_heads": 4,
    }


def test_one_changed_weight_changes_the_description():
    model = make_tiny("gpt2")
    before = describe_model(model)
    with torch.no_grad():
        next(iter(model.original_model.parameters()))[0, 0] += 1e-6
    after = describe_model(model)
    assert after.pop("weights") != before.pop("weights")
    assert after == before


def test_compatibility_mode_changes_the_description():
    model = make_tiny("gpt2")
    model.enable_compatibility_mode()
    assert describe_model(model)["processing"] == "compatibility"
