"""Load a model by name, from a folder, or from a GGUF file, always as a TransformerBridge."""

import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from circuitspex.errors import MissingExtraError, ModelError
from circuitspex.models.toys import TOYS, load_toy

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def load(
    name: str, *, device: str | None = None, dtype: torch.dtype = torch.float32
) -> "TransformerBridge":
    """Load a model.

    Args:
        name: ``toy-induction`` or ``toy-redundant``; a path that ends in ``.gguf``; a folder as
            ``save_pretrained`` writes it; otherwise the name of a model on the Hugging Face hub.
        device: Where to put it; TransformerLens's choice when None.
        dtype: Type of the weights.

    Returns:
        The model in evaluation mode, weights as they are (no folding of biases or norms).

    Raises:
        ModelError: If there is no such model, or its file is damaged.
    """
    if name in TOYS:
        return load_toy(name, device=device, dtype=dtype)
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        return _load_gguf(path, device, dtype)
    if not path.is_dir() and (path.is_absolute() or name.startswith((".", "~"))):
        raise ModelError(f"there is no model at {path}; give a folder or a .gguf file.")
    # Not at the top of the file: importing transformer-lens takes seconds.
    from transformer_lens.model_bridge import TransformerBridge

    is_folder = path.is_dir()
    try:
        return TransformerBridge.boot_transformers(
            str(path) if is_folder else name, device=device, dtype=dtype
        ).eval()
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        if is_folder:
            raise ModelError(
                f"the folder {path} holds no whole model with its tokenizer, as save_pretrained "
                f"writes them: {error}"
            ) from error
        raise ModelError(
            f"{name!r} is neither a toy ({', '.join(TOYS)}), a folder, a .gguf file, nor a model "
            f"that the hub gave: {error}"
        ) from error


def from_hugging_face(
    model: Any,
    tokenizer: Any = None,
    *,
    name: str = "hf-model",
    device: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> "TransformerBridge":
    """Wrap a Hugging Face model that is already in memory, without asking any hub.

    Args:
        model: A causal language model; it is wrapped and cast itself, not a copy of it.
        tokenizer: Its tokenizer; None if prompts will be given as token ids.
        name: Recorded as the model's name in every result.
        device: Where to put it.
        dtype: Type of the weights.

    Returns:
        The bridge, in evaluation mode.
    """
    from transformer_lens.model_bridge import TransformerBridge

    with tempfile.TemporaryDirectory(prefix="circuitspex-") as folder:
        model.to(dtype=dtype)  # boot_transformers would record the type without casting
        model.config.save_pretrained(folder)
        # TransformerLens makes a tokenizer anew from where it came from, which would ask a hub, or
        # fail for one that was never on disk. So it finds one beside the config in every case.
        (_blank_tokenizer() if tokenizer is None else tokenizer).save_pretrained(folder)
        bridge = TransformerBridge.boot_transformers(
            folder, hf_model=model, device=device, dtype=dtype
        )
    if tokenizer is None:
        bridge.tokenizer = None
    bridge.cfg.model_name = name
    return bridge.eval()


def _load_gguf(path: Path, device: str | None, dtype: torch.dtype) -> "TransformerBridge":
    check_gguf(path)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, file = str(path.parent), path.name
    with _quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=dtype)
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    # The weights are dequantised by now; with this entry left, the config says they are not.
    model.config.__dict__.pop("quantization_config", None)
    return from_hugging_face(model, tokenizer, name=path.stem, device=device, dtype=dtype)


def check_gguf(path: Path) -> None:
    """Refuse a file that is not whole, before minutes are spent on it.

    Args:
        path: A file in GGUF format.

    Raises:
        ModelError: If it is absent, not GGUF, or shorter than its own table of tensors says.
        MissingExtraError: If the ``gguf`` package is not installed.
    """
    if not path.is_file():
        raise ModelError(f"there is no file {path}.")
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise ModelError(f"{path} is not a GGUF file: it begins with {magic!r}, not b'GGUF'.")
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise MissingExtraError(
            "reading .gguf files needs the gguf package: pip install 'circuitspex[gguf]'"
        ) from error
    try:
        reader = GGUFReader(path)
        needed = max((int(t.data_offset) + int(t.n_bytes) for t in reader.tensors), default=0)
    except (ValueError, IndexError, KeyError, struct.error, UnicodeDecodeError) as error:
        raise ModelError(
            f"{path} is cut short or damaged ({path.stat().st_size:,} bytes): {error}. "
            "Download it again."
        ) from error
    if path.stat().st_size < needed:
        raise ModelError(
            f"{path} is cut short: it has {path.stat().st_size:,} bytes and needs {needed:,}. "
            "Download it again."
        )


def _blank_tokenizer() -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({"<none>": 0}, unk_token="<none>"))
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<none>", eos_token="<none>")


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
