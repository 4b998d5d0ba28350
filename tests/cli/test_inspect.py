"""`ldm-vae inspect`: where it writes, what it prints, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ldm_vae import progress
from ldm_vae.cli.app import main
from ldm_vae.diagnostics.findings import Inspection

HEADINGS = ["Reconstruction", "Beside simple codecs, on the same images"]
HEADINGS += ["Published codecs of this rate, on other images", "Numbers", "Protocol", "Verdicts"]
ORDER = ["bad", "warning", "unknown", "good"]


def command(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["inspect", *map(str, arguments)])
    return int(stop.value.code or 0)


def test_a_run_keeps_its_inspection(
    run: Path, shards: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    assert command(run, shards, "--images", 5, "--resize", "short:32", "--crop", "center:32", "--batch", 2) == 0
    inspection = Inspection.read(run / "inspection")
    protocol = inspection.protocol
    assert (protocol["images"], protocol["step"], protocol["weights"]) == (5, 7, "ema")
    assert (protocol["resize"], protocol["crop"]) == ("short side 32, bicubic, antialias", "center 32")
    assert len(protocol["weights_sha256"]) == 64
    printed, errors = capsys.readouterr()
    assert max(map(len, printed.replace(str(run), "").splitlines())) <= 80
    headings = [line.strip() for line in printed.splitlines() if line.strip() in HEADINGS]
    assert headings == HEADINGS
    assert "worse than averaging 4 x 4 pixels" in " ".join(printed[: printed.index(HEADINGS[1])].split())
    facts, verdicts = printed[printed.index("Protocol") :].split("Verdicts")
    assert "None" not in facts and "{" not in facts
    assert "none" in next(line for line in facts.splitlines() if "against images" in line)
    for verdict in inspection.verdicts:
        assert verdict.name.replace("_", " ") in verdicts
    levels = [line.split()[0] for line in verdicts.splitlines() if line[:3].strip()]
    order = [level for level in levels if level in ORDER]
    assert len(order) == len(inspection.verdicts) and order[0] == inspection.verdicts[0].level
    assert order[1:] == sorted(order[1:], key=ORDER.index)
    for part in ("fitting PCA", "reconstructing", "SSIM and LPIPS", "equivariance", "range of activations"):
        assert f"{part}: " in errors, "a log has a line of each part"
    assert "reconstructing: 100%" in errors and "5/5" in errors
    assert str(run / "inspection") in printed
    json.loads((run / "inspection" / "inspection.json").read_text(), parse_constant=pytest.fail)  # no NaN, no Infinity


def test_square_brackets_are_no_markup(
    run: Path,
    shards: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    folder = tmp_path / "set[/red]"
    shutil.copytree(shards, folder)
    assert command(run, folder, "--images", 2) == 0
    assert "set[/red]" in capsys.readouterr().out


def test_other_models_need_a_folder(run: Path, shards: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    checkpoint = next((run / "checkpoints").iterdir())
    with pytest.raises(SystemExit):
        main(["stats", str(run), str(shards), "--write"])
    with pytest.raises(SystemExit):
        main(["export", str(run), str(tmp_path / "codec")])
    assert command(tmp_path / "codec", shards) == 2
    assert "is no run to write into: name a folder with --output" in capfd.readouterr().err
    for model in (tmp_path / "codec", checkpoint):
        assert command(model, shards, "--output", tmp_path / "out", "--images", 2) == 0
        assert Inspection.read(tmp_path / "out").protocol["model"] == str(model)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("{run}", "{empty}"), "no shards and no images"),
        (("{run}", "{shards}", "--against", "{empty}"), "no shards and no images"),
        (("{run}", "{shards}", "--crop", "center:500"), "smaller than the crop"),
        (("{run}", "{shards}", "--output", "{shards}"), "holds 000000.tar, which would be lost"),
        (("nowhere", "{shards}"), "model nowhere not found"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    run: Path, shards: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    before = sorted(run.rglob("*"))
    places = {"run": run, "shards": shards, "empty": tmp_path / "empty"}
    assert command(*(argument.format(**places) for argument in arguments)) == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith("ldm-vae: ")
    assert message in error
    assert sorted(run.rglob("*")) == before


def test_several_processes_are_refused(
    run: Path, shards: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert command(run, shards) == 2
    assert "start it without a launcher" in capfd.readouterr().err
