"""python codec_tensors.py CODEC SHARD OUT: what the ldm_vae on the path makes of the first two pictures of a shard.

Through the public interface alone, so that it runs in any checkout. OUT is a safetensors file; a name ends in the type
that the networks ran in.
"""

from __future__ import annotations

import sys
import tarfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from ldm_vae import LatentCodec

SIZES = ((32, 32), (26, 19))  # (height, width) in px, cut from the top left corner; the second is no multiple of f
BOUND = 2**18  # bytes; so little that the decoder is evaluated in pieces


def pictures(shard: Path) -> list[Tensor]:
    """(1, 3, H, W) in [-1, 1] of each size, float64."""
    with tarfile.open(shard) as tar:
        members = [member for member in tar if member.name.endswith(".png")]
        found = []
        for member, (height, width) in zip(members, SIZES, strict=False):
            file = tar.extractfile(member)
            assert file is not None  # a picture is no folder
            pixels = np.asarray(Image.open(file).convert("RGB"))[:height, :width]
            found.append(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].double() / 127.5 - 1)
    return found


def tensors_of(folder: Path, shard: Path) -> dict[str, Tensor]:
    """Moments, samples and pixels in both types."""
    found = {}
    for dtype in (torch.float32, torch.float64):
        codec, kind = LatentCodec.load(folder, device="cpu", dtype=dtype), str(dtype).removeprefix("torch.")
        for number, image in enumerate(pictures(shard)):
            size = (image.shape[2], image.shape[3])
            latent = codec.encode(image)
            sample = codec.encode(image, sample=True, generator=torch.Generator().manual_seed(0))
            found[f"moments.{number}.{kind}"] = codec.moments(image)
            found[f"sample.{number}.{kind}"] = sample
            found[f"pixels.{number}.{kind}"] = codec.decode(latent, size=size)
            found[f"pixels_in_pieces.{number}.{kind}"] = codec.decode(latent, size=size, max_memory=BOUND)
    return {name: tensor.contiguous() for name, tensor in found.items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    save_file(tensors_of(Path(sys.argv[1]), Path(sys.argv[2])), sys.argv[3])
