"""What is missing or damaged becomes a sentence with its command; what is no run is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ldm_vae.errors import UserError
from ldm_vae.report import run as run_module
from ldm_vae.report.run import read_run


def test_a_whole_run_lacks_nothing(whole_run: Path) -> None:
    run = read_run(str(whole_run))
    assert run.gaps == []
    assert (run.steps, run.last("validation/psnr"), run.status["status"]) == (200, 22.0, "done")
    assert run.results is not None and len(run.results.per_image) == 6
    assert run.inspection is not None and len(run.inspection.verdicts) == 4


@pytest.mark.parametrize(
    ("name", "section", "command"),
    [
        ("metrics.jsonl", "training", "python -m train"),
        ("results.json", "evaluation", "ldm-vae evaluate {run} {shards}"),
        ("latent_statistics.json", "latents", "ldm-vae stats {run} photographs --write"),
        ("inspection", "diagnostics", "ldm-vae inspect {run} {shards}"),
    ],
)
def test_what_is_missing_names_its_command(run: Path, name: str, section: str, command: str) -> None:
    path = run / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    found = read_run(str(run))
    (gap,) = found.gaps
    assert gap.section == section
    assert gap.command.startswith(command.format(run=run, shards=found.validation_shards))


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"metrics": 3}', '{"per_image": [{}]}', "NaN", "\x00\xff"])
@pytest.mark.parametrize(
    "name", ["results.json", "latent_statistics.json", "inspection/inspection.json", "status.json"]
)
def test_damaged_files_are_told_and_do_not_stop_the_report(run: Path, name: str, content: str) -> None:
    (run / name).write_text(content, encoding="latin-1")
    found = read_run(str(run))
    if name == "status.json":
        assert found.status == json.loads(content) if content.startswith("{") and content != "{" else found.gaps
    else:
        assert len(found.gaps) == 1 and "cannot be shown" in found.gaps[0].sentence


def test_half_a_line_of_the_log_is_left_out(run: Path) -> None:
    before = read_run(str(run)).rows
    with (run / "metrics.jsonl").open("a") as file:
        file.write('null\n{"pixel": 1}\n{"step": 210, "pixel": Infinity}\n{"step": 220, "pix')
    found = read_run(str(run))
    assert len(found.rows) == len(before) + 1
    assert found.rows[-1] == {"step": 210, "pixel": None}  # infinity is no value
    assert found.gaps[0].sentence.startswith("3 lines of metrics.jsonl")


def test_lines_of_any_content_are_read(run: Path) -> None:
    for content in ("[]", "7", "[" * 100_000, '{"step": "x"}', '{"step": null, "warning": 3}'):
        with (run / "metrics.jsonl").open("a") as log, (run / "warnings.jsonl").open("a") as warnings:
            log.write(f"{content}\n")
            warnings.write(f"{content}\n")
    with (run / "metrics.jsonl").open("a") as log:
        log.write(f'{{"step": 210, "pixel": {10**400}}}\n')
    found = read_run(str(run))
    assert found.rows[-1]["step"] == 200
    assert found.gaps[0].sentence.startswith("6 lines of metrics.jsonl")
    assert all(warning.startswith("Step ") for warning in found.warnings)


@pytest.mark.parametrize("error", [TypeError, KeyError, AttributeError])
def test_an_error_of_ours_is_no_damaged_line(
    run: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def fails(value: object) -> None:
        raise error

    monkeypatch.setattr(run_module, "_finite_number", fails)
    with pytest.raises(error):
        read_run(str(run))


def test_warnings_of_one_kind_are_told_once(run: Path) -> None:
    lines = [{"step": s, "warning": f"pixel jumped to {s / 7:.2f}; lower optimizer.lr"} for s in (10, 20, 30)]
    (run / "warnings.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + "{")
    assert read_run(str(run)).warnings == ["Step 30: pixel jumped to 4.29; lower optimizer.lr (and 2 times before)"]


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no run: give a folder"):
        read_run(str(tmp_path))
    with pytest.raises(UserError, match="not found"):
        read_run(str(tmp_path / "nothing"))
