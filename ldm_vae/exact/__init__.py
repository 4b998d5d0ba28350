"""The same networks evaluated in pieces: equal to the full pass but for rounding, in a fraction of its memory."""

from ldm_vae.exact.evaluate import decode_pieces, encode_pieces
from ldm_vae.exact.plan import Plan, plan_decode, plan_encode

__all__ = ["Plan", "decode_pieces", "encode_pieces", "plan_decode", "plan_encode"]
