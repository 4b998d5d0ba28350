"""Every field of a recipe that an advice names exists, so that a person can change it."""

from __future__ import annotations

import re
from typing import get_args

import pytest
from pydantic import BaseModel

from ldm_vae.recipe import with_all_kinds
from tests.conftest import ROOT
from train.recipe import Recipe

NAMED = re.compile(r"\b(?:" + "|".join(Recipe.model_fields) + r")(?:\.[a-z_]+)+")


def fields() -> set[str]:
    text = "\n".join(path.read_text() for path in (ROOT / "ldm_vae" / "diagnostics").glob("*.py"))
    prose = "\n".join(line for line in text.splitlines() if line.lstrip().startswith(('"', 'f"', "advice=")))
    return set(NAMED.findall(prose))


def test_advice_names_fields() -> None:
    assert {"loss.rate.weight", "discriminator.generator_start", "ema.decay", "model.latent_channels"} <= fields()


@pytest.mark.parametrize("field", sorted(fields()))
def test_the_field_is_in_the_recipe(field: str) -> None:
    section: type[BaseModel] = with_all_kinds(Recipe)  # of each section the first kind, which is the default
    for name in field.split("."):
        assert name in section.model_fields, f"{field}: {name} is no field of {section.__name__}"
        kinds = [section.model_fields[name].annotation, *get_args(section.model_fields[name].annotation)]
        section = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), section)
