"""Loading models: two toys that ship, local folders, GGUF files, or names on a hub."""

from circuitspex.models.fingerprint import describe_model
from circuitspex.models.loading import from_hugging_face, load

__all__ = ["describe_model", "from_hugging_face", "load"]
