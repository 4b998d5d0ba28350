"""Tables of an evaluation: of how many images a difference is, where not of all."""

from __future__ import annotations

import pytest

from ldm_vae.cli.evaluation_table import print_comparisons
from ldm_vae.evaluation.compare import PairedDifference


def test_a_difference_says_where_it_is_not_of_all_images(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    found = {"psnr": PairedDifference(1.0, 0.5, 1.5, 29), "ssim": PairedDifference(0.1, -0.1, 0.3, 30)}
    print_comparisons("[a]", {"[/b]": found}, 30)
    printed = capsys.readouterr().out
    assert "+1.0000 [+0.5000, +1.5000] gain (29 of 30 images)" in printed
    assert "+0.1000 [-0.1000, +0.3000] noise  " in printed
    assert "[a] minus the other" in printed and "- [/b]" in printed
