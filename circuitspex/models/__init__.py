"""A name, a folder or a GGUF file in, a model out; two toys ship."""

from circuitspex.models.fingerprint import describe_model
from circuitspex.models.loading import from_hugging_face, load

__all__ = ["describe_model", "from_hugging_face", "load"]
