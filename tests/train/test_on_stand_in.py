"""A training step on a device that pretends to be a GPU: it waits for nothing, and takes the memory that is counted."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from ldm_vae.recipe import load_recipe
from tests.tools.stand_in.play import play
from tests.tools.stand_in.scenes import NAMED
from train.build import build_autoencoder
from train.cost import Cost, count_step
from train.recipe import Recipe

STEPS: tuple[list[str], ...] = (  # every way through the step; counts of waits don't depend on the network's size
    [],
    ["precision=bfloat16"],
    ["precision=bfloat16", "norms=bfloat16"],
    ["discriminator.order=compvis", "optimizer.accumulation=2"],
    ["optimizer.clip=1", "loss.perceptual.channels=select", "loss.perceptual.select=[2,1,0]"],
    ["loss.pixel.learned_variance=true", "discriminator.adaptive=false"],
    ["discriminator=null", "model.gradient_checkpointing=true"],
)
Row = tuple[list[str], list[float]]


def table() -> Iterator[Row]:
    """The rows of docs/performance.md: recipe and changes; kernels, waits, GiB at the peak, GiB of an image."""
    for line in Path("docs/performance.md").read_text().splitlines():
        if re.match(r"\| `kl_\w+` \| (float32|bfloat16) \|", line):
            name, precision, changes, *numbers = (cell.strip() for cell in line.strip("|").split("|"))
            more = [change.strip("` ") for change in changes.split(",") if change]
            yield ([f"{name.strip('`')}.yaml", f"precision={precision}", *more], [float(number) for number in numbers])


def counted_twice(rows: Sequence[Row], images: int, side: int) -> Iterator[tuple[dict[str, Any], Cost, Row]]:
    """Each recipe's step: on the device, on meta."""
    files = [";".join([str(Path("configs") / name), *changes]) for (name, *changes), _ in rows]
    for row, counts in zip(rows, play("steps", str(images), str(side), *files), strict=True):
        name, *changes = row[0]
        recipe = load_recipe(Recipe, Path("configs") / name, [*NAMED, *changes])
        autoencoder, recipe = build_autoencoder(recipe, device="meta")
        yield counts, count_step(recipe, autoencoder, (side, side), images), row


def test_a_step_waits_for_nothing(recipe: Path) -> None:
    for changes, counts in zip(
        STEPS, play("steps", "2", "64", *(";".join([str(recipe), *each]) for each in STEPS)), strict=True
    ):
        assert counts["waits"] == {}, changes
        assert counts["pageable"] == {}, changes
        assert counts["kernels"] > 100 and counts["up"] > 2 * 3 * 64 * 64 * 4  # images and noise went there
        assert counts["down"] == 0


def test_memory_is_what_a_dry_run_counts() -> None:
    """Within 1 %, without fitted constants: both count each tensor that exists, and differ by some small ones."""
    rows = list(table())
    assert len(rows) == 15 and len({row[0][0] for row in rows}) == 3
    for counts, cost, row in counted_twice([*rows[::4], rows[11]], 2, 64):  # of each network, precision and order
        assert cost.state == pytest.approx(counts["state"], rel=0.01), row
        assert cost.peak == pytest.approx(counts["peak"], rel=0.01), row
        assert counts["peak"] > 1.2 * counts["state"]  # so that what is compared is what the step takes


@pytest.mark.slow
def test_the_page_says_what_a_step_takes() -> None:
    """Of kernels other versions of PyTorch start some more or fewer; bytes are the page's but for its rounding."""
    for counts, cost, row in counted_twice(list(table()), 8, 256):
        kernels, waits, peak, image = row[1]
        assert counts["kernels"] == pytest.approx(kernels, rel=0.1) and waits == 0 and counts["waits"] == {}, row
        assert cost.peak == pytest.approx(counts["peak"], rel=0.01), row
        assert counts["peak"] / 2**30 == pytest.approx(peak, abs=0.051), row
        assert (counts["peak"] - counts["state"]) / 8 / 2**30 == pytest.approx(image, abs=0.0051), row
