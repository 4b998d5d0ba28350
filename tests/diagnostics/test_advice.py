"""Every field of a recipe that an advice names exists and concerns the codec, so that a person can change it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import get_args

import pytest
from pydantic import BaseModel
from torch import Tensor

from ldm_vae.codec import LatentCodec
from ldm_vae.diagnostics import blur, equivariance, robustness, smoothness, spectrum
from ldm_vae.diagnostics.findings import Verdict
from ldm_vae.diagnostics.probes import Probes
from ldm_vae.diagnostics.robustness import inspect_robustness
from ldm_vae.diagnostics.smoothness import inspect_smoothness
from ldm_vae.recipe import with_all_kinds
from tests.conftest import ROOT
from tests.diagnostics.conftest import averaging, pictures
from train.recipe import Recipe

NAMED = re.compile(r"\b(?:" + "|".join(Recipe.model_fields) + r")(?:\.[a-z_]+)+")


def fields() -> set[str]:
    text = "\n".join(path.read_text() for path in (ROOT / "ldm_vae" / "diagnostics").glob("*.py"))
    prose = "\n".join(line for line in text.splitlines() if line.lstrip().startswith(('"', 'f"', "advice=")))
    return set(NAMED.findall(prose))


def test_advice_names_fields() -> None:
    assert {"loss.rate.weight", "discriminator.generator_start", "ema.decay", "model.latent_channels"} <= fields()


BAD: dict[str, Callable[[bool], Verdict]] = {  # gaussian -> a bad verdict
    "smoothness": lambda gaussian: smoothness._verdict(9.0, blank=False, gaussian=gaussian),
    "noise": lambda gaussian: robustness._noise(9.0, 0.1, gaussian),
    "storage": lambda gaussian: robustness._storage({8: 9.0}, 0.1, gaussian),
    "spectrum": lambda gaussian: spectrum._verdict(0.7, 0.1, gaussian),
    "equivariance": lambda gaussian: equivariance._verdict("turns", "quarter turns", 120.0, 3.0, gaussian),
    "invented detail": lambda gaussian: blur._verdict(0.0, 0.1, 0.1, gaussian),
    "no detail": lambda gaussian: blur._verdict(-20.0, 0.1, 0.1, gaussian),
}


@pytest.mark.parametrize("name", BAD)
def test_only_a_gaussian_is_told_to_change_the_price_of_its_rate(name: str) -> None:
    for gaussian in (True, False):
        verdict = BAD[name](gaussian)
        assert verdict.level in ("warning", "bad") and verdict.advice.endswith(".")
        assert ("loss.rate.weight" in verdict.advice) == gaussian


def test_the_bottleneck_says_whether_it_is_gaussian(
    probes_of: Callable[[LatentCodec, Tensor], Probes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Latents whose channels differ that much in size give a steep decoder."""
    codec = averaging(gains=[1.0, 0.1, 2.0])
    probes = probes_of(codec, pictures(4))
    for gaussian in (True, False):
        monkeypatch.setattr(codec.model.bottleneck, "gaussian", gaussian)
        for section in (inspect_smoothness(codec, probes, 0), inspect_robustness(codec, probes, 0)):
            assert ("loss.rate.weight" in section.verdicts[0].advice) == gaussian


@pytest.mark.parametrize("field", sorted(fields()))
def test_the_field_is_in_the_recipe(field: str) -> None:
    section: type[BaseModel] = with_all_kinds(Recipe)  # of each section the first kind, which is the default
    for name in field.split("."):
        assert name in section.model_fields, f"{field}: {name} is no field of {section.__name__}"
        kinds = [section.model_fields[name].annotation, *get_args(section.model_fields[name].annotation)]
        section = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), section)
