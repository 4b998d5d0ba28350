"""Each published protocol against the formulas of its script, written down here with the libraries that it uses."""

from __future__ import annotations

from collections.abc import Callable

import lpips
import numpy as np
import pytest
import skimage.data
import torch
from numpy.typing import NDArray
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor
from torchmetrics.image import StructuralSimilarityIndexMeasure
from torchvision import transforms

from ldm_vae.choices import PUBLISHED_PROTOCOLS, PublishedProtocol
from ldm_vae.data.images.decode import decode_image, encode_image
from ldm_vae.data.images.fit import fit_image
from ldm_vae.data.stream.batch import Batch
from ldm_vae.evaluation.evaluate import evaluate_batches
from ldm_vae.evaluation.protocols import published_protocol
from ldm_vae.losses.perceptual import BACKBONE, LPIPSNetwork
from ldm_vae.metrics.pixels import ImagePairs
from ldm_vae.pretrained.backbones import backbone_weights

pytestmark = pytest.mark.numerical

HEIGHT, WIDTH = 300, 290


class Coarse:
    """A codec that gives back means of 4 x 4 pixels, with more contrast: some values leave [-1, 1]."""

    device = torch.device("cpu")

    def encode(self, images: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(images, 4)

    def decode(self, latents: Tensor, *, size: tuple[int, int]) -> Tensor:
        return 1.3 * torch.nn.functional.interpolate(latents, size)


@pytest.fixture(scope="module")
def photographs() -> list[Image.Image]:
    sources = (skimage.data.chelsea(), skimage.data.coffee(), skimage.data.astronaut())
    return [Image.fromarray(np.ascontiguousarray(array[:HEIGHT, 60 : 60 + WIDTH])) for array in sources]


def ours(name: PublishedProtocol, photographs: list[Image.Image], metrics: tuple[str, ...]) -> dict[str, float | None]:
    protocol = published_protocol(name).model_copy(update={"latent": "mode"})
    assert set(metrics) <= set(protocol.metrics)
    batches = []
    for i, photograph in enumerate(photographs):
        array = decode_image(encode_image(unit(photograph), "png"), "png", 3)
        image = torch.from_numpy(fit_image(array, protocol.image, None))[None]
        batches.append(Batch(image, None, [f"{i}"], torch.zeros(1)))
    measured = protocol.model_copy(update={"metrics": metrics})
    return evaluate_batches(Coarse(), batches, measured).metrics


def unit(photograph: Image.Image) -> NDArray[np.float32]:
    return (np.asarray(photograph).transpose(2, 0, 1) / 127.5 - 1.0).astype(np.float32)


def theirs(photographs: list[Image.Image], prepare: Callable[[Image.Image], Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Reconstruction, as decoded, and image of each, (1, 3, 256, 256)."""
    images = [prepare(photograph)[None] for photograph in photographs]
    codec = Coarse()
    return [(codec.decode(codec.encode(image), size=(256, 256)), image) for image in images]


def mean(values: list[float]) -> float:
    return float(np.mean(values))


def lpips_of(network: LPIPSNetwork) -> Callable[[Tensor, Tensor], float]:
    model = lpips.LPIPS(net=network, pnet_rand=True, verbose=False)
    weights = backbone_weights(BACKBONE[network])
    model.net.load_state_dict({key: weights[f"features.{key.partition('.')[2]}"] for key in model.net.state_dict()})

    def distance(reconstruction: Tensor, image: Tensor) -> float:
        with torch.no_grad():
            return model(reconstruction, image).item()

    return distance


def test_vavae(photographs: list[Image.Image]) -> None:
    """evaluate_tokenizer.py: floats are resized, so nothing is rounded before the codec. float32's resize differs by
    1e-6, which turns a value of 8 bits now and then: 1e-3 dB."""
    prepare = transforms.Compose(
        [
            transforms.ToTensor(),
            transforms.Resize(256),
            transforms.CenterCrop(256),
            transforms.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )
    pairs = theirs(photographs, prepare)
    ssim, distance = StructuralSimilarityIndexMeasure(data_range=(-1.0, 1.0)), lpips_of("vgg")
    psnr = []
    for pair in pairs:
        a, b = (torch.clamp(127.5 * x + 128.0, 0, 255).to(torch.uint8).float() for x in pair)
        psnr.append(20 * torch.log10(255.0 / torch.sqrt(torch.mean((a - b) ** 2))).item())
    found = ours("vavae", photographs, ("psnr", "ssim_signed", "lpips_vgg"))
    assert found["psnr"] == pytest.approx(mean(psnr), abs=1e-3)
    assert found["ssim_signed"] == pytest.approx(mean([ssim(*pair).item() for pair in pairs]), abs=1e-5)
    assert found["lpips_vgg"] == pytest.approx(mean([distance(*pair) for pair in pairs]), abs=1e-5)
    assert min(pair[0].min().item() for pair in pairs) < -1  # LPIPS sees what lies outside
    clamped = mean([distance(a.clamp(-1, 1), b) for a, b in pairs])
    assert abs(clamped - mean([distance(*pair) for pair in pairs])) > 1e-4


def test_seed(photographs: list[Image.Image]) -> None:
    """evaluation_image.py and data/base.py. A reconstruction that differs in its last digit is truncated to another
    level now and then: 1e-3 dB of PSNR, 1e-5 of SSIM."""

    def prepare(photograph: Image.Image) -> Tensor:
        picture = transforms.Compose([transforms.Resize(256), transforms.CenterCrop((256, 256))])(photograph)
        return torch.from_numpy((np.array(picture) / 127.5 - 1.0).astype(np.float32)).permute(2, 0, 1)

    pairs = [(reconstruction.clamp(-1, 1), image) for reconstruction, image in theirs(photographs, prepare)]
    psnr, ssim = [], []
    for pair in pairs:
        a, b = (
            (((x + 1) / 2) * 255.0).permute(0, 2, 3, 1).to(torch.uint8).numpy()[0].astype(np.float32) / 255.0
            for x in pair
        )
        psnr.append(peak_signal_noise_ratio(b, a))
        ssim.append(structural_similarity(a, b, data_range=1.0, channel_axis=-1))
    found = ours("seed", photographs, ("psnr", "ssim_uniform", "lpips_vgg", "lpips_alex"))
    assert found["psnr"] == pytest.approx(mean(psnr), abs=1e-3)
    assert found["ssim_uniform"] == pytest.approx(mean(ssim), abs=1e-5)
    for distance, name in ((lpips_of("vgg"), "lpips_vgg"), (lpips_of("alex"), "lpips_alex")):
        assert found[name] == pytest.approx(mean([distance(b, a) for a, b in pairs]), abs=1e-5)


def test_titok_prepares_as_its_reader(photographs: list[Image.Image]) -> None:
    """webdataset_reader.py: bicubic on 8-bit pictures, bit for bit. Its evaluator rounds a reconstruction to the
    nearest level, and multiplies what is rounded by 255 again."""
    prepare = transforms.Compose(
        [
            transforms.Resize(256, interpolation=transforms.InterpolationMode.BICUBIC, antialias=True),
            transforms.CenterCrop(256),
            transforms.ToTensor(),
        ]
    )
    protocol = published_protocol("titok")
    for photograph in photographs:
        expected = (prepare(photograph) * 255).to(torch.uint8)
        array = fit_image(decode_image(encode_image(unit(photograph), "png"), "png", 3), protocol.image, None)
        image = torch.from_numpy(array)[None]
        reconstruction = Coarse().decode(Coarse().encode(image), size=(256, 256))
        rounded, levels = ImagePairs(reconstruction, image).rounded("nearest")
        assert torch.equal(levels[0], expected)
        fake = torch.round(((reconstruction + 1) / 2).clamp(0, 1) * 255.0) / 255.0
        same = (rounded == (fake * 255).to(torch.uint8)).double().mean().item()
        assert same > 0.9999  # a value halfway between two levels may go either way


@pytest.mark.parametrize("name", PUBLISHED_PROTOCOLS)
def test_every_value_is_named_in_the_protocol(name: PublishedProtocol) -> None:
    protocol = published_protocol(name, seed=3)
    assert (protocol.name, protocol.seed, protocol.image.resize, protocol.image.crop) == (name, 3, 256, 256)
    assert set(protocol.rounding) <= set(protocol.metrics)
