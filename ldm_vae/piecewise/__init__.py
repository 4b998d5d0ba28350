"""Networks evaluated in pieces: equal to the full pass up to rounding, in a fraction of its memory.

strips.py     A tensor held as strips, so that parts of it can be freed while the next one grows
norm.py       Group normalisation whose statistics are gathered over a whole picture before any part of it is
              normalised
steps.py      The steps of a chain, which can compute any rows of their output from the rows below them
chains/       Networks as chains of steps, a file for each kind of network
plan.py       Which boundaries of a chain are kept and which are computed again, so that a bound on memory holds
room.py       Freed memory that malloc holds: handed back to the system before a process would grow beyond a bound
spill.py      Strips in the memory of the host, for boundaries that a GPU has no room for
evaluate.py   Evaluates a network by a plan: norm statistics of the whole picture first, then rows from rows
passes.py     Runs a network in one pass or in pieces, whichever fits the pictures and the memory
"""

from ldm_vae.piecewise.evaluate import decode_pieces, encode_pieces
from ldm_vae.piecewise.plan import Plan, plan_decode, plan_encode

__all__ = ["Plan", "decode_pieces", "encode_pieces", "plan_decode", "plan_encode"]
