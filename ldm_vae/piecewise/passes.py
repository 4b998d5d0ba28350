"""Runs a network in one pass or in pieces, whichever fits the pictures and the memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from ldm_vae.devices import free_memory
from ldm_vae.errors import UserError
from ldm_vae.networks.network import Network
from ldm_vae.piecewise.chains.chain import chains_of, has_chains
from ldm_vae.piecewise.evaluate import decode_pieces, encode_pieces
from ldm_vae.piecewise.plan import BoundTooLow, Plan
from ldm_vae.piecewise.steps import ChainStep
from ldm_vae.sparing import NoRoom, share_of_whole

# Bytes of activations from which on a CPU no longer runs pictures as a whole. For the demo's codec that is a picture of
# somewhat less than a megapixel; from there on pieces are the faster ones, too (docs/performance.md).
WHOLE_ON_CPU = 2**29
PART_OF_FREE = 2  # a GPU's free memory over what activations may take of it: convolution libraries copy as much again

Pieces = Callable[..., tuple[Tensor, Plan]]


def encode(model: Network, images: Tensor, *, max_memory: int | None = None, held: int = 0) -> Tensor:
    """`model.encode`; the arguments are those of `encode_pieces`. Without a bound on memory, the device has one."""
    pieces = partial(encode_pieces, model, images, held=held)
    if _bounded(model, max_memory):
        return pieces(max_memory=max_memory)[0]
    if not has_chains(model):
        return model.encode(images)
    return _fitting(model.encode, pieces, chains_of(model).encoder_steps(model, *images.shape[2:]), images)


def decode(model: Network, z: Tensor, *, max_memory: int | None = None, held: int = 0) -> Tensor:
    """`model.decode`; the arguments are those of `decode_pieces`. Without a bound on memory, the device has one."""
    pieces = partial(decode_pieces, model, z, held=held)
    if _bounded(model, max_memory):
        return pieces(max_memory=max_memory)[0]
    if not has_chains(model):
        return model.decode(z)
    return _fitting(model.decode, pieces, chains_of(model).decoder_steps(model, *z.shape[2:]), z)


def whole_bytes(steps: Sequence[ChainStep], element_size: int) -> int:
    """Bytes of activations that one picture takes at once in the network's own pass, input and output included."""
    return max(step.beside + step.whole() for step in steps) * element_size


def _bounded(model: Network, max_memory: int | None) -> bool:
    """Whether the caller bounds the memory. Raises UserError where the network cannot be evaluated in pieces."""
    if max_memory is not None and not has_chains(model):
        raise UserError(f"max_memory of {max_memory:,} bytes", f"a network of kind {model.config.kind} runs as a whole")
    if share_of_whole() is not None and not has_chains(model):
        raise NoRoom("too little memory", f"a network of kind {model.config.kind} runs as a whole")
    return max_memory is not None


def _fitting(whole: Callable[[Tensor], Tensor], pieces: Pieces, steps: Sequence[ChainStep], x: Tensor) -> Tensor:
    """The result of the way that takes the least work among those that fit into the device's memory.

    That is one pass for the whole batch; then whole pictures, fewer at a time; then each picture in pieces. The results
    differ by rounding alone. Where the memory that a network may take was set (`sparing.py`), pieces keep to it.
    """
    free, each = free_memory(x.device), whole_bytes(steps, x.element_size())
    if (share := share_of_whole()) is not None:
        return _sparing(pieces, int(share * (each if free is None else min(each, free))), free, x.device)
    room = WHOLE_ON_CPU if free is None else free // PART_OF_FREE
    at_once = room // each
    if at_once >= len(x):
        return whole(x)
    if at_once > 0:
        return torch.cat([whole(part) for part in torch.split(x, at_once)])
    if free is None:
        return pieces()[0]
    return _sparing(pieces, free, free, x.device)


def _sparing(pieces: Pieces, bound: int, free: int | None, device: torch.device) -> Tensor:
    """The result in pieces, within a bound or the least memory that is possible.

    Raises NoRoom where the device has not even that free.
    """
    try:
        return pieces(max_memory=bound)[0]
    except BoundTooLow as error:
        if free is not None and error.least > free:
            raise NoRoom(f"{free:,} bytes of free memory on {device}", error.remedy) from error
        least = error.least
    return pieces(max_memory=least)[0]
