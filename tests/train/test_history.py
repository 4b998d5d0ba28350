"""Validations in words: the change since the one before, what is better, and what an earlier launch has measured."""

from __future__ import annotations

import pytest

from train.history import History, short_titles


def measured(psnr: float | None, lpips: float | None = 0.5, **beside: float) -> dict[str, float | None]:
    return {"validation/psnr": psnr, "validation/lpips_vgg": lpips, "validation/images": 4.0} | {
        f"validation/{name}": value for name, value in beside.items()
    }


def test_each_line_says_the_change_and_the_last_line_the_best() -> None:
    history = History(["psnr", "lpips_vgg"], [])
    assert history.best_line() == ""
    assert history.line(10, measured(24.125, 0.5), "samples/step_00000010.png") == (
        "validation 10: PSNR 24.12  LPIPS 0.500  samples/step_00000010.png"
    )
    assert history.line(20, measured(25.125, 0.375), "") == "validation 20: PSNR 25.12 (+1.00)  LPIPS 0.375 (-0.125)"
    assert history.line(30, measured(24.625, 0.25), "") == "validation 30: PSNR 24.62 (-0.50)  LPIPS 0.250 (-0.125)"
    assert history.best_line() == "best: PSNR 25.12 at step 20, LPIPS 0.250 at step 30"  # high is good, low is good


def test_the_earliest_of_equals_is_the_best() -> None:
    history = History(["psnr"], [(10, measured(20.0)), (20, measured(20.0))])
    assert history.best_line() == "best: PSNR 20.00 at step 10"


def test_what_an_earlier_launch_measured_counts() -> None:
    history = History(["psnr"], [(10, measured(30.0)), (20, measured(20.0))])
    assert history.line(30, measured(21.0), "") == "validation 30: PSNR 21.00 (+1.00)"
    assert history.best_line() == "best: PSNR 30.00 at step 10"


@pytest.mark.parametrize("gone", [None, float("nan"), "text of a hostile file"])
def test_what_has_no_value_is_left_out(gone: float | None) -> None:
    history = History(["psnr", "lpips_vgg"], [(10, measured(20.0)), (20, measured(gone))])
    assert history.line(30, measured(21.0), "") == "validation 30: PSNR 21.00  LPIPS 0.500 (+0.000)"


def test_broken_images_are_counted() -> None:
    history = History(["psnr"], [])
    assert history.line(10, measured(20.0, left_out=1), "") == "validation 10: PSNR 20.00  without 1 broken image"
    row = {"validation/images": 0.0, "validation/left_out": 5}
    assert history.line(20, row, "") == "validation 20: nothing could be measured  without 5 broken images"
    assert history.line(30, measured(21.0), "") == "validation 30: PSNR 21.00 (+1.00)"  # since the last that measured


def test_a_network_is_named_where_two_are_meant() -> None:
    assert short_titles(["psnr", "lpips_vgg"]) == {"psnr": "PSNR", "lpips_vgg": "LPIPS"}
    assert short_titles(["lpips_vgg", "lpips_alex"]) == {
        "lpips_vgg": "LPIPS (VGG)",
        "lpips_alex": "LPIPS (AlexNet)",
    }
