"""A mixture of several sources: which source gives the sample at a position, and which of its samples that is.

The positions are cut into blocks of `MIXTURE_BLOCK`. In every block each source has a fixed number of positions, its
share by weight, at random places. So the shares hold exactly in every block, and the source of a position is found
without counting through the positions before it.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ldm_vae.errors import UserError
from ldm_vae.noise import rng

MIXTURE_BLOCK = 1024  # positions; weights are rounded to multiples of 1 / MIXTURE_BLOCK of all samples

Positions = NDArray[np.int64]


def to_source(weights: tuple[float, ...], seed: int, positions: Positions) -> tuple[Positions, Positions]:
    """Finds the source of each position of the mixture, and the position of the sample in that source's own order."""
    if len(weights) == 1:
        return np.zeros_like(positions), positions
    quotas = _quotas(weights)
    blocks, places = np.divmod(positions, MIXTURE_BLOCK)
    sources, before = np.empty_like(positions), np.empty_like(positions)
    for block in np.unique(blocks).tolist():
        chosen = blocks == block
        turns, counts = _turns(weights, seed, block)
        sources[chosen], before[chosen] = turns[places[chosen]], counts[places[chosen]]
    return sources, blocks * quotas[sources] + before


def from_source(weights: tuple[float, ...], seed: int, source: int, positions: Positions) -> Positions:
    """The inverse of `to_source`: positions in one source's own order -> positions of the mixture."""
    if len(weights) == 1:
        return positions
    blocks, nth = np.divmod(positions, _quotas(weights)[source])
    found = np.empty_like(positions)
    for block in np.unique(blocks).tolist():
        turns, _ = _turns(weights, seed, block)
        found[blocks == block] = block * MIXTURE_BLOCK + np.flatnonzero(turns == source)[nth[blocks == block]]
    return found


@lru_cache(maxsize=16)
def _quotas(weights: tuple[float, ...]) -> Positions:
    """(sources,) How many positions of a block each source gets; shares are rounded by largest remainders."""
    shares = np.array(weights) / sum(weights) * MIXTURE_BLOCK
    quotas = np.floor(shares).astype(np.int64)
    quotas[np.argsort(quotas - shares, kind="stable")[: MIXTURE_BLOCK - int(quotas.sum())]] += 1
    if quotas.min() == 0:
        lost = int(np.argmin(quotas))
        what = f"the weight of source {lost + 1}, {weights[lost]:g}, is less than 1/{2 * MIXTURE_BLOCK} of all weights"
        raise UserError(what, "raise it, or leave the source out")
    return quotas


@lru_cache(maxsize=16)
def _turns(weights: tuple[float, ...], seed: int, block: int) -> tuple[Positions, Positions]:
    """(MIXTURE_BLOCK,) each: the source of a place in the block, and how many places before it have the same source."""
    quotas = _quotas(weights)
    turns = rng(seed, "mixture", block).permutation(np.repeat(np.arange(len(weights)), quotas))
    before = np.empty_like(turns)
    for source, quota in enumerate(quotas.tolist()):
        before[turns == source] = np.arange(quota)
    return turns, before
