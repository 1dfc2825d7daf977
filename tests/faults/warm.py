"""Imported once by the process that all others are forked from: what a run loads is then there."""

import tempfile
import warnings

import circuitspex.tracking._wandb  # noqa: F401
from circuitspex.runs import Settings, discover

with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
    warnings.simplefilter("ignore")
    discover(Settings(decoder="lasso", budget=64, keep_rate=0.7, n_prompts=2, verify=2), folder)
