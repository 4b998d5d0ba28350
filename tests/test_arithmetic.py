"""float32 is exact inside our own networks, on every path, and the process's flags are then what they were.

Flags are read here as PyTorch shows them, from inside the networks. On a CPU they change nothing; a GPU heeds them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ldm_vae import LatentCodec
from ldm_vae.arithmetic import exact_float32, float32_in_words, tf32_convolutions
from ldm_vae.bottlenecks.scale import LatentScale
from ldm_vae.data.images.fit import ImageConfig
from ldm_vae.diagnostics.inspect import InspectionJob, inspect_codec
from ldm_vae.evaluation.evaluate import describe_codec, evaluate_shards
from ldm_vae.evaluation.results import EvaluationProtocol
from ldm_vae.latents.measure import measure_statistics
from ldm_vae.networks.kl import Autoencoder, AutoencoderConfig
from ldm_vae.nn.blocks import ResBlock
from ldm_vae.piecewise import decode_pieces, encode_pieces
from tests.arithmetic_flags import (
    SET_BEFORE,
    Flags,
    convolutions_exact_alone,
    fast,
    flags,
    is_exact,
    set_by_a_caller,
    watched,
)

pytestmark = pytest.mark.numerical

IMAGES, LATENTS = torch.rand(1, 3, 16, 24) * 2 - 1, torch.randn(1, 4, 8, 12)


def new_codec() -> LatentCodec:
    torch.manual_seed(0)
    model = Autoencoder(AutoencoderConfig(block_out_channels=(8, 16), norm_groups=4, layers_per_block=1))
    return LatentCodec(model.eval().requires_grad_(False), LatentScale(0.25))


PATHS: dict[str, Callable[[LatentCodec], object]] = {
    "encode": lambda codec: codec.encode(IMAGES),
    "decode": lambda codec: codec.decode(LATENTS),
    "in pieces": lambda codec: codec.reconstruct(IMAGES, max_memory=2**22),
    "pieces alone": lambda codec: (encode_pieces(codec.model, IMAGES), decode_pieces(codec.model, LATENTS)),
    "again, since float16 overflows": lambda codec: LatentCodec(codec.model.half()).decode(1e9 * LATENTS),
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("set_before", SET_BEFORE)
def test_float32_is_exact_while_a_codec_runs(path: str, set_before: Callable[[], None]) -> None:
    codec = new_codec()
    with set_by_a_caller(set_before) as before:
        with watched() as found:
            PATHS[path](codec)
        assert found and all(map(is_exact, found)) and not is_exact(before)
        assert flags() == before


@pytest.mark.parametrize("set_before", SET_BEFORE)
def test_float32_is_exact_inside_a_drop_in(set_before: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    vae, found, run = new_codec().as_diffusers(), [], ResBlock.forward

    def noted(block: ResBlock, x: Tensor) -> Tensor:  # a hook for all modules would bring diffusers' own pass
        found.append(flags())
        return run(block, x)

    monkeypatch.setattr(ResBlock, "forward", noted)
    with set_by_a_caller(set_before) as before:
        vae.decode(vae.encode(IMAGES).latent_dist.mode())
        assert found and all(map(is_exact, found))
        assert flags() == before


def test_evaluation_and_statistics_say_what_they_computed_with(shards: Path) -> None:
    codec, data = new_codec(), str(shards / "validation")
    protocol = EvaluationProtocol(metrics=("psnr", "lpips_alex"))
    with set_by_a_caller(fast) as before:
        with watched() as of_evaluation:
            evaluate_shards(codec, data, protocol)
        with watched() as of_statistics:
            statistics = measure_statistics(codec, data, ImageConfig(), batch=2, done=lambda images, total: None)
        assert flags() == before
    with watched() as of_codec:
        codec.reconstruct(IMAGES)
    assert len(of_evaluation) % len(of_codec)  # layers of LPIPS are among them
    assert of_statistics and all(map(is_exact, of_evaluation + of_statistics))
    assert statistics.protocol["float32"] == describe_codec(codec)["float32"] == "exact"


class Products:
    """A codec that is no network of ours, as the baseline PCA is none."""

    device = torch.device("cpu")

    def encode(self, images: Tensor) -> Tensor:
        return torch.einsum("bchw,cp->bphw", images, torch.eye(3))

    def decode(self, latents: Tensor, *, size: tuple[int, int]) -> Tensor:
        return torch.einsum("bphw,cp->bchw", latents, torch.eye(3))


def test_evaluation_of_another_codec_is_exact(shards: Path) -> None:
    with set_by_a_caller(fast), watched() as found:
        evaluate_shards(Products(), str(shards / "validation"), EvaluationProtocol(metrics=("psnr",)))
    assert found and all(map(is_exact, found))


def test_inspection_is_exact(shards: Path, tmp_path: Path) -> None:
    job = InspectionJob(str(shards / "validation"), ImageConfig(), images=3)
    with set_by_a_caller(fast) as before:
        with watched() as found:
            inspect_codec(new_codec(), job, tmp_path / "out", model={})
        assert found and all(map(is_exact, found))
        assert flags() == before


def test_flags_come_back_after_an_error() -> None:
    codec = new_codec()
    with set_by_a_caller(fast) as before:
        with pytest.raises(RuntimeError, match="channels"):
            decode_pieces(codec.model, torch.randn(1, 3, 8, 12))
        assert flags() == before


def test_the_last_thread_puts_the_flags_back_and_exact_wins() -> None:
    """One thread begins, another one begins and ends meanwhile: the first must not lose what it asked for."""
    begun, end = threading.Event(), threading.Event()

    def hold() -> None:
        with exact_float32():
            begun.set()
            assert end.wait(60)

    first = threading.Thread(target=hold)
    with set_by_a_caller(fast) as before:
        with tf32_convolutions():
            first.start()
            assert begun.wait(60)
            assert is_exact(flags())
        assert is_exact(flags())  # who began first has ended, and the other one goes on
        end.set()
        first.join()
        assert flags() == before


def test_what_is_rounded_is_named() -> None:
    with tf32_convolutions():
        assert float32_in_words("cuda") == "conv tf32, rnn tf32"
        assert float32_in_words("cpu") == "exact"
        with exact_float32():
            assert float32_in_words("cuda") == "exact"
    with set_by_a_caller(fast):
        assert float32_in_words("cpu") == "matmul bf16"


@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace the builtin:UserWarning")
def test_float32_is_exact_in_what_torch_compile_makes_of_a_method() -> None:
    """The flags are set where the compiled parts run, not only while they are traced.

    Not with `medium`, of which the compiler of PyTorch 2.8 itself makes `high`.
    """
    found: list[Flags] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        def run(*inputs: object) -> object:
            if any("conv" in str(node.target) for node in graph.graph.nodes):
                found.append(flags())
            return graph(*inputs)

        return run

    codec = new_codec()
    decode: Callable[[Tensor], Tensor] = torch.compile(codec.decode, backend=backend)
    with set_by_a_caller(convolutions_exact_alone) as before:
        images = decode(LATENTS)
        assert found and all(map(is_exact, found)) and flags() == before
    assert torch.equal(images, codec.decode(LATENTS))
