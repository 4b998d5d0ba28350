"""Runs side by side: what differs between their recipes and protocols."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from ldm_vae.report.comparison import protocol_differences, recipe_differences
from ldm_vae.report.evaluations import Evaluations
from ldm_vae.report.run import read_run


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
    first, second = read_run(str(whole_run)), read_run(str(whole_run))
    assert first.results is not None and second.results is not None
    assert len(first.results.protocol) > 3
    protocol = {**second.results.protocol, "crop": "center 64", "step": 12345, "weights_sha256": "0" * 64}
    results = second.results.model_copy(update={"protocol": protocol})
    second = replace(second, evaluations=Evaluations(results))
    assert protocol_differences([first, first]) == protocol_differences([first, read_run(str(run))]) == []
    (found,) = protocol_differences([first, second])
    assert (found.name, found.values[1]) == ("crop", "center 64")
