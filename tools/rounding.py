"""Measures what TF32 costs a codec: it is emulated, on any device, and set beside float32 and storage in float16.

    python -m tools.rounding MODEL SHARDS --count 64

cuDNN rounds the factors of float32 convolutions to TF32, if it may. Here `RoundedConvolutions` does that, and adds up
in float32 as cuDNN does. Matrix products stay exact, since PyTorch leaves them so. The tables are in Markdown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ldm_vae.codec import LatentCodec
from ldm_vae.data.images.fit import ImageConfig
from ldm_vae.data.images.pixels import to_uint8
from ldm_vae.data.shards.index import load_index
from ldm_vae.data.stream.reader import measured_batches
from ldm_vae.piecewise import decode_pieces
from tools.command import run_command

DROPPED = 13  # of the 23 bits of float32's mantissa; TF32 keeps 10
LARGE = 1024  # px along each side, of the picture that is decoded in pieces


class RoundedConvolutions(TorchFunctionMode):
    """A context in which both factors of each 2D convolution are rounded to TF32."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.conv2d:
            image, weight, *rest = args
            args = (as_tf32(image), as_tf32(weight), *rest)
        return func(*args, **(kwargs or {}))


def as_tf32(x: Tensor) -> Tensor:
    """float32, of any shape -> the nearest numbers with 10 bits of mantissa; of two as near, the larger in size."""
    bits = x.contiguous().view(torch.int32)
    return ((bits + (1 << (DROPPED - 1))) & -(1 << DROPPED)).view(torch.float32)


def rounding(
    model: Annotated[str, typer.Argument(help="run, checkpoint, exported folder or Hub id")],
    shards: Annotated[str, typer.Argument(help="images")],
    count: Annotated[int, typer.Option(min=1, help="images, the first ones")] = 64,
    crop: Annotated[int, typer.Option(min=8, help="px, a square from the middle")] = 256,
) -> None:
    """Print how far TF32 is from float32, in latents, pictures and pieces."""
    codec = LatentCodec.load(model, device="cpu")
    prepared = ImageConfig(crop=crop, crop_mode="center")
    stream = measured_batches(load_index(shards), shards, prepared, batch=1, device=codec.device, rank=0, world=1)
    images = torch.cat([batch.image for batch in islice(stream, count)])
    print(f"{len(images)} images of {crop} x {crop}, PyTorch {torch.__version__}\n")
    print("| latents, beside exact float32 | root mean square, std | largest, std |\n| --- | --- | --- |")
    for name, errors in latent_errors(codec, images).items():
        print(f"| {name} | {errors.square().mean().sqrt():.1e} | {errors.abs().max():.1e} |")
    print(
        f"\nPictures: {changed_pixels(codec, images):.1%} of their 8-bit values differ, encoded and decoded in TF32.\n"
    )
    print("| pieces, beside the whole pass | largest difference, std |\n| --- | --- |")
    for name, difference in piece_differences(codec, images[:1]).items():
        print(f"| {name} | {difference:.1e} |")


def latent_errors(codec: LatentCodec, images: Tensor) -> dict[str, Tensor]:
    """Way -> differences to the latents of exact float32, in standard deviations of these."""
    exact = codec.draw(_each(codec.moments, images))
    with RoundedConvolutions():
        rounded = codec.draw(_each(codec.moments, images))
    return {
        name: (z - exact) / exact.std() for name, z in (("TF32", rounded), ("stored in float16", exact.half().float()))
    }


def changed_pixels(codec: LatentCodec, images: Tensor) -> float:
    """The share of 8-bit values of the reconstructions that are others with TF32."""
    exact = to_uint8(_each(codec.reconstruct, images))
    with RoundedConvolutions():
        rounded = to_uint8(_each(codec.reconstruct, images))
    return (exact != rounded).double().mean().item()


def piece_differences(codec: LatentCodec, image: Tensor) -> dict[str, float]:
    """Way -> the largest difference between a large picture decoded in pieces and in one pass, in its deviations."""
    z = codec.draw(codec.moments(F.interpolate(image, size=(LARGE, LARGE), mode="bilinear")))
    ways: dict[str, AbstractContextManager[Any]] = {"float32": nullcontext(), "TF32": RoundedConvolutions()}
    found = {}
    for name, way in ways.items():
        with way, torch.no_grad():
            whole, pieces = codec.model.decode(z), decode_pieces(codec.model, z)[0]
        found[name] = ((pieces - whole).abs().max() / whole.std()).item()
    return found


def _each(network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """The network's results for (B, C, H, W), one image after the other."""
    return torch.cat([network(image[None]) for image in images])


if __name__ == "__main__":
    run_command(rounding)
