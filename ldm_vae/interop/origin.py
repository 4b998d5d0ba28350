"""From which codec a model has its encoder: while it keeps that encoder, its latents are that codec's, with its scale.

A run that trains the decoder alone (`model.train: decoder`) changes no latent. So it keeps the scale that denoisers and
stored latents go by, and it reads the latents that were stored with the codec it began with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ldm_vae.bottlenecks.scale import LatentScale
from ldm_vae.errors import UserError
from ldm_vae.recipe import Config, validate


class _StoredOrigin(Config):
    """What meta.json holds of it."""

    encoder: str
    codecs: tuple[str, ...]
    scale: dict[str, Any] | None


@dataclass(frozen=True)
class LatentOrigin:
    """The codec that a run began with.

    encoder: sha256 of the weights that its latents depend on (`load.encoder_hash`).
    codecs: sha256 of all its weights, and of all weights of the codecs that it has its encoder from.
    scale: its scale; None where nobody had measured it.
    """

    encoder: str
    codecs: tuple[str, ...]
    scale: LatentScale | None

    def to_json(self) -> dict[str, Any]:
        """For meta.json of a checkpoint."""
        scale = None if self.scale is None else self.scale.to_config()
        return {"encoder": self.encoder, "codecs": list(self.codecs), "scale": scale}

    @staticmethod
    def from_json(values: Mapping[str, Any], channels: int, source: str) -> LatentOrigin:
        """What `to_json` gave. Raises UserError for anything else; `source` names the file."""
        if not isinstance(values, Mapping):
            raise UserError(f"{source} is damaged (origin)", "use another checkpoint of the run")
        try:
            stored = validate(_StoredOrigin, values, "origin")
        except UserError as error:
            raise UserError(f"{source} is damaged ({error})", "use another checkpoint of the run") from None
        scale = None if stored.scale is None else LatentScale.from_config(stored.scale, channels, source)
        return LatentOrigin(stored.encoder, stored.codecs, scale)
