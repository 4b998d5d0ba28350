"""One pass over all images, which collects what the diagnostics need from every image.

Memory does not grow with the number of images, except for the scores of each image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ldm_vae.codec import LatentCodec
from ldm_vae.data.images.pixels import to_uint8
from ldm_vae.data.stream.batch import Batch
from ldm_vae.diagnostics.anomaly import Score
from ldm_vae.diagnostics.channels import ChannelSums
from ldm_vae.diagnostics.comparison import Comparison
from ldm_vae.diagnostics.probes import PROBES, VIEWS, cut_probe, cut_view, decode_whole
from ldm_vae.diagnostics.rings import RingPower
from ldm_vae.diagnostics.sample import BoundedSample, Rows
from ldm_vae.diagnostics.spectrum import LatentSpectrum
from ldm_vae.padding import pad_to_multiple

POSITIONS_SAMPLED = 2**14  # latent positions in the sample of the aggregate posterior
LABELLED_IMAGES = 1000  # images in the chart of classes


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

    def update(self, batch: Batch) -> None:
        """batch: images in [-1, 1], of one size."""
        moments, broken = self.codec.checked_moments(batch.image)
        self.broken_posteriors += [batch.key[i] for i in broken]
        whole = [i for i in range(len(moments)) if i not in broken]
        if not whole:
            return
        image, keys = batch.image[whole].to(self.codec.device), [batch.key[i] for i in whole]
        bottleneck = self.codec.model.bottleneck
        posterior = bottleneck(moments[whole])
        mean, logvar = posterior.z, posterior.stats["logvar"] if bottleneck.gaussian else None
        height, width = image.shape[2:]
        self.channels.update(mean, logvar, height * width)
        self.spectrum.update(mean, pad_to_multiple(image, self.codec.factor))
        if logvar is not None:
            both = torch.cat([mean, logvar], dim=1)
            self.positions.offer(both.permute(0, 2, 3, 1).flatten(0, 2).cpu().numpy())
        if batch.label is not None and batch.label.ndim == 1 and len(batch.label) == len(batch.key):
            classes = batch.label[whole].double()[:, None].cpu()
            self.labelled.offer(torch.cat([classes, mean.double().mean(dim=(2, 3)).cpu()], dim=1).numpy())
        for sample, cut in ((self.probes, cut_probe), (self.views, cut_view)):
            sample.offer(_cuts(image, partial(cut, factor=self.codec.factor)))
        kl = posterior.nats.double().flatten(1).sum(dim=1) if bottleneck.gaussian else None
        self._reconstruct(image, keys, mean, kl)

    def _reconstruct(self, image: Tensor, keys: list[str], mean: Tensor, kl: Tensor | None) -> None:
        places, reconstruction = decode_whole(self.codec, mean, (image.shape[2], image.shape[3]))
        self.broken_reconstructions += [key for i, key in enumerate(keys) if i not in places]
        if not places:
            return
        if self.comparison is not None:
            self.comparison.update([keys[place] for place in places], image[places], reconstruction)
        original, coded = (to_uint8(x).double() / 127.5 - 1.0 for x in (image[places], reconstruction))
        self.blur.update(original, coded)
        errors = (coded - original).square().mean(dim=(1, 2, 3)).tolist()
        values = original[0].numel()
        nats = [None] * len(places) if kl is None else kl[places].tolist()
        self.scores += [
            Score(keys[place], error, one, values) for place, error, one in zip(places, errors, nats, strict=True)
        ]


def _cuts(images: Tensor, cut: Callable[[Tensor], Tensor | None]) -> Rows:
    """The cuts of those images that are large enough: an array of tensors, which may differ in size."""
    parts = [part.cpu().clone() for image in images if (part := cut(image)) is not None]
    rows = np.empty(len(parts), dtype=object)
    for i, part in enumerate(parts):
        rows[i] = part
    return rows


def survey_images(
    codec: LatentCodec, batches: Iterable[Batch], seed: int, comparison: Comparison | None = None
) -> Survey:
    """batches: images in [-1, 1], of one size within a batch."""
    result = Survey(codec, seed, comparison)
    for batch in batches:
        result.update(batch)
    return result
