"""Units and masks in, logits out; the only room that touches hooks."""

from circuitspex.ablation import shortcuts
from circuitspex.ablation.ablated import Ablated, ablate, answer_logits
from circuitspex.ablation.batching import Room
