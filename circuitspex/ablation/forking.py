"""Which rows can share which layers: those that agree on all layers below L run as one up to L.

A row is one mask on one prompt. Sorted layer by layer, rows become the leaves of a tree, depth
first: the path to a leaf is what is ablated in layer 0, 1, …, and a node is run once however many
leaves hang below it. All of that is in one number per leaf, the first layer at which it differs
from the leaf before it. This file only plans; :mod:`circuitspex.ablation.ablated` runs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

_PASS_SHARE = 32
"""A pass costs about a 32nd of a full batch more than its rows do: 2 rows, measured on SmolLM2."""
_PACK_BYTES = 2**26
"""Masks are packed in parts of at most so many bytes."""


@dataclass(frozen=True, eq=False)
class Fork:
    """One forked pass: a single row goes in, and a row per leaf comes out."""

    alive: dict[int, Int[Tensor, " _"]]
    """Per layer, a leaf below every row that runs there; they differ in what is ablated so far."""
    grow: dict[int, Int[Tensor, " _"]]
    """Per layer at which rows become more, the row of the layer before that each continues."""


@dataclass(frozen=True, eq=False)
class SharedLayers:
    """Rows sorted so that neighbours share the most layers, one tree per prompt."""

    n_layers: int
    layers: tuple[int, ...]
    """Layers with units, ascending."""
    prompts: Int[Tensor, " leaves"]
    """Prompt of every leaf, ascending."""
    masks: Int[Tensor, " leaves"]
    """A mask of every leaf; of identical ones the first."""
    splits: Int[Tensor, " leaves"]
    """First layer at which a leaf differs from the one before it; 0 where a prompt begins."""
    rows: Int[Tensor, " rows"]
    """The caller's rows, sorted by leaf."""
    ends: Int[Tensor, " leaves"]
    """Where each leaf's rows end in ``rows``: identical rows are one leaf."""
    forked: ClassVar[bool] = True

    def groups(self) -> Iterator[slice]:
        """Name the leaves of one prompt after the other.

        Yields:
            Slices of leaves.
        """
        counts = torch.unique_consecutive(self.prompts, return_counts=True)[1]
        borders = [0, *counts.cumsum(0).tolist()]
        yield from (slice(start, stop) for start, stop in pairwise(borders))

    def fork(self, leaves: slice) -> Fork:
        """Plan the pass that runs some neighbouring leaves of one prompt.

        Args:
            leaves: Which.

        Returns:
            The rows alive at every layer with units, and where they become more.
        """
        splits = self.splits[leaves].clone()
        splits[:1] = -1
        alive, grow = {}, {}
        before = splits < 0
        for layer in self.layers:
            here = splits <= layer
            alive[layer] = here.nonzero().squeeze(1)
            if here.sum() > before.sum():
                grow[layer] = before.cumsum(0)[here] - 1
            before = here
        return Fork(alive, grow)

    def inputs(self, leaves: slice) -> tuple[Tensor, Tensor, Fork]:
        """Return the prompt of the row that goes in, masks of those that come out, and the fork.

        Attention masks and the like have as many rows as go in: those of one row are broadcast,
        those of several would not fit what they become.
        """
        return self.prompts[leaves][:1], self.masks[leaves], self.fork(leaves)

    def rows_of(self, leaves: slice) -> tuple[Int[Tensor, " rows"], Int[Tensor, " rows"]]:
        """Find the caller's rows below some leaves.

        Args:
            leaves: Which.

        Returns:
            The rows, and the leaf of each, counted from the first of these leaves.
        """
        first = 0 if leaves.start == 0 else int(self.ends[leaves.start - 1])
        ends = self.ends[leaves] - first
        rows = self.rows[first : first + int(ends[-1])]
        return rows, torch.searchsorted(ends, torch.arange(len(rows)), right=True)

    def row_layers(self, batch_size: int) -> int:
        """Count the layers that are run, each as often as there are rows alive in it.

        Args:
            batch_size: Leaves per pass.

        Returns:
            The sum over passes and layers; a flat batch runs ``rows * n_layers``.
        """
        return int((self.n_layers - self.splits[~self._first(batch_size)]).sum()) + (
            self.n_layers * self.n_passes(batch_size)
        )

    def n_passes(self, batch_size: int) -> int:
        """Count forward passes.

        Args:
            batch_size: Leaves per pass.

        Returns:
            How many; a pass runs leaves of one prompt only.
        """
        return int(self._first(batch_size).sum())

    def alive(self, batch_size: int) -> float:
        """Say which share of its leaves a pass runs in a layer, in the mean.

        Args:
            batch_size: Leaves per pass.

        Returns:
            1 where nothing is shared.
        """
        n_leaves = len(self.splits)
        return self.row_layers(batch_size) / (self.n_layers * n_leaves) if n_leaves else 1.0

    def saving(self, batch_size: int, flat_size: int) -> float:
        """Estimate which share of the time of flat batches forking saves.

        Args:
            batch_size: Leaves per pass.
            flat_size: Rows of a flat batch.

        Returns:
            1 minus the ratio of costs, negative where forking is slower.
        """
        if len(self.rows) == 0:
            return 0.0
        per_pass = self.n_layers * flat_size / _PASS_SHARE
        flat_passes = -(-len(self.rows) // flat_size)
        flat = self.n_layers * len(self.rows) + per_pass * flat_passes
        forked = self.row_layers(batch_size) + per_pass * self.n_passes(batch_size)
        return 1 - forked / flat

    def _first(self, batch_size: int) -> Bool[Tensor, " leaves"]:
        first = torch.zeros(len(self.splits), dtype=torch.bool)
        for tree in self.groups():
            first[tree.start : tree.stop : batch_size] = True
        return first


def plan(
    masks: Bool[Tensor, "masks units"],
    prompt_of_row: Int[Tensor, " rows"],
    mask_of_row: Int[Tensor, " rows"],
    layer_of_unit: Int[Tensor, " units"],
    n_layers: int,
) -> SharedLayers:
    """Sort rows so that neighbours share the most layers.

    Args:
        masks: Keep-masks.
        prompt_of_row: Prompt of every row.
        mask_of_row: Mask of every row.
        layer_of_unit: Layer of every unit.
        n_layers: Layers of the model.

    Returns:
        The plan.
    """
    layer = layer_of_unit.cpu().numpy()
    columns = np.argsort(layer, kind="stable")
    first, rank, splits = _sort_masks(masks.cpu().numpy(), columns, layer[columns])
    key = prompt_of_row.cpu().numpy() * len(first) + rank[mask_of_row.cpu().numpy()]
    rows = np.argsort(key, kind="stable")
    leaves, counts = np.unique(key, return_counts=True)
    prompts, ranks = np.divmod(leaves, max(1, len(first)))
    return SharedLayers(
        n_layers=n_layers,
        layers=tuple(np.unique(layer).tolist()),
        prompts=torch.from_numpy(prompts),
        masks=torch.from_numpy(first[ranks]),
        splits=torch.from_numpy(_splits_of_leaves(splits, prompts, ranks)),
        rows=torch.from_numpy(rows),
        ends=torch.from_numpy(np.cumsum(counts)),
    )


def _sort_masks(
    masks: np.ndarray, columns: np.ndarray, layers: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the first of each kind of mask, every mask's kind, and where kinds split."""
    packed = _pack(masks, columns)
    words = packed.view(f"V{packed.shape[1]}").ravel()
    # Big-endian bytes in order of layers, so comparing bytes compares layer by layer.
    order = np.argsort(words, kind="stable")
    differs: np.ndarray = packed[order[1:]] ^ packed[order[:-1]]
    new = np.append(len(order) > 0, differs.any(axis=1))[: len(order)]
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.cumsum(new) - 1
    differs = differs[new[1:]]
    byte = (differs != 0).argmax(axis=1)
    bit = np.unpackbits(np.take_along_axis(differs, byte[:, None], 1), axis=1).argmax(axis=1)
    return order[new], rank, np.append(0, layers[8 * byte + bit])


def _pack(masks: np.ndarray, columns: np.ndarray) -> np.ndarray:
    in_order = bool((np.diff(columns) == 1).all())
    step = max(1, _PACK_BYTES // max(1, masks.shape[1]))
    packed = np.empty((len(masks), -(-masks.shape[1] // 8)), dtype=np.uint8)
    for start in range(0, len(masks), step):
        part = slice(start, start + step)
        packed[part] = np.packbits(masks[part] if in_order else masks[part][:, columns], axis=1)
    return packed


def _splits_of_leaves(splits: np.ndarray, prompts: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    # Between leaves that are no neighbours among all masks, the earliest split in between counts.
    found = np.zeros(len(ranks), dtype=np.int64)
    borders = np.append(np.unique(prompts, return_index=True)[1], len(ranks))
    for start, stop in pairwise(borders):
        tree = ranks[start:stop]
        if len(tree) > 1:
            between = np.minimum.reduceat(splits[: tree[-1] + 1], tree[:-1] + 1)
            found[start + 1 : stop] = between
    return found
