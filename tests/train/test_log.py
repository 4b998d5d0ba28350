"""What a run writes of itself, and what a resumed one takes back."""

from __future__ import annotations

import json
import math
from pathlib import Path

from accelerate import Accelerator

from train.log import MetricsLog


def read(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_and_warnings_after_the_checkpoint_are_taken_back(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, Accelerator())
    for step in (10, 20, 30):
        log.write(step, {"pixel": math.nan if step == 20 else 0.5})
        log.warn(step, [] if step == 10 else [f"at {step}", "again"])
    with log.path.open("a") as file:
        file.write('{"step": 40, "pix')
    log.cut(20)
    assert read(log.path) == [{"step": 10, "pixel": 0.5}, {"step": 20, "pixel": None}]
    assert read(log.warnings) == [{"step": 20, "warning": "at 20"}, {"step": 20, "warning": "again"}]


def test_the_validations_of_a_log_are_its_rows_that_have_images(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, Accelerator())
    assert log.validations() == []
    log.write(10, {"pixel": 0.5})
    log.write(10, {"validation/psnr": math.nan, "validation/images": 3.0})
    assert log.validations() == [(10, {"step": 10, "validation/psnr": None, "validation/images": 3.0})]


def test_a_run_that_goes_well_has_no_file_of_warnings(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, Accelerator())
    log.cut(0)
    log.warn(10, [])
    assert list(tmp_path.iterdir()) == []
