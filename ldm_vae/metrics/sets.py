"""How far the reconstructions are from the images, as two sets: one number for all images, from features of each.

rfid           Fréchet distance of Inception's 2048 pooled features (torch-fidelity's network, which enlarges or shrinks
               every image to 299 x 299 as TensorFlow did)
rfid_pytorch   the same with the same weights, as pytorch-fid and what copied it feed them: images are resized without
               antialiasing by PyTorch's bilinear grid, not TensorFlow's, and mapped to [-1, 1]. Not comparable to rfid
kid            kernel distance of the features of rfid
frechet_vgg16  Fréchet distance of LPIPS' VGG16: relu5_3 at the image's own size, averaged over positions, 512 features.
               Comparable with itself alone; it is no FID

Both sets are the 8-bit images that the other metrics use, unless a protocol says otherwise. With fewer than 2,048
images a distance depends on which images they are: the value is given all the same, with a note that says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from ldm_vae.choices import SetMetricName
from ldm_vae.errors import UserError
from ldm_vae.extras import require
from ldm_vae.metrics.frechet import SEED, SUBSET, SUBSETS, frechet_distance, kernel_distance
from ldm_vae.metrics.image import MeasuredImage, unfit
from ldm_vae.metrics.pair import PairNetwork
from ldm_vae.metrics.pixels import ImagePairs, Rounding
from ldm_vae.metrics.spool import Features, Spool
from ldm_vae.pretrained.inception import WEIGHTS_SHA256, features_as_pytorch_fid, inception
from ldm_vae.ranks import all_gather

NetworkName = Literal["inception", "inception_pytorch", "vgg16"]
FEATURE_NETWORKS: Mapping[SetMetricName, NetworkName] = {
    "rfid": "inception",
    "rfid_pytorch": "inception_pytorch",
    "kid": "inception",
    "frechet_vgg16": "vgg16",
}
DISTANCES: Mapping[SetMetricName, Callable[[Features, Features], float]] = {
    "rfid": frechet_distance,
    "rfid_pytorch": frechet_distance,
    "kid": kernel_distance,
    "frechet_vgg16": frechet_distance,
}
FEWEST = 2  # images; one has no covariance
RELIABLE = 2048  # images; with fewer, FID's covariance is singular, and its bias hides the differences of codecs


@dataclass(frozen=True)
class FeatureNetwork:
    """A network that gives features of images.

    features: reconstruction and image, (B, C, H, W), values from 0 to 255 -> (B, 2, d).
    width: d.
    smallest: pixels along the shorter side that it needs.
    channels: numbers of image channels that it takes.
    weights: sha256 of its weights.
    """

    features: Callable[[Tensor, Tensor], Tensor]
    width: int
    smallest: int
    channels: tuple[int, ...]
    weights: str


@dataclass(frozen=True)
class SetResults:
    """The distances between two sets of images.

    values: metric -> its value.
    missing: metric -> why it has no value.
    notes: metric -> what to know about its value.
    """

    values: dict[str, float] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)


class SetMetrics:
    """The chosen set metrics with their networks, which serve one codec after the other."""

    def __init__(
        self,
        names: Sequence[SetMetricName],
        device: torch.device | str = "cpu",
        *,
        rounding: Mapping[str, Rounding] = MappingProxyType({}),
        vgg: PairNetwork | None = None,
        inception_file: Path | None = None,
    ) -> None:
        """All processes must make one together.

        rounding: by name of a metric, the values that its network sees; a metric that is not named sees the nearest.
        vgg: the network that LPIPS has loaded already, if any.
        inception_file: Inception's weights; None looks for them.

        If a process can't have the weights of a network, the metrics that use it are missing, with the reason; all
        others are computed. Raises UserError if `inception_file` is given and is another file, and MissingExtra where
        the extra `metrics` is not installed.
        """
        if names:
            require("metrics", names[0], package="torch_fidelity")
        self.names = tuple(names)
        self.rounding = {FEATURE_NETWORKS[name]: rounding.get(name, "nearest") for name in self.names}
        self.networks: dict[NetworkName, FeatureNetwork] = {}
        self.unavailable: dict[str, str] = {}
        device = torch.device(device)
        for network in dict.fromkeys(FEATURE_NETWORKS[name] for name in names):
            try:
                if network == "vgg16":
                    self.networks[network] = _vgg16(vgg, device)
                else:
                    self.networks[network] = _inception(inception_file, device, as_pytorch_fid=network != "inception")
            except UserError as error:
                if network != "vgg16" and inception_file is not None:
                    raise
                self.unavailable |= {name: str(error) for name in names if FEATURE_NETWORKS[name] == network}
        for elsewhere in all_gather(self.unavailable):
            self.unavailable |= elsewhere
        for name in self.names:
            if name in self.unavailable:
                self.networks.pop(FEATURE_NETWORKS[name], None)

    @property
    def weights(self) -> dict[str, str]:
        """Metric -> sha256 of its network's weights."""
        found = {name: self.networks.get(FEATURE_NETWORKS[name]) for name in self.names}
        return {name: network.weights for name, network in found.items() if network is not None}


class FeatureSets:
    """The features of one codec's reconstructions and of their images, and the distances between them."""

    def __init__(self, metrics: SetMetrics) -> None:
        self.metrics = metrics
        self.names = [name for name in metrics.names if name not in metrics.unavailable]
        self.spools = {name: Spool((2, network.width)) for name, network in metrics.networks.items()}

    @torch.inference_mode()
    def measured(self, pairs: ImagePairs) -> tuple[dict[NetworkName, Tensor], dict[NetworkName, str]]:
        """The features (B, 2, d) of a batch, by network and on its device; and why others give none."""
        features: dict[NetworkName, Tensor] = {}
        missing: dict[NetworkName, str] = {}
        for name, network in self.metrics.networks.items():
            reason = unfit(pairs.image, network.smallest, network.channels)
            if reason is None:
                features[name] = network.features(*pairs.rounded(self.metrics.rounding[name])).float()
            else:
                missing[name] = reason
        return features, missing

    def add(
        self,
        features: Mapping[NetworkName, Tensor],
        missing: Mapping[NetworkName, str],
        rows: Sequence[MeasuredImage],
    ) -> None:
        """Adds what `measured` gave of a batch, on the host.

        rows: what was measured on these images; an image that gives no features gets the reason in `missing`.
        """
        for name, values in features.items():
            self.spools[name].add([row.key for row in rows], values.numpy())
        for name, reason in missing.items():
            concerned = [metric for metric in self.names if FEATURE_NETWORKS[metric] == name]
            for row in rows:
                row.missing |= dict.fromkeys(concerned, reason)

    def without_reconstruction(self, row: MeasuredImage, reason: str) -> None:
        """Notes that an image has no reconstruction, and is in neither set.

        reason: why.
        """
        row.missing |= dict.fromkeys(self.names, reason)

    def results(self, rows: Sequence[MeasuredImage]) -> SetResults:
        """The distances. All processes must call this. A metric that is missing for one image has no value.

        rows: what was measured on the images of all processes.
        """
        complete = [name for name in self.names if not any(name in row.missing for row in rows)]
        results = SetResults()
        results.missing.update(self.metrics.unavailable)
        if len(rows) < FEWEST:
            results.missing.update(dict.fromkeys(complete, f"needs at least {FEWEST} images, not {len(rows)}"))
            return results
        for network in dict.fromkeys(FEATURE_NETWORKS[name] for name in complete):
            features = self.spools[network].gathered()
            for name in (name for name in complete if FEATURE_NETWORKS[name] == network):
                value = None if features is None else DISTANCES[name](features[:, 0], features[:, 1])
                results.values[name] = next(v for v in all_gather(value) if v is not None)
                if len(rows) < RELIABLE:
                    results.notes[name] = _note(name, len(rows))
        return results


def describe_set_metrics(names: Sequence[SetMetricName], images: int) -> dict[str, str]:
    """How each metric is computed, for the protocol of an evaluation."""
    inception = "Inception of 2015-12-05 by torch-fidelity, features 2048, images resized to 299 x 299 bilinearly"
    subsets = f"{SUBSETS} subsets of {SUBSET} images, seed {SEED}"
    facts = {
        "rfid": inception,
        "rfid_pytorch": "Inception of 2015-12-05, features 2048, images resized to 299 x 299 as pytorch-fid does",
        "kid": f"{inception}; {subsets if images > SUBSET else f'one subset, all {images} images'}",
        "frechet_vgg16": "VGG16 of LPIPS, relu5_3 at the images' size, averaged over positions; no FID",
    }
    return {name: facts[name] for name in names}


def _note(name: SetMetricName, images: int) -> str:
    few = f"unreliable below {RELIABLE:,} images ({images:,})"
    return f"{few}; one subset of all images" if name == "kid" and images <= SUBSET else few


def _inception(file: Path | None, device: torch.device, *, as_pytorch_fid: bool) -> FeatureNetwork:
    network = inception(file).to(device)
    one = partial(features_as_pytorch_fid, network) if as_pytorch_fid else lambda images: network(images)[0]

    def features(reconstruction: Tensor, image: Tensor) -> Tensor:
        return torch.stack([one(reconstruction), one(image)], dim=1)

    return FeatureNetwork(features, 2048, 1, (3,), WEIGHTS_SHA256)


def _vgg16(shared: PairNetwork | None, device: torch.device) -> FeatureNetwork:
    network = shared or PairNetwork("vgg", device)
    return FeatureNetwork(
        lambda ours, theirs: network(ours, theirs).features, 512, network.smallest, (1, 3), network.weights
    )
