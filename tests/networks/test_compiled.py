"""Compiled networks: no graph breaks, the same names and results, one graph for any number of images."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

from ldm_vae import LatentCodec
from ldm_vae.bottlenecks.scale import LatentScale
from ldm_vae.networks.compiled import compile_for_any_batch, compiled_parts
from ldm_vae.networks.kl import Autoencoder, AutoencoderConfig
from tests.conftest import ROOT

CONFIG = AutoencoderConfig(block_out_channels=(8, 16), layers_per_block=1, norm_groups=4, latent_channels=2)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def test_encoder_and_decoder_are_what_is_compiled() -> None:
    model = Autoencoder(CONFIG, {"log_variance": nn.Sequential(nn.Identity())})
    assert model.quant_conv is not None
    assert compiled_parts(model) == [model.encoder, model.decoder]


def test_one_graph_serves_any_number_of_images_with_the_same_results() -> None:
    torch.manual_seed(0)
    plain, compiled = Autoencoder(CONFIG), Autoencoder(CONFIG)
    compiled.load_state_dict(plain.state_dict())
    graphs = CompileCounterWithBackend("aot_eager")
    compile_for_any_batch(compiled_parts(compiled), backend=graphs)
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    codecs = [LatentCodec(model.double(), LatentScale()) for model in (plain, compiled)]
    for images in (5, 5, 3, 2, 1):  # the last batch of a data set is smaller, and may be of one image
        pictures = torch.rand(images, 3, 16, 24, dtype=torch.float64) * 2 - 1
        expected, found = (codec.reconstruct(pictures) for codec in codecs)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)  # float64, sums in another order
        assert graphs.frame_count == 2  # the encoder and the decoder
    assert not counters["graph_break"]


def test_a_single_image_is_not_computed_twice() -> None:
    model = Autoencoder(CONFIG)
    compile_for_any_batch(compiled_parts(model), backend="aot_eager")
    seen: list[int] = []
    model.encoder.conv_in.register_forward_hook(lambda module, args, output: seen.append(len(output)))
    model.encode(torch.zeros(1, 3, 16, 16))
    assert seen == [1]


def test_a_machine_without_a_compiler_is_told_so_in_a_line(tmp_path: Path) -> None:
    """In a process of its own, since torch remembers the compiler that it has found."""
    code = """
import torch
from ldm_vae.errors import UserError
from ldm_vae.networks.compiled import require_compiler
try:
    require_compiler(torch.device("cpu"))
except UserError as error:
    print(error)
"""
    said = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT, env={**os.environ, "CXX": str(tmp_path / "missing")}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert said.stdout.startswith("torch.compile does not work on cpu (InvalidCxxCompiler"), said.stderr
    assert said.stdout.endswith("install a C++ compiler (Debian: apt-get install g++), or leave compile out\n")
    assert said.stdout.count("\n") == 1
