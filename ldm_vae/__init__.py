"""Pretrain latent codecs (KL autoencoders), and use them: `from ldm_vae import LatentCodec`.

Names are imported when first asked for, so that the command line answers without waiting for torch.
"""

from __future__ import annotations

from importlib import import_module, metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ldm_vae.codec import LatentCodec
    from ldm_vae.data.latents import LatentDataset
    from ldm_vae.errors import UserError

    __version__: str

__all__ = ["LatentCodec", "LatentDataset", "UserError", "__version__"]

_HOMES = {
    "LatentCodec": "ldm_vae.codec",
    "LatentDataset": "ldm_vae.data.latents",
    "UserError": "ldm_vae.errors",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        return metadata.version("ldm-vae")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
