"""Seven architectures as tiny random models, and a tokenizer, all made without a network.

Every weight is random and every bias non-zero, so that a hook at the wrong place, a swapped head or
a forgotten bias shows in the logits. Used by the tests and by ``benchmarks/exactness.py``.
"""

import re
from typing import Any

import torch

from circuitspex.models import from_hugging_face

D_VOCAB = 37
N_LAYERS = 2
N_POSITIONS = 7

# Shared by the Llama-like configurations: 4 query heads in 2 groups.
_GROUPED: dict[str, Any] = {
    "vocab_size": D_VOCAB,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 48,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


def _configs() -> dict[str, Any]:
    import transformers as hf

    special: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    return {
        "gpt2": hf.GPT2Config(
            vocab_size=D_VOCAB, n_embd=16, n_layer=N_LAYERS, n_head=4, n_positions=48, **special
        ),
        "llama-grouped": hf.LlamaConfig(**_GROUPED),
        "gemma2": hf.Gemma2Config(**_GROUPED, head_dim=8, sliding_window=4),
        "gpt-neox": hf.GPTNeoXConfig(
            vocab_size=D_VOCAB,
            hidden_size=16,
            intermediate_size=20,
            num_hidden_layers=N_LAYERS,
            num_attention_heads=4,
            max_position_embeddings=48,
            bos_token_id=0,
            eos_token_id=0,
        ),
        "opt": hf.OPTConfig(
            vocab_size=D_VOCAB,
            hidden_size=16,
            ffn_dim=64,  # TransformerLens assumes 4 * hidden_size for OPT
            num_hidden_layers=N_LAYERS,
            num_attention_heads=4,
            max_position_embeddings=48,
            word_embed_proj_dim=16,
            **special,
        ),
        "qwen2": hf.Qwen2Config(**_GROUPED),
        "mistral": hf.MistralConfig(**_GROUPED, sliding_window=4),
    }


ARCHITECTURES = ("gpt2", "llama-grouped", "gemma2", "gpt-neox", "opt", "qwen2", "mistral")


def make_hf_model(name: str, seed: int = 0) -> Any:
    """Return a randomly initialised Hugging Face model of one of ``ARCHITECTURES``."""
    import transformers as hf

    config = _configs()[name]
    config._attn_implementation = "eager"
    model = hf.AutoModelForCausalLM.from_config(config)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            # Norms keep a mean of 1 where they had one; everything else is centred.
            centre = parameter.mean() if parameter.ndim == 1 else 0.0
            noise = torch.randn(parameter.shape, generator=rng)
            parameter.copy_(centre + noise * (0.1 if parameter.ndim == 1 else 0.25))
    return model.eval()


def make_tiny(name: str, seed: int = 0, tokenizer: Any = None) -> Any:
    """Return one of ``ARCHITECTURES`` as a bridge."""
    bridge = from_hugging_face(make_hf_model(name, seed), tokenizer, name=f"tiny-{name}")
    warm_up(bridge)
    return bridge


def warm_up(bridge: Any) -> None:
    """Run a model once: at the first pass transformers and TransformerLens add hooks they keep."""
    with torch.no_grad():
        bridge.run_with_cache(torch.zeros(1, 2, dtype=torch.long))


def make_tokenizer(words: list[str]) -> Any:
    """Return a tokenizer whose tokens are the given words, spaces in front included.

    Words are split so that the space before a word belongs to it, as in GPT-2. What is not in the
    vocabulary is spelled by its characters where those are.
    """
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["<bos>", "<unk>", *words])}
    assert len(vocabulary) == len(words) + 2, "words must be distinct"
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?\w+|[^\w\s]"), "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<bos>", eos_token="<bos>", unk_token="<unk>"
    )


def words_of(texts: list[str]) -> list[str]:
    """Return the distinct pieces that :func:`make_tokenizer` would split the texts into."""
    return sorted({piece for text in texts for piece in re.findall(r" ?\w+|[^\w\s]", text)})
