"""Designs: the rules that choose which masks to evaluate."""

from circuitspex.designs.bernoulli import bernoulli_masks
from circuitspex.designs.exhaustive import exhaustive_masks

__all__ = ["bernoulli_masks", "exhaustive_masks"]
