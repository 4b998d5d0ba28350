"""Whose turn it is, where samples come from several sources: positions of the mixture <-> positions of a source.

Of every `BLOCK` positions each source has a fixed number, its share by weight, at random places in the block. So the
shares hold exactly over every block, and a position is found without counting through those before it.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ldm_vae.errors import UserError
from ldm_vae.noise import rng

BLOCK = 1024  # positions; weights are rounded to multiples of 1 / BLOCK of all samples

Positions = NDArray[np.int64]


def to_source(weights: tuple[float, ...], seed: int, positions: Positions) -> tuple[Positions, Positions]:
    """Positions of the mixture -> the source of each, and the position of the sample in that source's own order."""
    if len(weights) == 1:
        return np.zeros_like(positions), positions
    quotas = _quotas(weights)
    blocks, places = np.divmod(positions, BLOCK)
    sources, before = np.empty_like(positions), np.empty_like(positions)
    for block in np.unique(blocks).tolist():
        chosen = blocks == block
        turns, counts = _turns(weights, seed, block)
        sources[chosen], before[chosen] = turns[places[chosen]], counts[places[chosen]]
    return sources, blocks * quotas[sources] + before


def from_source(weights: tuple[float, ...], seed: int, source: int, positions: Positions) -> Positions:
    """Positions in one source's order -> positions of the mixture; the inverse of `to_source`."""
    if len(weights) == 1:
        return positions
    blocks, nth = np.divmod(positions, _quotas(weights)[source])
    found = np.empty_like(positions)
    for block in np.unique(blocks).tolist():
        turns, _ = _turns(weights, seed, block)
        found[blocks == block] = block * BLOCK + np.flatnonzero(turns == source)[nth[blocks == block]]
    return found


@lru_cache(maxsize=16)
def _quotas(weights: tuple[float, ...]) -> Positions:
    """Positions of each source in a block, by largest remainders."""
    shares = np.array(weights) / sum(weights) * BLOCK
    quotas = np.floor(shares).astype(np.int64)
    quotas[np.argsort(quotas - shares, kind="stable")[: BLOCK - int(quotas.sum())]] += 1
    if quotas.min() == 0:
        lost = int(np.argmin(quotas))
        what = f"the weight of source {lost + 1}, {weights[lost]:g}, is less than 1/{2 * BLOCK} of all weights"
        raise UserError(what, "raise it, or leave the source out")
    return quotas


@lru_cache(maxsize=16)
def _turns(weights: tuple[float, ...], seed: int, block: int) -> tuple[Positions, Positions]:
    """(BLOCK,) source of each place, and how many places of that source come before it in the block."""
    quotas = _quotas(weights)
    turns = rng(seed, "mixture", block).permutation(np.repeat(np.arange(len(weights)), quotas))
    before = np.empty_like(turns)
    for source, quota in enumerate(quotas.tolist()):
        before[turns == source] = np.arange(quota)
    return turns, before
