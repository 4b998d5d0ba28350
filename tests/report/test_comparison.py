"""Runs side by side: what differs between their recipes and protocols."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from ldm_vae.report.comparison import alone, protocol_differences, recipe_differences, side_by_side
from ldm_vae.report.evaluations import Evaluations
from ldm_vae.report.run import RunFolder, read_run


def test_only_what_differs_is_listed(whole_run: Path, run: Path) -> None:
    recipe = run / "recipe.yaml"
    recipe.write_text(
        recipe.read_text().replace("batch: 4", "batch: 8, extra: {a: [1, 2]}").replace("output", "output: x #")
    )
    sides = recipe_differences([read_run(str(whole_run)), read_run(str(run))])
    assert {side.name: side.values for side in sides} == {"data.batch": ["4", "8"], "data.extra.a": ["–", "1, 2"]}


def test_runs_of_earlier_versions_differ_by_no_word_alone(whole_run: Path, run: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(whole_run, tmp_path / "other"))
    for folder, word in ((other, "bfloat16"), (run, "bf16")):
        recipe = folder / "recipe.yaml"
        recipe.write_text(recipe.read_text() + f"\nprecision: {word}\n")
    first, second = read_run(str(other)), read_run(str(run))
    assert first.recipe["precision"] == "bfloat16" and "precision: bf16" in second.recipe_text
    assert "precision" not in {row.name for row in recipe_differences([first, second])}


def test_only_what_differs_between_protocols_is_listed(whole_run: Path, run: Path) -> None:
    """Step and weights are not listed, because they are what is compared."""
    first = read_run(str(whole_run))
    assert first.results is not None and len(first.results.protocol) > 3
    second = measured(whole_run, crop="center 64", step=12345, weights_sha256="0" * 64)
    assert protocol_differences([first, first]) == protocol_differences([first, read_run(str(run))]) == []
    (found,) = protocol_differences([first, second])
    assert (found.name, found.values[1]) == ("crop", "center 64")


def measured(path: Path, **protocol: Any) -> RunFolder:
    """The run, as if its newest measurement had these entries in its protocol."""
    run = read_run(str(path))
    assert run.results is not None
    results = run.results.model_copy(update={"protocol": run.results.protocol | protocol})
    return replace(run, evaluations=Evaluations(results))


def test_other_images_at_the_same_place_are_a_difference(whole_run: Path) -> None:
    """Such as a folder whose pictures were exchanged: the protocols are the same but for what is in the shards."""
    first, second = measured(whole_run, shards_sha256="a" * 64), measured(whole_run, shards_sha256="b" * 64)
    assert side_by_side([first, second]) == [] and alone([first, second]) == [first, second]
    assert [(row.name, row.values) for row in protocol_differences([first, second])] == [
        ("shards_sha256", ["a" * 64, "b" * 64])
    ]
    elsewhere = measured(whole_run, shards="copy", shards_sha256="a" * 64)
    assert len(side_by_side([first, elsewhere])) == 1 and alone([first, elsewhere]) == []
    assert protocol_differences([first, elsewhere]) == []  # the same images, wherever they lie
    older = measured(whole_run, shards="copy", shards_sha256=None)
    assert [row.name for row in protocol_differences([first, older])] == ["shards"]


def test_no_run_vanishes(whole_run: Path) -> None:
    """Each stands in a group, alone, or is not measured."""
    plain, again, cropped = measured(whole_run), measured(whole_run), measured(whole_run, crop="center 64")
    unmeasured = replace(plain, evaluations=Evaluations())
    runs = [plain, cropped, unmeasured, again]
    (group,) = side_by_side(runs)
    assert group.metrics.columns == [plain.name, again.name]
    assert alone(runs) == [cropped]
    assert alone([cropped, unmeasured]) == []  # there is nothing to compare it with
