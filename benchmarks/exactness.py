"""Are batched ablations the same as one at a time?

For seven architectures as tiny random models, heads and neurons: every mask on every prompt from
one batched forward pass, against ``run_with_hooks`` with one mask, one prompt and plain
assignments. Prints the largest difference of any logit; the last line is one JSON object. Ends with
1 if a difference exceeds 1e-4, or if some mask changes no logit by more, so nothing was compared.

    python benchmarks/exactness.py [--smoke]
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

import circuitspex as cs

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from slow_truth import (  # pyright: ignore[reportMissingImports]
    random_masks,
    random_tokens,
    slow_table,
)
from tiny_models import ARCHITECTURES, make_tiny  # pyright: ignore[reportMissingImports]

TOLERANCE = 1e-4


def compare(model: Any, units: cs.UnitSet, n_masks: int, n_prompts: int) -> tuple[float, float]:
    """Return the largest difference of any logit, and the least that a mask changes at most."""
    tokens, masks = random_tokens(model, n_prompts, 12), random_masks(n_masks, len(units))
    with cs.ablate(model, units) as ablated:
        batched = ablated(tokens, masks)
        intact = ablated(tokens, cs.masks.all_kept(len(units)))
    difference = (batched - slow_table(model, tokens, masks, units)).abs().max()
    return float(difference), float((batched - intact).abs().amax(dim=(1, 2)).min())


def main() -> int:
    """Compare all architectures and print what was found.

    Returns:
        The process's exit code.
    """
    parser = argparse.ArgumentParser(description="Are batched ablations the same as one at a time?")
    parser.add_argument("--smoke", action="store_true", help="few masks, to see that it runs")
    n_masks, n_prompts = (3, 2) if parser.parse_args().smoke else (64, 4)
    differences: dict[str, dict[str, float]] = {}
    effects: list[float] = []
    for name in ARCHITECTURES:
        model = make_tiny(name)
        differences[name] = {}
        for kind, choose in (("heads", cs.heads), ("neurons", cs.neurons)):
            differences[name][kind], effect = compare(model, choose(model), n_masks, n_prompts)
            effects.append(effect)
        shown = ", ".join(f"{kind} {value:.1e}" for kind, value in differences[name].items())
        print(f"{name:14} {shown}")
    worst = max(value for kinds in differences.values() for value in kinds.values())
    result = {
        "benchmark": "exactness",
        "masks": n_masks,
        "prompts": n_prompts,
        "largest_difference": worst,
        "tolerance": TOLERANCE,
        "smallest_effect_of_a_mask": min(effects),
        "by_architecture": differences,
        "torch": torch.__version__,
    }
    print(json.dumps(result))
    return int(not (worst <= TOLERANCE < min(effects)))


if __name__ == "__main__":
    sys.exit(main())
