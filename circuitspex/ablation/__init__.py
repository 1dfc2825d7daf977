"""Units and masks in, logits out; the only room that touches hooks."""

from circuitspex.ablation import shortcuts
from circuitspex.ablation.ablated import Ablated, ablate
from circuitspex.ablation.batching import Room
from circuitspex.ablation.hooks import answer_logits
from circuitspex.ablation.passes import Pass, Rows
