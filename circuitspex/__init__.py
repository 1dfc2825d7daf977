"""Find which parts of a language model work together."""
