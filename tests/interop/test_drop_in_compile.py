"""torch.compile around a drop-in, and around parts of it: as around an AutoencoderKL.

The backend is `eager`: what is tested is what is captured. `fullgraph` fails where the capture breaks off.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from ldm_vae import LatentCodec
from tests.interop.passes import IMAGES, LATENTS, count_passes, results

pytestmark = pytest.mark.numerical


def compiled(function: Any, fullgraph: bool = True) -> Any:
    return torch.compile(function, backend="eager", fullgraph=fullgraph)


def of_methods(vae: Any) -> dict[str, Tensor]:
    vae.encode, vae.decode = compiled(vae.encode), compiled(vae.decode)
    return results(vae)


def of_the_model(vae: Any) -> dict[str, Tensor]:
    return {"forward": compiled(vae)(IMAGES).sample}


def in_place(vae: Any) -> dict[str, Tensor]:
    vae.compile(backend="eager", fullgraph=True)
    return {"forward": vae(IMAGES).sample}


def of_modules(vae: Any) -> dict[str, Tensor]:
    vae.encoder, vae.decoder = compiled(vae.encoder), compiled(vae.decoder)
    return results(vae)


def of_modules_in_place(vae: Any) -> dict[str, Tensor]:
    vae.encoder.compile(backend="eager")
    vae.decoder.compile(backend="eager")
    return results(vae)


def of_a_function_around(vae: Any) -> dict[str, Tensor]:
    return {"around": compiled(lambda z: vae.decode(2 * z, return_dict=False)[0].clamp(-1, 1))(LATENTS)}


def exported(vae: Any) -> dict[str, Tensor]:
    program = torch.export.export(vae, (IMAGES,), strict=False)
    return {"forward": program.module()(IMAGES).sample}


WAYS: dict[str, Callable[[Any], dict[str, Tensor]]] = {
    "vae.decode = torch.compile(vae.decode)": of_methods,
    "vae.decoder = torch.compile(vae.decoder)": of_modules,
    "torch.compile(vae)": of_the_model,
    "vae.compile()": in_place,
    "vae.decoder.compile()": of_modules_in_place,
    "a compiled function that decodes": of_a_function_around,
    "torch.export": exported,
}


@pytest.fixture
def vae() -> AutoencoderKL:
    """One level, with attention in the middle."""
    vae: Any = AutoencoderKL(block_out_channels=[8], norm_num_groups=4)
    return vae.eval().requires_grad_(False)


MOMENTS = [(way, True) for way in WAYS] + [(way, False) for way in list(WAYS)[:2]]  # a capture takes seconds


@pytest.mark.parametrize(("way", "used"), MOMENTS)
def test_what_is_compiled_is_diffusers_own_pass(
    vae: AutoencoderKL, way: str, used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.compiler.reset()
    ours = LatentCodec.load(copy.deepcopy(vae)).as_diffusers()
    with torch.no_grad():
        if used:
            results(ours)
        calls = count_passes(monkeypatch)
        found, expected = WAYS[way](ours), WAYS[way](copy.deepcopy(vae))
    assert found.keys() == expected.keys()
    for part, value in expected.items():
        assert torch.equal(found[part], value)
    assert not calls
