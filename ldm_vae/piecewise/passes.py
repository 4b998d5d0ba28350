"""Runs a network in one pass or in pieces, whichever fits the picture and the bound on memory."""

from __future__ import annotations

from torch import Tensor

from ldm_vae.errors import UserError
from ldm_vae.networks.network import Network
from ldm_vae.piecewise.chains.chain import has_chains
from ldm_vae.piecewise.evaluate import decode_pieces, encode_pieces

# Pictures of at least this many pixels are evaluated in pieces: the same result in less memory. Smaller ones run in one
# pass as a batch, which takes less than 0.9 GB a picture (measured with 64 channels).
PIECES_FROM = 2**20


def encode(model: Network, images: Tensor, *, max_memory: int | None = None, held: int = 0) -> Tensor:
    """`model.encode`; the arguments are those of `encode_pieces`."""
    if not _in_pieces(model, images.shape[2] * images.shape[3], max_memory):
        return model.encode(images)
    return encode_pieces(model, images, max_memory=max_memory, held=held)[0]


def decode(model: Network, z: Tensor, *, max_memory: int | None = None, held: int = 0) -> Tensor:
    """`model.decode`; the arguments are those of `decode_pieces`."""
    if not _in_pieces(model, z.shape[2] * z.shape[3] * model.config.factor**2, max_memory):
        return model.decode(z)
    return decode_pieces(model, z, max_memory=max_memory, held=held)[0]


def _in_pieces(model: Network, pixels: int, max_memory: int | None) -> bool:
    """Whether pictures of this size are evaluated in pieces.

    Raises UserError for a bound on memory where the network cannot be evaluated in pieces.
    """
    if has_chains(model):
        return max_memory is not None or pixels >= PIECES_FROM
    if max_memory is not None:
        raise UserError(f"max_memory of {max_memory:,} bytes", f"a network of kind {model.config.kind} runs as a whole")
    return False
