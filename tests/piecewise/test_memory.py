"""The memory of a whole process, copies of the convolution library included: what a bound promises to the machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# Bytes beyond a bound, as docs/performance.md states them: kernels that libraries write at first use, pages that are
# used in part, and the 4 MiB that a process grows before malloc is asked again.
BEYOND = 32 * 2**20

PROGRAM = """
import json, re, sys
from pathlib import Path
import torch
from ldm_vae import LatentCodec, UserError
from ldm_vae.networks.kl import Autoencoder, AutoencoderConfig
from ldm_vae.piecewise import decode_pieces, encode_pieces

asked = json.loads(sys.argv[1])
torch.set_num_threads(asked.get("threads", 1))
shape = dict(block_out_channels=(32, 64, 64), norm_groups=8, layers_per_block=1) | asked.get("network", {})
shape["block_out_channels"] = tuple(shape["block_out_channels"])
model = Autoencoder(AutoencoderConfig(**shape)).eval().requires_grad_(False)
if asked.get("channels_last"):
    model = model.to(memory_format=torch.channels_last)
model.cast(getattr(torch, asked.get("dtype", "float32")))
codec, (height, width), f = LatentCodec(model), asked["size"], model.config.factor
batch, decode = asked.get("batch", 1), asked["direction"] == "decode"
if decode:
    x = torch.randn(batch, model.config.latent_channels, -(-height // f), -(-width // f))
else:
    x = torch.rand(batch, model.config.in_channels, height, width) * 2 - 1

def run(x, bound=None):
    return codec.decode(x, max_memory=bound) if decode else codec.encode(x, max_memory=bound)

def memory(name):
    return 1024 * int(re.search(rf"{name}:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

if asked.get("warm", True):
    run(x[:, :, :32, :32])  # the libraries load
bound = asked["MiB"] and int(asked["MiB"] * 2**20)
if asked["MiB"] == 0:  # the least
    try:
        run(x, 1)
    except UserError as error:
        bound = int(error.remedy.split()[-1].replace(",", ""))
if asked.get("full"):
    run = lambda x, bound: model.decode(x) if decode else model.encode(x)
Path("/proc/self/clear_refs").write_text("5")  # the peak is now what there is
before = memory("VmHWM")
run(x, bound)
print(json.dumps({"grown": memory("VmHWM") - before, "bound": bound}))
"""


def measure(**asked: Any) -> dict[str, int]:
    """Growth of a fresh process at its peak, in bytes, and the bound.

    asked: direction, size in pixels, MiB of the bound (0: the least that is possible; None: no bound), and others.
    """
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("needs Linux")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(asked)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout)
    return found


def grid() -> list[Any]:
    """Sizes and bounds; some of the cells with another network, type, layout, batch, or number of threads."""
    attending = {"block_out_channels": (32, 64, 128, 128), "norm_groups": 32, "layers_per_block": 2}
    cells: list[dict[str, Any]] = [
        {"direction": direction, "size": size, "MiB": bound}
        for size, bounds in {(704, 576): (0, 60, 110), (1024, 1536): (180, 400, 450), (1536, 1536): (600,)}.items()
        for bound in bounds
        for direction in ("decode", "encode")
    ]
    cells += [
        {"direction": "decode", "size": (1536, 1024), "MiB": 450, "network": attending, "threads": 2},
        {"direction": "encode", "size": (1001, 1203), "MiB": 200, "warm": False},
        {"direction": "decode", "size": (1001, 1203), "MiB": 250, "warm": False},
        {"direction": "decode", "size": (1024, 1024), "MiB": 200, "batch": 3},
        {"direction": "encode", "size": (1024, 1024), "MiB": 200, "batch": 3},
        {"direction": "decode", "size": (1024, 1024), "MiB": 200, "dtype": "bfloat16"},
        {"direction": "encode", "size": (1023, 1023), "MiB": 200, "dtype": "bfloat16"},
        {"direction": "decode", "size": (1024, 1024), "MiB": 250, "channels_last": True},
        {"direction": "decode", "size": (512, 2048), "MiB": 300, "dtype": "float64"},
    ]
    return [pytest.param(cell, id="-".join(map(str, cell.values()))) for cell in cells]


@pytest.mark.slow
@pytest.mark.parametrize("cell", grid())
def test_process_grows_by_the_bound_at_most(cell: dict[str, Any]) -> None:
    found = measure(**cell)
    assert found["grown"] <= found["bound"] + BEYOND, {name: value // 2**20 for name, value in found.items()}


def test_process_grows_by_the_bound_at_most_where_malloc_would_hold_more() -> None:
    asked = {"direction": "decode", "size": (704, 576), "MiB": 100}
    assert measure(**asked)["grown"] <= 100 * 2**20 + BEYOND


@pytest.mark.slow
def test_default_decodes_in_half_of_the_memory_of_the_full_pass() -> None:
    asked = {"direction": "decode", "size": (1024, 1024), "MiB": None}
    assert measure(**asked)["grown"] <= 0.5 * measure(**asked, full=True)["grown"]
