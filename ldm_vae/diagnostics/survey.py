"""One pass over all images, which collects what the diagnostics need from every image.

Memory does not grow with the number of images, except for the scores of each image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ldm_vae.codec import LatentCodec
from ldm_vae.data.images.pixels import to_uint8
from ldm_vae.data.stream.batch import Batch
from ldm_vae.devices import in_float64
from ldm_vae.diagnostics.anomaly import Score
from ldm_vae.diagnostics.channels import ChannelSums
from ldm_vae.diagnostics.comparison import Comparison
from ldm_vae.diagnostics.probes import PROBES, VIEWS, Z, cut_probe, cut_view, decode_whole
from ldm_vae.diagnostics.rings import RingPower, summed_powers
from ldm_vae.diagnostics.sample import BoundedSample, Rows
from ldm_vae.diagnostics.spectrum import LatentSpectrum
from ldm_vae.finite import at_places
from ldm_vae.overlap import Finish, begin, one_behind
from ldm_vae.padding import pad_to_multiple
from ldm_vae.transfer import Courier

POSITIONS_SAMPLED = 2**14  # latent positions in the sample of the aggregate posterior
LABELLED_IMAGES = 1000  # images in the chart of classes
LOGVAR, NATS, ERRORS, POWERS = "logvar", "nats", "errors", "powers"  # of a batch, beside `Z`


class Survey:
    """What the pass has collected so far.

    channels, spectrum: sums over all images with a finite posterior.
    blur, scores: from all images with a finite reconstruction.
    positions: sample of latent positions, (N, 2c), posterior means and log-variances.
    labelled: sample of images with a class, (N, 1 + c), class and mean latent.
    comparison: what simple codecs make of the same images; None where that was not asked for.
    probes, views: samples of images, cut by `cut_probe` and `cut_view`.
    broken_posteriors, broken_reconstructions: keys of the images that are left out.
    """

    def __init__(self, codec: LatentCodec, seed: int, comparison: Comparison | None = None) -> None:
        config = codec.model.config
        self.comparison = comparison
        self.codec = codec
        self.channels = ChannelSums(config.latent_channels)
        self.spectrum = LatentSpectrum(config.latent_channels, config.in_channels, codec.factor)
        self.blur = RingPower(config.out_channels)
        self.scores: list[Score] = []
        self.positions = BoundedSample(POSITIONS_SAMPLED, seed, "positions")
        self.labelled = BoundedSample(LABELLED_IMAGES, seed, "labelled")
        self.probes = BoundedSample(PROBES, seed, "probes")
        self.views = BoundedSample(
            VIEWS, seed, "probes"
        )  # same purpose, same random numbers: the views are among the probes
        self.broken_posteriors: list[str] = []
        self.broken_reconstructions: list[str] = []

    @property
    def images(self) -> int:
        """Number of images that were encoded, broken or not."""
        return self.channels.images + len(self.broken_posteriors)

    def add(self, batch: Batch, tensors: Mapping[str, Tensor], known: _Known) -> None:
        """Adds what `_surveyed` gave of a batch, on the host. All that is as small as a latent is computed here."""
        keys = batch.key
        self.broken_posteriors += [key for i, key in enumerate(keys) if i not in known.encoded]
        self.broken_reconstructions += [keys[i] for i in known.encoded if i not in known.decoded]
        if known.encoded:
            image = batch.image[known.encoded]
            self._add_latents(batch, known.encoded, image, tensors[Z], tensors.get(LOGVAR))
            for sample, cut in ((self.probes, cut_probe), (self.views, cut_view)):
                sample.offer(_cuts(image, partial(cut, factor=self.codec.factor)))
        if known.decoded:
            if self.comparison is not None:
                self.comparison.add([keys[i] for i in known.decoded], batch.shape, tensors, known.missing)
            self.blur.add(tensors[POWERS], len(known.decoded), *batch.shape[1:])
            nats = tensors[NATS].tolist() if NATS in tensors else [None] * len(known.decoded)
            self.scores += [
                Score(keys[i], error, one, math.prod(batch.shape))
                for i, error, one in zip(known.decoded, tensors[ERRORS].tolist(), nats, strict=True)
            ]

    def _add_latents(
        self, batch: Batch, encoded: list[int], image: Tensor, mean: Tensor, logvar: Tensor | None
    ) -> None:
        self.channels.update(mean, logvar, math.prod(batch.shape[1:]))
        self.spectrum.update(mean, pad_to_multiple(image, self.codec.factor))
        if logvar is not None:
            both = torch.cat([mean, logvar], dim=1)
            self.positions.offer(both.permute(0, 2, 3, 1).flatten(0, 2).numpy())
        if batch.label is not None and batch.label.ndim == 1 and len(batch.label) == len(batch.key):
            classes = batch.label[encoded].double()[:, None]
            self.labelled.offer(torch.cat([classes, mean.double().mean(dim=(2, 3))], dim=1).numpy())


def _cuts(images: Tensor, cut: Callable[[Tensor], Tensor | None]) -> Rows:
    """The cuts of those images that are large enough: an array of tensors, which may differ in size."""
    parts = [part.clone() for image in images if (part := cut(image)) is not None]
    rows = np.empty(len(parts), dtype=object)
    for i, part in enumerate(parts):
        rows[i] = part
    return rows


def survey_images(
    codec: LatentCodec, batches: Iterable[Batch], seed: int, comparison: Comparison | None = None
) -> Survey:
    """batches: images in [-1, 1], on the host, of one size within a batch."""
    result, courier = Survey(codec, seed, comparison), Courier(codec.device)

    def launch(batch: Batch) -> Finish[tuple[Batch, dict[str, Tensor], _Known]]:
        image = courier.bring(batch.image)
        finish = begin(lambda: _surveyed(codec, image, batch.key, comparison), codec.device)
        return lambda: (batch, *finish())

    for batch, tensors, known in one_behind(batches, launch, codec.device):
        result.add(batch, tensors, known)
    return result


@dataclass(frozen=True)
class _Known:
    """What the host knows of a batch beside its tensors.

    encoded, decoded: places of the images with a finite posterior, and among these with a finite reconstruction.
    missing: as `Comparison.compared` gives it.
    """

    encoded: list[int]
    decoded: list[int]
    missing: dict[str, dict[str, str]]


def _surveyed(
    codec: LatentCodec, image: Tensor, keys: Sequence[str], comparison: Comparison | None
) -> tuple[dict[str, Tensor], _Known]:
    """Encodes, decodes and compares a batch on the codec's device.

    Gives the posterior of the images that have a finite one, and of those with a finite reconstruction: squared errors,
    the KL (if the posterior is Gaussian), powers for `Survey.blur`, and what `comparison` compares.
    """
    moments, broken = codec.checked_moments(image)
    encoded = [i for i in range(len(image)) if i not in broken]
    if not encoded:
        return {}, _Known([], [], {})
    bottleneck = codec.model.bottleneck
    posterior = bottleneck(at_places(moments, encoded))
    tensors = {Z: posterior.z}
    if bottleneck.gaussian:
        tensors[LOGVAR] = posterior.stats["logvar"]
    places, reconstruction = decode_whole(codec, posterior.z, (image.shape[2], image.shape[3]))
    decoded = [encoded[place] for place in places]
    if not decoded:
        return tensors, _Known(encoded, [], {})
    if bottleneck.gaussian:
        tensors[NATS] = in_float64(at_places(posterior.nats, places)).flatten(1).sum(dim=1)
    image = at_places(image, decoded)
    found, missing = (
        ({}, {}) if comparison is None else comparison.compared([keys[i] for i in decoded], image, reconstruction)
    )
    original, coded = (in_float64(to_uint8(x)) / 127.5 - 1.0 for x in (image, reconstruction))
    tensors[ERRORS] = (coded - original).square().mean(dim=(1, 2, 3))
    tensors[POWERS] = summed_powers(original, coded)
    return tensors | found, _Known(encoded, decoded, missing)
