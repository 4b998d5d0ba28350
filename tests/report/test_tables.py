"""Tables: the best of a row, what a bootstrap interval says, what differs between recipes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ldm_vae.evaluation.compare import PairedDifference, differences_to_json
from ldm_vae.report.results import Comparison, ImageRow, Interval, Measured, StoredResults
from ldm_vae.report.run import read_run
from ldm_vae.report.tables import (
    IMAGE_ROWS,
    difference_table,
    image_table,
    metric_table,
    protocol_differences,
    recipe_differences,
    setting,
)


def test_the_best_of_each_row_is_marked() -> None:
    ours = Measured(metrics={"lpips_vgg": 0.1, "psnr": 20.0, "odd": 1.0, "ssim": 0.5}, missing={"rfid": "no weights"})
    theirs = Measured(metrics={"psnr": 30.0, "lpips_vgg": 0.2, "rfid": 3.0, "odd": 2.0, "ssim": 0.5})
    table = metric_table([("ours", ours), ("theirs", theirs)])
    marked = {row.metric.title: [cell.best for cell in row.cells] for row in table.rows}
    assert marked == {
        "PSNR": [False, True],
        "LPIPS (VGG)": [True, False],
        "rFID": [False, False],  # alone in its row
        "SSIM": [False, False],  # a tie
        "odd": [False, False],  # nobody knows which way is better
    }
    assert table.notes == ["rFID missing for ours: no weights."]
    assert [cell.text for cell in table.rows[3].cells] == ["–", "3"]  # never 0


def test_a_reason_that_several_share_is_said_once() -> None:
    one = Measured(missing={"rfid": "no weights", "kid": "no weights"}, notes={"frechet_vgg16": "few images"})
    assert metric_table([("a", one), ("b", one)]).notes == [
        "rFID, KID missing: no weights.",
        "Fréchet distance, VGG16: few images.",
    ]


@pytest.mark.parametrize(
    ("metric", "low", "high", "images", "word"),
    [
        ("psnr", 0.1, 0.9, 20, "better"),
        ("psnr", -0.9, -0.1, 20, "worse"),
        ("lpips_vgg", 0.1, 0.9, 20, "worse"),
        ("lpips_vgg", -0.9, -0.1, 20, "better"),
        ("psnr", -0.1, 0.9, 20, "within chance"),
        ("psnr", 0.0, 0.9, 20, "within chance"),
        ("psnr", 0.1, 0.9, 19, "too few images"),
        ("psnr", None, None, 1, "too few images"),
    ],
)
def test_an_interval_says_what_the_evaluation_said(
    metric: str, low: float | None, high: float | None, images: int, word: str
) -> None:
    middle = 0.5 if low is None or high is None else (low + high) / 2
    written = differences_to_json({metric: PairedDifference(middle, low, high, images)})
    results = StoredResults.model_validate({"comparisons": [{"name": "PCA", "metrics": written}]})
    table = difference_table(results)
    assert (table.others, table.rows[0].cells[0].word, table.rows[0].images) == (["PCA"], word, str(images))


def test_an_interval_of_an_older_file_has_no_verdict() -> None:
    interval = Interval(difference=0.5, low=0.1, high=0.9, images=9)
    table = difference_table(StoredResults(comparisons=[Comparison(name="PCA", metrics={"psnr": interval})]))
    cell = table.rows[0].cells[0]
    assert (cell.difference, cell.interval, cell.word) == ("+0.5", "+0.1 to +0.9", "")


def test_many_images_are_cut_to_the_worst_and_reasons_are_counted() -> None:
    rows = [
        ImageRow(key=str(i), values={"psnr": float(i)}, missing={"ssim": "too small"}) for i in range(IMAGE_ROWS + 7)
    ]
    table = image_table([*rows[::-1], ImageRow(key="none", missing={"psnr": "NaN", "ssim": "too small"})])
    assert [row.key for row, *_ in table.rows[:2]] == ["0", "1"] and len(table.rows) == IMAGE_ROWS
    assert table.left_out == 8 and table.metric == "PSNR"
    assert table.notes[0] == f"SSIM is missing for {IMAGE_ROWS + 8} images: too small."
    assert "PSNR is missing for 1 image: NaN." in table.notes


def test_only_what_differs_is_listed(whole_run: Path, run: Path) -> None:
    recipe = run / "recipe.yaml"
    recipe.write_text(
        recipe.read_text().replace("batch: 4", "batch: 8, extra: {a: [1, 2]}").replace("output", "output: x #")
    )
    sides = recipe_differences([read_run(str(whole_run)), read_run(str(run))])
    assert {side.name: side.values for side in sides} == {"data.batch": ["4", "8"], "data.extra.a": ["–", "1, 2"]}


def test_runs_of_earlier_versions_differ_by_no_word_alone(whole_run: Path, run: Path) -> None:
    for folder, word in ((whole_run, "bfloat16"), (run, "bf16")):
        recipe = folder / "recipe.yaml"
        recipe.write_text(recipe.read_text() + f"\nprecision: {word}\n")
    first, second = read_run(str(whole_run)), read_run(str(run))
    assert first.recipe["precision"] == "bfloat16" and "precision: bf16" in second.recipe_text
    assert "precision" not in {row.name for row in recipe_differences([first, second])}


def test_only_what_differs_between_protocols_is_listed(whole_run: Path, run: Path) -> None:
    """Step and weights are not listed, because they are what is compared."""
    first, second = read_run(str(whole_run)), read_run(str(whole_run))
    assert first.results is not None and second.results is not None
    assert len(first.results.protocol) > 3
    protocol = {**second.results.protocol, "crop": "center 64", "step": 12345, "weights_sha256": "0" * 64}
    second = replace(second, results=second.results.model_copy(update={"protocol": protocol}))
    assert protocol_differences([first, first]) == protocol_differences([first, read_run(str(run))]) == []
    (found,) = protocol_differences([first, second])
    assert (found.name, found.values[1]) == ("crop", "center 64")


@pytest.mark.parametrize(
    ("value", "text"), [(True, "yes"), (None, "none"), ([], "none"), (1e-6, "1e−6"), ({}, "none"), ("a", "a"), (0, "0")]
)
def test_settings_are_written_as_one_reads_them(value: object, text: str) -> None:
    assert setting(value) == text
