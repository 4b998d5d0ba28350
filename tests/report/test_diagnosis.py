"""What an inspection becomes on the page; its files are not trusted."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm_vae.diagnostics.findings import Inspection, Matrix, PictureFile, Section, Table, Verdict
from ldm_vae.report import diagnosis
from ldm_vae.report.diagnosis import CELLS, count_verdicts, sections, verdicts
from ldm_vae.report.page import write_report


def shown(folder: Path, *pictures: PictureFile, matrices: tuple[Matrix, ...] = ()) -> diagnosis.ShownSection:
    section = Section(name="a", title="A", pictures=pictures, matrices=matrices)
    return sections(Inspection(protocol={}, sections=(section,)), folder)[0]


def picture(file: str) -> PictureFile:
    return PictureFile(name="p", title="P", definition="d", file=file, description="what it shows")


def square(side: int) -> Matrix:
    names = tuple(map(str, range(side)))
    values = tuple(tuple(float(i - j) for j in range(side)) for i in range(side))
    return Matrix(name="m", title="M", definition="d", rows=names, columns=names, values=values)


def test_the_worst_verdict_comes_first(whole_run: Path) -> None:
    found = verdicts(Inspection.read(whole_run / "inspection"))
    assert [(v.verdict.level, v.word) for v in found] == [
        ("bad", "Bad"),
        ("warning", "Warning"),
        ("unknown", "Unknown"),
        ("good", "Good"),
    ]
    assert len({v.icon for v in found}) == 4  # none is told by colour alone
    assert [number for *_, number in count_verdicts(found)] == [1, 1, 1, 1]


def test_whether_reconstruction_is_any_good_comes_before_all_else() -> None:
    good = Verdict(name="reconstruction", level="good", statement="Good.")
    bad = Verdict(name="blur", level="bad", statement="Bad.")
    found = Inspection(
        protocol={},
        sections=(
            Section(name="reconstruction", title="Reconstruction", verdicts=(good,)),
            Section(name="blur", title="Detail", verdicts=(bad,)),
        ),
    )
    assert [shown.verdict for shown in verdicts(found)] == [good, bad]


def test_tables_are_on_the_page(whole_run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole_run, tmp_path / "run") / "inspection"
    table = Table(
        name="t", title="Beside <others>", definition="Means.", columns=("", "PSNR"),
        rows=(("this codec", "21.40"), ("averages", "")), notes=("[1] example.org: as it says",),
    )  # fmt: skip
    found = Inspection.read(folder)
    section = Section(name="reconstruction", title="Reconstruction", tables=(table,))
    found.model_copy(update={"sections": (section, *found.sections)}).write(folder)
    page = write_report([str(folder.parent)], tmp_path / "report.html", None, "ldm-vae report").read_text()
    for words in ("Beside &lt;others&gt;", '<th scope="row">this codec</th>', "21.40", "[1] example.org: as it says"):
        assert words in page
    assert page.index('id="diagnosis-0"') < page.index("Beside &lt;others&gt;") < page.index('id="diagnosis-1"')


@pytest.mark.parametrize("file", ["../secret.png", "/etc/hostname", "sub/../../secret.png", "link.png"])
def test_pictures_outside_of_the_folder_are_refused(tmp_path: Path, file: str) -> None:
    folder = tmp_path / "inspection"
    (folder / "sub").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (found,) = shown(folder, picture(file)).pictures
    assert found.uri == "" and "outside" in found.note


@pytest.mark.parametrize(
    ("content", "note"), [(None, "is missing"), (b"GIF89a", "is no PNG"), (b"\x89PNG\r\n", "is no PNG")]
)
def test_pictures_that_cannot_be_read_are_told(tmp_path: Path, content: bytes | None, note: str) -> None:
    if content is not None:
        (tmp_path / "a.png").write_bytes(content)
    (found,) = shown(tmp_path, picture("a.png")).pictures
    assert found.uri == "" and note in found.note


def test_pictures_stay_within_their_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "DIAGNOSIS_BYTES", 150_000)
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    found = shown(tmp_path, *[picture("a.png")] * 9).pictures
    assert sum(len(one.uri) for one in found) <= 150_000
    assert found[0].width == 128 and "1/2 of its size" in found[0].note
    assert found[-1].uri == "" and "left out" in found[-1].note


def test_small_matrices_are_numbers_and_large_ones_pictures(tmp_path: Path) -> None:
    small, large = shown(tmp_path, matrices=(square(3), square(CELLS + 1))).matrices
    assert [text for text, _ in small.cells[2]] == ["2", "1", "0"] and small.uri == ""
    assert large.cells == [] and large.uri.startswith("data:image/webp")
    assert (large.low, large.high) == (f"−{CELLS}", str(CELLS))
