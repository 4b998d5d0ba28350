"""Scenes that tests play on the stand-in device, each in a process of its own: python scenes.py SCENE [ARGUMENT ...].

A scene prints what it found as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[3]))

import torch

from tools.stand_in.device import stand_in
from tools.stand_in.record import RECORD
from tools.stand_in.tensor import NAME

NAMED = ("data.train=none", "data.validation=null", "output=none", "log.trackers=[]", "steps=60000")


def refuses() -> list[str]:
    """What CUDA refuses; the words of the errors."""
    with stand_in():
        here, there = torch.ones(3), torch.ones(3, device=NAME)
        found = []
        for attempt in (
            lambda: here + there,
            lambda: torch.where(there > 0, here, there),
            lambda: there.numpy(),
            lambda: torch.randn(3, device=NAME, generator=torch.Generator()),
        ):
            try:
                attempt()
            except (RuntimeError, TypeError) as error:
                found.append(f"{type(error).__name__}: {error}")
        assert torch.equal((there * 2 + torch.tensor(1.0)).to("cpu"), torch.full((3,), 3.0))  # a scalar of the host may
    return found


def waits() -> dict[str, list[str]]:
    """What makes the host wait, and what doesn't; the reasons noted for each."""
    with stand_in():
        values, pinned = torch.arange(6.0, device=NAME), torch.zeros(6).pin_memory()
        found = {}
        for name, work in {
            "item": lambda: values.sum().item(),
            "list": lambda: values[[0, 2]],
            "mask": lambda: values[values > 2],
            "nonzero": lambda: values.nonzero(),
            "to the device": lambda: torch.zeros(6).to(NAME),
            "from the device": lambda: values.cpu(),
            "event": lambda: torch.Event(NAME).synchronize(),
            "slice": lambda: values[1:4] + 1,
            "pinned": lambda: pinned.to(NAME, non_blocking=True),
            "pageable": lambda: torch.zeros(6).to(NAME, non_blocking=True),
        }.items():
            RECORD.reset()
            work()
            found[name] = [reason.split(",")[0].split(" at ")[0] for reason in (*RECORD.waits, *RECORD.pageable)]
    return found


def memory() -> dict[str, int]:
    """Bytes on the device: of tensors, of views, after a tensor is gone; and a device that is full."""
    with stand_in():
        start = RECORD.now
        first = torch.zeros(1000, device=NAME)
        view, second = first[10:], first + 1
        found = {"two": RECORD.now - start}
        del first, second
        found["a view is left"] = RECORD.now - start
        del view
        found["none"] = RECORD.now - start
        for name, limit in (("capacity", RECORD.now + 3999), ("enough", RECORD.now + 4000)):
            RECORD.capacity = limit
            try:
                torch.zeros(1000, device=NAME)
                found[name] = 1
            except torch.OutOfMemoryError:
                found[name] = 0
        RECORD.reset()
        RECORD.refuse = 2
        kept = [torch.zeros(1, device=NAME)]
        try:
            torch.zeros(1, device=NAME)
            found["second"] = len(kept)
        except torch.OutOfMemoryError:
            found["second"] = 0
    return found


def autocast() -> dict[str, str]:
    """Types of results under autocast."""
    with stand_in(), torch.autocast(NAME, torch.bfloat16):
        image, weight = torch.zeros(1, 4, 8, 8, device=NAME), torch.zeros(4, 4, 3, 3, device=NAME)
        hidden = torch.nn.functional.conv2d(image, weight)
        return {
            "convolution": str(hidden.dtype),
            "norm": str(torch.nn.functional.group_norm(hidden, 2).dtype),
            "silu": str(torch.nn.functional.silu(hidden).dtype),
            "sum": str(hidden.sum().dtype),
            "exp": str(hidden.exp().dtype),
        }


def gradients() -> dict[str, float]:
    """Largest differences to the CPU: of a small network with attention, and of its gradients."""
    from ldm_vae.networks.kl import Autoencoder, AutoencoderConfig

    def run(device: str) -> list[torch.Tensor]:
        torch.manual_seed(0)
        config = AutoencoderConfig(block_out_channels=(8, 16), norm_groups=4, layers_per_block=1, mid_attention=True)
        model = Autoencoder(config).to(device)
        image = torch.rand(2, 3, 16, 16).to(device).requires_grad_()
        output = model(image).reconstruction
        output.square().mean().backward()
        assert image.grad is not None
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        return [value.detach().to("cpu") for value in (output, image.grad, *gradients)]

    with stand_in() as record:
        ours, theirs = run(NAME), run("cpu")
        assert record.kernels["convolution_backward"] > 10  # it was computed there
    return {str(i): float((a - b).abs().max()) for i, (a, b) in enumerate(zip(ours, theirs, strict=True))}


def conjugates() -> float:
    """Largest difference to the CPU, of a cross-spectrum."""

    def run(device: str) -> torch.Tensor:
        a, b = torch.rand(2, 8, 9, generator=torch.Generator().manual_seed(0)).to(device).unbind()
        return (torch.fft.rfft2(a) * torch.fft.rfft2(b).conj()).real.to("cpu")

    with stand_in():
        return float((run(NAME) - run("cpu")).abs().max())


def steps(images: str, side: str, *arguments: str) -> list[dict[str, Any]]:
    """Counts of a step of so many images of side x side, for each argument: RECIPE;a.b=value;..."""

    found = []
    with stand_in(values=False):
        from ldm_vae.recipe import load_recipe
        from tools.stand_in.scenes import training_step
        from train.recipe import Recipe

        for argument in arguments:
            file, *overrides = argument.split(";")
            recipe = load_recipe(Recipe, Path(file), [*NAMED, *overrides])
            found.append(training_step(recipe, int(images), int(side)).to_json())
    return found


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](*sys.argv[2:])))
