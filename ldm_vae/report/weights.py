"""The codec of a run's newest whole checkpoint, and its weights by hash and step: what files of the run are about."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ldm_vae.codec import LatentCodec
from ldm_vae.interop.checkpoint import Checkpoint, read_latest
from ldm_vae.interop.load import ModelSource, network_in


@dataclass(frozen=True)
class PresentWeights:
    """The weights of a run's newest whole checkpoint.

    step: optimizer steps taken.
    """

    sha256: str
    step: int

    @staticmethod
    def of(codec: LatentCodec) -> PresentWeights:
        """codec: what `newest_codec` returns."""
        return PresentWeights(codec.weights_hash, codec.source.step or 0)


def newest_codec(run: Path) -> LatentCodec:
    """The codec on the CPU, without a scale: the report shows raw latents, also where nobody has measured them.

    Raises UserError where the run has no checkpoint that can be loaded.
    """

    def read(checkpoint: Checkpoint) -> LatentCodec:
        model, weights = network_in(checkpoint)
        return LatentCodec(model, None, ModelSource(str(run), "run", run, checkpoint.step, weights))

    return read_latest(run, read)
