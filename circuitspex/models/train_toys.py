"""Train the two toy models that ship: ``python -m circuitspex.models.train_toys [name ...]``.

Data are patterns of distinct random tokens, tiled behind a BOS token; the loss counts only tokens
that the pattern determines. About two minutes each on two cores.
"""

import sys

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors.torch import save_file
from torch import Tensor

from circuitspex.models.toys import BOS, N_POSITIONS, TOYS, WEIGHTS, Toy, build_toy

N_STEPS = 1000
BATCH = 96


def draw_batch(
    toy: Toy, n_rows: int, rng: np.random.Generator
) -> tuple[Int[Tensor, "rows positions"], Int[Tensor, " rows"]]:
    """Draw tiled patterns.

    Args:
        toy: Gives the range of periods.
        n_rows: How many sequences.
        rng: Source of all randomness.

    Returns:
        Tokens, BOS first, and the period of each row.
    """
    low, high = toy.periods
    periods = rng.integers(low, high + 1, size=n_rows)
    tokens = np.full((n_rows, N_POSITIONS), BOS)
    for row, period in enumerate(periods):
        pattern = 1 + rng.permutation(32)[:period]
        tokens[row, 1:] = np.resize(pattern, N_POSITIONS - 1)
    return torch.from_numpy(tokens), torch.from_numpy(periods)


def determined_loss(
    logits: Float[Tensor, "rows positions vocab"],
    tokens: Int[Tensor, "rows positions"],
    periods: Int[Tensor, " rows"],
) -> Float[Tensor, ""]:
    """Cross-entropy over the tokens that the pattern determines.

    Args:
        logits: Output at every position.
        tokens: The sequences, BOS first.
        periods: Period of every row.

    Returns:
        The mean loss, in nats.
    """
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none"
    )
    determined = torch.arange(tokens.shape[1] - 1)[None, :] >= periods[:, None]
    return losses[determined].mean()


def train(toy: Toy) -> float:
    """Train one toy model and write its weights.

    Args:
        toy: Which one.

    Returns:
        The mean loss over the last 50 steps, in nats.
    """
    rng = np.random.default_rng(toy.seed)
    model = build_toy(toy).train()
    optimiser = torch.optim.AdamW(model.original_model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=N_STEPS)
    losses: list[float] = []
    for _ in range(N_STEPS):
        tokens, periods = draw_batch(toy, BATCH, rng)
        loss = determined_loss(model(tokens), tokens, periods)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
    WEIGHTS.mkdir(exist_ok=True)
    weights = {k: p.detach().contiguous() for k, p in model.original_model.named_parameters()}
    save_file(weights, WEIGHTS / f"{toy.name}.safetensors")
    return float(np.mean(losses[-50:]))


def main() -> None:
    """Train the toys named on the command line, all when none is named."""
    for name in sys.argv[1:] or TOYS:
        sys.stdout.write(f"{name}: final loss {train(TOYS[name]):.4f} nats\n")


if __name__ == "__main__":
    main()
