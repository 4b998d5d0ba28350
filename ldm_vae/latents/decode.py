"""Decodes stored latents to pictures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor

from ldm_vae.codec import LatentCodec, NonFiniteError
from ldm_vae.data.images.pixels import PixelArray
from ldm_vae.fitting import Single
from ldm_vae.latents.dataset import LatentDataset
from ldm_vae.overlap import Finish, begin, one_behind
from ldm_vae.transfer import Courier

PICTURE = "picture"


def decoded(
    codec: LatentCodec, latents: LatentDataset, items: Iterable[int]
) -> Iterator[tuple[int, PixelArray | None]]:
    """Each item with its picture (C, H, W), of the original's size and not clamped; None where it is not finite."""
    courier = Courier(codec.device)

    def launch(single: Single[int]) -> Finish[tuple[int, PixelArray | None]]:
        item, size = single.item, latents.size(single.item)
        z = courier.bring(latents.raw(item)[None])
        finish = begin(lambda: _decoded(codec, z, size), codec.device)

        def finished() -> tuple[int, PixelArray | None]:
            tensors, _ = finish()
            return item, tensors[PICTURE].numpy() if PICTURE in tensors else None

        return finished

    singles = (Single(item, latents.size(item)) for item in items)
    return one_behind(singles, launch, codec.device)


def _decoded(codec: LatentCodec, z: Tensor, size: tuple[int, int]) -> tuple[dict[str, Tensor], None]:
    try:
        return {PICTURE: codec.decode_raw(z, size=size)[0]}, None
    except NonFiniteError:
        return {}, None
