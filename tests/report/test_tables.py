"""Tables: the best of a row, what a bootstrap interval says, what differs between recipes."""

from __future__ import annotations

import pytest

from ldm_vae.evaluation.compare import PairedDifference, differences_to_json
from ldm_vae.interop.results import Comparison, ImageRow, Interval, Measured
from ldm_vae.report.tables import IMAGE_ROWS, difference_table, image_table, metric_table, setting


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


def test_a_reason_names_only_those_whose_it_is() -> None:
    """Two metrics of two codecs that are missing for one reason are not missing for both."""
    ours, theirs = Measured(missing={"rfid": "no weights"}), Measured(missing={"kid": "no weights"})
    assert metric_table([("ours", ours), ("theirs", theirs)]).notes == [
        "rFID missing for ours: no weights.",
        "KID missing for theirs: no weights.",
    ]


@pytest.mark.parametrize(
    ("metric", "low", "high", "images", "words"),
    [
        ("psnr", 0.1, 0.9, 20, "this codec better by 0.5 dB (0.1 to 0.9)"),
        ("psnr", -0.9, -0.1, 20, "PCA better by 0.5 dB (0.1 to 0.9)"),
        ("lpips_vgg", 0.1, 0.9, 20, "PCA better by 0.5 (0.1 to 0.9)"),
        ("lpips_vgg", -0.9, -0.1, 20, "this codec better by 0.5 (0.1 to 0.9)"),
        ("psnr", -0.1, 0.9, 20, "within chance: this codec ahead by 0.4 dB (−0.1 to 0.9)"),
        ("lpips_vgg", -0.1, 0.9, 20, "within chance: PCA ahead by 0.4 (−0.1 to 0.9)"),
        ("psnr", 0.0, 0.9, 20, "within chance: this codec ahead by 0.45 dB (0 to 0.9)"),
        ("psnr", 0.1, 0.9, 19, "too few images to tell: this codec ahead by 0.5 dB (0.1 to 0.9)"),
        ("psnr", None, None, 1, "too few images to tell: this codec ahead by 0.5 dB"),
    ],
)
def test_an_interval_says_which_is_better_and_by_how_much(
    metric: str, low: float | None, high: float | None, images: int, words: str
) -> None:
    middle = 0.5 if low is None or high is None else (low + high) / 2
    written = differences_to_json({metric: PairedDifference(middle, low, high, images)})
    table = difference_table("this codec", [Comparison.model_validate({"name": "PCA", "metrics": written})])
    assert (table.others, str(table.rows[0].cells[0]), table.rows[0].images) == (["PCA"], words, str(images))


def test_an_interval_of_an_older_file_has_no_verdict() -> None:
    interval = Interval(difference=0.5, low=0.1, high=0.9, images=9)
    table = difference_table("this codec", [Comparison(name="PCA", metrics={"psnr": interval, "ssim": Interval()})])
    first, second = table.rows[0].cells[0], table.rows[1].cells[0]
    assert first is not None and second is None
    assert (str(first), first.sure) == ("this codec better by 0.5 dB (0.1 to 0.9)", False)


def test_many_images_are_cut_to_the_worst_and_reasons_are_counted() -> None:
    rows = [
        ImageRow(key=str(i), values={"psnr": float(i)}, missing={"ssim": "too small"}) for i in range(IMAGE_ROWS + 7)
    ]
    table = image_table([*rows[::-1], ImageRow(key="none", missing={"psnr": "NaN", "ssim": "too small"})])
    assert [row.key for row, *_ in table.rows[:2]] == ["0", "1"] and len(table.rows) == IMAGE_ROWS
    assert table.left_out == 8 and table.metric == "PSNR"
    assert table.notes[0] == f"SSIM is missing for {IMAGE_ROWS + 8} images: too small."
    assert "PSNR is missing for 1 image: NaN." in table.notes


@pytest.mark.parametrize(
    ("value", "text"), [(True, "yes"), (None, "none"), ([], "none"), (1e-6, "1e−6"), ({}, "none"), ("a", "a"), (0, "0")]
)
def test_settings_are_written_as_one_reads_them(value: object, text: str) -> None:
    assert setting(value) == text
