"""Inception's weights: one file by its sha256, wherever it comes from; a random network stands in for it."""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import socket
from pathlib import Path

import pytest
import skimage.data
import torch
from PIL import Image
from torch_fidelity import calculate_metrics
from torch_fidelity import feature_extractor_inceptionv3 as theirs

from ldm_vae.data.images.pixels import to_uint8
from ldm_vae.data.stream.batch import Batch
from ldm_vae.errors import UserError
from ldm_vae.evaluation.evaluate import Metrics, evaluate_batches
from ldm_vae.evaluation.results import EvaluationProtocol
from ldm_vae.pretrained import inception

pytestmark = pytest.mark.numerical


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state dict of the whole network, at random."""
    file = tmp_path_factory.mktemp("inception") / "random.pth"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(theirs, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(theirs.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        torch.manual_seed(0)
        state = theirs.FeatureExtractorInceptionV3("random", ["2048"]).state_dict()
        for name in state:
            if name.endswith("bn.weight"):
                state[name] *= 6**0.5  # PyTorch's initialisation loses that much a layer: features would be all but 0
        torch.save(state, file)
    return file


@pytest.fixture
def pinned(weights: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The random file is the one that is wanted; caches are empty, and no host answers."""
    monkeypatch.setattr(inception, "WEIGHTS_SHA256", hashlib.sha256(weights.read_bytes()).hexdigest())
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{unused.getsockname()[1]}"
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, nobody)
    monkeypatch.setenv("LDM_VAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return weights


def test_the_pinned_file_is_torch_fidelitys() -> None:
    """Its own name holds the first eight digits."""
    assert inception.URL_INCEPTION_V3 == theirs.URL_INCEPTION_V3
    assert inception.URL_INCEPTION_V3.endswith(f"-{inception.WEIGHTS_SHA256[:8]}.pth")
    assert len(inception.WEIGHTS_SHA256) == 64


def test_features_are_torch_fidelitys(pinned: Path) -> None:
    images = torch.randint(0, 256, (2, 3, 37, 52), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    reference = theirs.FeatureExtractorInceptionV3("x", ["2048"], feature_extractor_weights_path=str(pinned))
    with torch.inference_mode():
        (found,), (expected,) = inception.inception(pinned)(images), reference(images)
    assert found.shape == (2, 2048)
    assert torch.equal(found, expected)
    assert not torch.equal(found[0], found[1])


def test_features_as_pytorch_fid_takes_them(pinned: Path) -> None:
    """The network is torch-fidelity's, given what pytorch-fid's preparation would give; only the preparation is ours.

    A hook gives pytorch-fid's values to the first layer, in place of those that torch-fidelity prepares."""
    images = torch.randint(0, 256, (2, 3, 37, 52), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    network = inception.inception(pinned)
    prepared = torch.nn.functional.interpolate(images / 255.0, (299, 299), mode="bilinear", align_corners=False) * 2 - 1
    with torch.inference_mode():
        found = inception.features_as_pytorch_fid(network, images)
        network.Conv2d_1a_3x3.register_forward_pre_hook(lambda *_: (prepared,))
        expected = network(images)[0]
    assert torch.equal(found, expected)
    assert found.shape == (2, 2048)


def test_the_whole_way_agrees_with_torch_fidelity(pinned: Path, tmp_path: Path) -> None:
    """Images as files through its own command, one at a time as their sizes differ, against ours through the codec:
    1e-3 is promised."""
    pixels = torch.from_numpy(skimage.data.astronaut().copy()).permute(2, 0, 1)
    batches = []
    for i in range(6):
        image = pixels[:, 40 * i : 40 * i + 96 + 8 * (i % 2), 30 * i : 30 * i + 100]
        batches.append(Batch(image[None] / 127.5 - 1.0, None, [f"{i}"], torch.zeros(1)))
        for folder, array in (("ours", image // 32 * 32), ("theirs", image)):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(array.permute(1, 2, 0).numpy()).save(tmp_path / folder / f"{i}.png")

    class Coarse:
        device = torch.device("cpu")

        def encode(self, images: torch.Tensor) -> torch.Tensor:
            return to_uint8(images) // 32

        def decode(self, latents: torch.Tensor, *, size: tuple[int, int]) -> torch.Tensor:
            return latents * 32 / 127.5 - 1.0

    protocol = EvaluationProtocol(metrics=("rfid", "kid"))
    metrics = Metrics(protocol, "cpu", inception_file=pinned)
    found = evaluate_batches(Coarse(), batches[::-1], protocol, metrics=metrics).metrics
    expected = calculate_metrics(
        input1=str(tmp_path / "ours"),
        input2=str(tmp_path / "theirs"),
        fid=True,
        kid=True,
        kid_subsets=1,
        kid_subset_size=6,
        batch_size=1,
        feature_extractor_weights_path=str(pinned),
        cuda=False,
        cache=False,
        verbose=False,
    )
    assert expected["frechet_inception_distance"] > 1e-3
    assert abs(expected["kernel_inception_distance_mean"]) > 1e-3  # of pairs this close it is below 0
    assert found["rfid"] == pytest.approx(expected["frechet_inception_distance"], rel=1e-3)
    assert found["kid"] == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-3)


@pytest.mark.parametrize(
    "place", [("cache", inception.WEIGHTS_FILE), ("torch/hub/checkpoints", inception.WEIGHTS_FILE_OF_PYTORCH_FID)]
)
def test_found_where_it_may_lie(pinned: Path, tmp_path: Path, place: tuple[str, str]) -> None:
    folder = tmp_path / place[0]
    folder.mkdir(parents=True)
    shutil.copy(pinned, folder / place[1])
    assert isinstance(inception.inception(), theirs.FeatureExtractorInceptionV3)


def test_fetched_once_into_the_cache(pinned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the real client, from a file:// address; a damaged file in the cache is fetched again."""
    monkeypatch.setattr(inception, "URL_INCEPTION_V3", pinned.as_uri())
    kept = tmp_path / "cache" / inception.WEIGHTS_FILE
    kept.parent.mkdir()
    kept.write_bytes(b"half a download")
    inception.inception()
    assert kept.read_bytes() == pinned.read_bytes()
    monkeypatch.setattr(inception, "URL_INCEPTION_V3", "file:///nowhere")
    inception.inception()


def test_unreachable_names_the_remedies(pinned: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Inception weights can't be fetched") as caught:
        inception.inception()
    message = str(caught.value)
    assert "--inception" in message and str(tmp_path / "cache") in message and "\n" not in message
    assert not (tmp_path / "cache" / inception.WEIGHTS_FILE).exists()


def test_another_file_is_refused(pinned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = torch.load(pinned, weights_only=True)
    state["fc.bias"][0] += 1
    torch.save(state, tmp_path / "changed.pth")
    with pytest.raises(UserError, match=f"its sha256 is .*, not {inception.WEIGHTS_SHA256}"):
        inception.inception(tmp_path / "changed.pth")
    with pytest.raises(UserError, match="not found"):
        inception.inception(tmp_path / "absent.pth")


class _Command:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.trace}",)


def test_no_code_of_a_file_runs(pinned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even of one with the right sha256. The attack is real: the class itself would fall for it."""
    trace, file = tmp_path / "trace", tmp_path / "attack.pth"
    torch.save({"fc.bias": _Command(trace)}, file)
    monkeypatch.setattr(inception, "WEIGHTS_SHA256", hashlib.sha256(file.read_bytes()).hexdigest())
    with pytest.raises(UserError, match="no state dict of tensors alone"):
        inception.inception(file)
    assert not trace.exists()
    with pytest.raises((RuntimeError, pickle.UnpicklingError)):
        theirs.FeatureExtractorInceptionV3("x", ["2048"], feature_extractor_weights_path=str(file))
    assert trace.exists()
