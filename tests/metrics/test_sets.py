"""Distances of sets of images: on which features they are taken, in which order, and what is said where none is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
import torchvision
from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

from ldm_vae.choices import USUAL_SET_METRICS
from ldm_vae.errors import UserError
from ldm_vae.losses.perceptual import LPIPS
from ldm_vae.metrics import sets
from ldm_vae.metrics.image import ImageMetrics, MeasuredImage
from ldm_vae.metrics.pair import PairNetwork
from ldm_vae.metrics.pixels import ImagePairs
from ldm_vae.metrics.sets import FeatureSets, SetMetrics, SetResults, describe_set_metrics
from ldm_vae.pretrained.backbones import backbone_weights

pytestmark = pytest.mark.numerical


class Thumbnail(torch.nn.Module):
    """In Inception's place: (B, 3, H, W) uint8 -> (B, 2048), a fixed mixture of a thumbnail's values."""

    def __init__(self) -> None:
        super().__init__()
        self.mixture = torch.randn(48, 2048, generator=torch.Generator().manual_seed(0))

    def forward(self, images: Tensor) -> tuple[Tensor]:
        assert images.dtype == torch.uint8
        thumbnail = torch.nn.functional.adaptive_avg_pool2d(images / 255.0, 4).flatten(1)
        return ((thumbnail @ self.mixture).relu(),)


@pytest.fixture
def thumbnails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sets, "inception", lambda file: Thumbnail())


def pairs(count: int) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Key, reconstruction and image, (1, 3, H, W) uint8 of changing sizes; keys out of order."""
    photograph = torch.from_numpy(skimage.data.astronaut().copy()).permute(2, 0, 1)[None]
    for i in np.random.default_rng(0).permutation(count):
        top, left = 7 * int(i) % 300, 13 * int(i) % 300
        image = photograph[..., top : top + 32 + 8 * (int(i) % 3), left : left + 40]
        yield f"{i:03d}", image // 16 * 16, image


def measured(metrics: SetMetrics, found: list[tuple[str, Tensor, Tensor]]) -> tuple[SetResults, list[MeasuredImage]]:
    features = FeatureSets(metrics)
    rows = []
    for key, reconstruction, image in found:
        row = MeasuredImage(key, tuple(image.shape[1:]), 0)
        features.add(*features.measured(ImagePairs(reconstruction, image)), [row])
        rows.append(row)
    return features.results(rows), rows


@pytest.mark.usefixtures("thumbnails")
def test_distances_are_of_all_images_in_the_order_of_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch-fidelity on the same features in the order of keys: equal for the kernel distance, which draws subsets by
    place; 1e-4 for the other, which it takes on float32 means."""
    monkeypatch.setattr("ldm_vae.metrics.frechet.SUBSET", 20)
    found = list(pairs(30))
    results, _ = measured(SetMetrics(["rfid", "kid"]), found)
    network = Thumbnail()
    ours, theirs = (torch.cat([network(pair[side])[0] for pair in sorted(found)]) for side in (1, 2))
    statistics = [fid_features_to_statistics(x.double()) for x in (ours, theirs)]
    expected = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert results.values["rfid"] == pytest.approx(expected, rel=1e-4)
    kernel = kid_features_to_metric(ours, theirs, kid_subset_size=20, verbose=False)
    assert results.values["kid"] == kernel["kernel_inception_distance_mean"]
    shuffled, _ = measured(SetMetrics(["rfid", "kid"]), found[::-1])
    assert shuffled == results


def test_vgg_features_are_those_of_torchvision() -> None:
    """relu5_3, averaged over positions, of images as torchvision normalises them: to 0.5 % of the largest, since
    lpips has its constants to three digits."""
    _, reconstruction, image = next(pairs(1))
    vgg = torchvision.models.vgg16(weights=None).features[:30].eval()
    vgg.load_state_dict({key.removeprefix("features."): x for key, x in backbone_weights("vgg16").items()})
    scale = torchvision.transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    with torch.inference_mode():
        expected = [vgg(scale(x / 255.0)).mean(dim=(2, 3)) for x in (reconstruction, image)]
        found = PairNetwork("vgg", torch.device("cpu"))(reconstruction, image).features
    assert found.shape == (1, 2, 512)
    torch.testing.assert_close(found, torch.stack(expected, dim=1), rtol=0, atol=5e-3 * expected[1].max().item())
    assert (found[:, 0] - found[:, 1]).abs().max() > 0.1 * expected[1].max()  # the two sides are told apart


def test_one_pass_gives_lpips_and_features(monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []
    original = LPIPS.forward

    def counted(self: LPIPS, *pair: Tensor) -> Tensor:
        passes.append(1)
        return original(self, *pair)

    monkeypatch.setattr(LPIPS, "forward", counted)
    image_metrics = ImageMetrics(["lpips_vgg"])
    shared = SetMetrics(["frechet_vgg16"], vgg=image_metrics.metrics["lpips_vgg"].network)
    features = FeatureSets(shared)
    rows = []
    for key, reconstruction, image in pairs(3):
        batch = ImagePairs(reconstruction, image)
        (row,) = image_metrics(batch, [key])
        features.add(*features.measured(batch), [row])
        rows.append(row)
    assert len(passes) == 3
    alone, _ = measured(SetMetrics(["frechet_vgg16"]), list(pairs(3)))
    assert features.results(rows) == alone
    assert alone.values["frechet_vgg16"] > 0
    assert len({row.values["lpips_vgg"] for row in rows}) == 3


@pytest.mark.usefixtures("thumbnails")
def test_few_images_are_noted_and_one_is_too_few(monkeypatch: pytest.MonkeyPatch) -> None:
    found = list(pairs(3))
    results, _ = measured(SetMetrics(USUAL_SET_METRICS), found)
    assert set(results.values) == set(USUAL_SET_METRICS)
    assert results.notes["rfid"] == "unreliable below 2,048 images (3)"
    assert "one subset" in results.notes["kid"]
    assert describe_set_metrics(["kid"], 3)["kid"].startswith(
        "Inception of 2015-12-05"
    )  # also where rfid is not asked for
    assert describe_set_metrics(["kid"], 3)["kid"].endswith("one subset, all 3 images")
    assert "100 subsets of 1000 images" in describe_set_metrics(["kid"], 5000)["kid"]
    monkeypatch.setattr(sets, "RELIABLE", 3)
    assert not measured(SetMetrics(USUAL_SET_METRICS), found)[0].notes  # enough
    results, _ = measured(SetMetrics(USUAL_SET_METRICS), found[:1])
    assert results.missing == dict.fromkeys(USUAL_SET_METRICS, "needs at least 2 images, not 1")
    assert not results.values


@pytest.mark.usefixtures("thumbnails")
def test_images_that_a_network_does_not_take() -> None:
    """Grey ones are nothing for Inception; small ones nothing for VGG. The other network goes on."""
    found = list(pairs(4))
    grey = [(key, ours[:, :1], theirs[:, :1]) for key, ours, theirs in found]
    results, rows = measured(SetMetrics(USUAL_SET_METRICS), grey)
    assert set(results.values) == {"frechet_vgg16"}
    assert rows[0].missing == dict.fromkeys(("rfid", "kid"), "needs images of 3 channels, not 1")
    small = [*found[:3], (found[3][0], found[3][1][..., :15], found[3][2][..., :15])]
    results, rows = measured(SetMetrics(USUAL_SET_METRICS), small)
    assert set(results.values) == {"rfid", "kid"}
    assert rows[3].missing == {"frechet_vgg16": "needs 16 pixels along the shorter side, not 15"}


def test_without_weights_the_rest_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(file: Path | None) -> Any:
        raise UserError("no weights", "give a file")

    monkeypatch.setattr(sets, "inception", unreachable)
    metrics = SetMetrics(USUAL_SET_METRICS)
    results, rows = measured(metrics, list(pairs(3)))
    assert set(results.values) == {"frechet_vgg16"}
    assert results.missing == dict.fromkeys(("rfid", "kid"), "no weights: give a file")
    assert not rows[0].missing  # it is no image's fault
    assert set(metrics.weights) == {"frechet_vgg16"}
    with pytest.raises(UserError):
        SetMetrics(USUAL_SET_METRICS, inception_file=Path("given.pth"))
