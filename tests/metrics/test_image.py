"""Agreement with torchmetrics, scikit-image and lpips on photographs, and what happens where there is no number."""

from __future__ import annotations

import lpips
import numpy as np
import pytest
import skimage.data
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor
from torchmetrics.image import (
    MultiScaleStructuralSimilarityIndexMeasure,
    PeakSignalNoiseRatio,
    StructuralSimilarityIndexMeasure,
)

from ldm_vae.choices import MetricName
from ldm_vae.errors import UserError
from ldm_vae.losses.perceptual import BACKBONE
from ldm_vae.metrics import image as metrics_image
from ldm_vae.metrics import pair as pair_network
from ldm_vae.metrics.image import ImageMetrics, MeasuredImage
from ldm_vae.metrics.pixels import ImagePairs
from ldm_vae.pretrained.backbones import backbone_weights

pytestmark = pytest.mark.numerical

Pair = tuple[Tensor, Tensor]


@pytest.fixture(scope="module", params=[("chelsea", 211, 233), ("coffee", 192, 224)], ids=["chelsea", "coffee"])
def pair(request: pytest.FixtureRequest) -> Pair:
    """(1, 3, H, W) uint8 twice, of odd and of even size: the middle of a photograph, and blocks of 4x4 means of it."""
    name, height, width = request.param
    array = np.ascontiguousarray(getattr(skimage.data, name)()[50 : 50 + height, 100 : 100 + width])
    image = torch.from_numpy(array).permute(2, 0, 1)[None]
    blocks = torch.nn.functional.interpolate(
        torch.nn.functional.avg_pool2d(image.float(), 4, ceil_mode=True), scale_factor=4, mode="nearest"
    )
    return blocks[..., : image.shape[2], : image.shape[3]].round().to(torch.uint8), image


def measure(metrics: ImageMetrics, pair: Pair, width: int | None = None, height: int | None = None) -> MeasuredImage:
    """Of the two images, cut at the right and below."""
    reconstruction, image = (x[..., :height, :width] for x in pair)
    (row,) = metrics(ImagePairs(reconstruction, image), ["photograph"])
    return row


@pytest.fixture(scope="module")
def measured(pair: Pair) -> MeasuredImage:
    row = measure(ImageMetrics(), pair)
    assert not row.missing
    return row


def skimage_pair(pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    reconstruction, image = (x[0].permute(1, 2, 0).numpy() for x in pair)
    return image, reconstruction


def test_psnr_agrees(measured: MeasuredImage, pair: Pair) -> None:
    """In float64: scikit-image's rounding alone. torchmetrics has its range in float32, 1e-7 of a value of 26 dB."""
    reference = PeakSignalNoiseRatio(data_range=255.0).set_dtype(torch.float64)(pair[0].double(), pair[1].double())
    assert measured.values["psnr"] == pytest.approx(reference.item(), rel=1e-6)
    assert measured.values["psnr"] == pytest.approx(peak_signal_noise_ratio(*skimage_pair(pair)), abs=1e-10)


def test_ssim_agrees(measured: MeasuredImage, pair: Pair) -> None:
    """torchmetrics averages over all positions, with the border reflected; scikit-image, like Wang et al., over those
    where the window lies inside. There the two are equal to float32's rounding of a variance, 1e-5."""
    ours, theirs = (x / 255.0 for x in pair)
    reference = StructuralSimilarityIndexMeasure(data_range=1.0, return_full_image=True)
    value, positions = reference(ours, theirs)
    assert measured.values["ssim"] == pytest.approx(value.item(), abs=1e-6)
    inside = structural_similarity(
        *skimage_pair(pair),
        channel_axis=2,
        data_range=255,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    assert positions[..., 5:-5, 5:-5].mean().item() == pytest.approx(inside, abs=1e-5)


def test_ssim_with_uniform_windows_agrees(pair: Pair) -> None:
    """scikit-image's defaults, given floats in float64: nothing but the order of sums differs."""
    expected = structural_similarity(*(x / 255.0 for x in skimage_pair(pair)), channel_axis=2, data_range=1.0)
    measured = measure(ImageMetrics(["ssim_uniform"]), pair)
    assert measured.values["ssim_uniform"] == pytest.approx(expected, abs=1e-10)


def test_signed_ssim_agrees_and_is_another_number(measured: MeasuredImage, pair: Pair) -> None:
    reference = StructuralSimilarityIndexMeasure(data_range=(-1.0, 1.0))
    expected = reference(*(x / 127.5 - 1.0 for x in pair)).item()
    signed = measure(ImageMetrics(["ssim_signed"]), pair).values["ssim_signed"]
    assert signed == pytest.approx(expected, abs=1e-6)
    assert abs(signed - measured.values["ssim"]) > 1e-3


def test_ms_ssim_agrees(measured: MeasuredImage, pair: Pair) -> None:
    ours, theirs = (x / 255.0 for x in pair)
    reference = MultiScaleStructuralSimilarityIndexMeasure(data_range=1.0)(ours, theirs)
    assert measured.values["ms_ssim"] == pytest.approx(reference.item(), abs=1e-6)


@pytest.mark.parametrize("name", ["lpips_vgg", "lpips_alex"])
def test_lpips_agrees(measured: MeasuredImage, pair: Pair, name: MetricName) -> None:
    """1e-5 is what the project promises; about 1e-7 is found."""
    network = metrics_image.LPIPS_NETWORKS[name]
    theirs = lpips.LPIPS(net=network, pnet_rand=True, verbose=False)  # its own heads; the backbone follows
    weights = backbone_weights(BACKBONE[network])
    theirs.net.load_state_dict({key: weights[f"features.{key.partition('.')[2]}"] for key in theirs.net.state_dict()})
    with torch.no_grad():
        reference = theirs(*(x / 127.5 - 1.0 for x in pair))
    assert measured.values[name] == pytest.approx(reference.item(), abs=1e-5)


def test_a_batch_gives_each_image_its_own_row(pair: Pair) -> None:
    reconstruction, image = (torch.cat([x, x.flip(3), x[..., :1].expand_as(x)])[..., :180, :190] for x in pair)
    metrics = ImageMetrics(["psnr", "ssim", "ms_ssim", "lpips_alex"])
    rows = metrics(ImagePairs(reconstruction, image), ["a", "b", "c"])
    for i, row in enumerate(rows):
        (alone,) = metrics(ImagePairs(reconstruction[i : i + 1], image[i : i + 1]), [row.key])
        assert row.squared_error == alone.squared_error
        assert row.values == pytest.approx(alone.values, abs=1e-6)  # float32, summed in another order
    assert len({row.values["psnr"] for row in rows}) == 3


@pytest.mark.parametrize(("side", "there"), [(160, False), (161, True), (175, True), (176, True)])
def test_ms_ssim_from_161_pixels(pair: Pair, side: int, there: bool) -> None:
    row = measure(ImageMetrics(["ms_ssim"]), pair, height=side, width=200)
    assert ("ms_ssim" in row.values) is there
    if there:
        assert 0.5 < row.values["ms_ssim"] < 1
    else:
        assert row.missing["ms_ssim"] == "needs 161 pixels along the shorter side, not 160"


def test_smallest_sizes_are_true(pair: Pair) -> None:
    """At the smallest size that a metric names it gives a number; one pixel less, a reason."""
    for name, metric in ImageMetrics().metrics.items():
        for side in (metric.smallest, metric.smallest - 1):
            if side == 0:
                continue
            row = measure(ImageMetrics([name]), pair, height=side, width=200)
            assert (name in row.values) is (side == metric.smallest)
            assert (name in row.missing) is (side < metric.smallest)


def test_equal_images_have_no_psnr_and_no_distance(pair: Pair) -> None:
    row = measure(ImageMetrics(["psnr", "ssim", "lpips_alex"]), (pair[1], pair[1]))
    assert row.missing == {"psnr": "is infinite, because the reconstruction equals the image"}
    assert row.values["lpips_alex"] == 0
    assert row.values["ssim"] == pytest.approx(1, abs=1e-6)


def test_channels(pair: Pair) -> None:
    """Grey is shown to LPIPS as three equal channels; five channels can't be."""
    metrics = ImageMetrics(["psnr", "lpips_alex"])
    reconstruction, image = pair
    grey = reconstruction[:, :1], image[:, :1]
    row = measure(metrics, grey)
    expanded = measure(metrics, (grey[0].expand(-1, 3, -1, -1), grey[1].expand(-1, 3, -1, -1)))
    assert row.values["lpips_alex"] == expanded.values["lpips_alex"]
    five = [0, 1, 2, 0, 1]
    row = measure(metrics, (reconstruction[:, five], image[:, five]))
    assert row.missing == {"lpips_alex": "needs images of 1 or 3 channels, not 5"}
    assert "psnr" in row.values


def test_without_weights_the_rest_is_measured(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(network: str) -> None:
        raise UserError(f"no weights for {network}", "give a file")

    monkeypatch.setattr(pair_network, "LPIPS", unreachable)
    (row,) = ImageMetrics()(ImagePairs(*pair), ["photograph"])
    assert set(row.values) == {"psnr", "ssim", "ms_ssim"}
    assert row.missing["lpips_vgg"] == "no weights for vgg: give a file"
