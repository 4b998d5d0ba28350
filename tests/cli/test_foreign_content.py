"""No command replaces or removes what it did not write: each meets a folder that holds something of a person."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ldm_vae import LatentCodec
from ldm_vae.atomic import atomic_file
from tests.cli.commands import command, digests

Write = Callable[[Path], None]


def put_note(folder: Path) -> None:
    (folder / "notes.txt").write_text("years of work")


def put_repository(folder: Path) -> None:
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("ref: refs/heads/main\n")


def put_picture(folder: Path) -> None:
    (folder / "summer.png").write_bytes(b"no codec made it")


def put_link(folder: Path) -> None:
    first = next(path for path in sorted(folder.rglob("*")) if path.is_file())
    moved = folder.with_name("elsewhere") / first.name
    moved.parent.mkdir()
    shutil.move(first, moved)
    first.symlink_to(moved)


def put_folder(folder: Path) -> None:
    (folder / "empty").mkdir()


@pytest.mark.parametrize("put", [put_note, put_repository, put_picture, put_link, put_folder])
@pytest.mark.parametrize("name", ["export", "inspect", "shards"])
def test_a_folder_that_holds_more_is_refused(
    run: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, put: Write
) -> None:
    out = tmp_path / "out"
    arguments = {
        "export": ("export", run, out, "--shards", shards),
        "inspect": ("inspect", run, shards, "--output", out, "--images", 2),
        "shards": ("shards", Path(__file__).parents[2] / "docs", out),
    }[name]
    if name in ("export", "inspect"):
        assert command(*arguments) == 0
        assert command(*arguments) == 0  # what it wrote itself, it replaces
    else:
        out.mkdir()
        put_note(out)
    put(out)
    before, links = digests(out), [path for path in out.rglob("*") if path.is_symlink()]
    capsys.readouterr()
    assert command(*arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"ldm-vae: {out} holds ") and "would be lost: give the name of a new folder" in error
    assert digests(out) == before and [path for path in out.rglob("*") if path.is_symlink()] == links
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("name", ["export", "inspect", "shards"])
@pytest.mark.parametrize("out", [".", "..", "sub/.."])
def test_the_current_folder_is_not_replaced(
    run: Path,
    shards: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    out: str,
) -> None:
    here = tmp_path / "above" / "here"
    (here / "sub").mkdir(parents=True)
    monkeypatch.chdir(here)
    arguments = {
        "export": ("export", run, out, "--shards", shards),
        "inspect": ("inspect", run, shards, "--output", out, "--images", 2),
        "shards": ("shards", shards, out),
    }[name]
    capsys.readouterr()
    assert command(*arguments) == 2
    assert (
        capsys.readouterr()
        .err.strip()
        .splitlines()[-1]
        .endswith(
            f"{out} is the current folder, or holds it, and cannot be replaced: give the name of a new folder in it"
        )
    )
    assert [path.name for path in here.iterdir()] == ["sub"]


def test_a_link_to_an_export_stays_one(run: Path, shards: Path, tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    link.symlink_to(real)
    for codec in ("first", "second"):
        assert command("export", run, link, "--shards", shards, "--licence", codec) == 0
        assert link.is_symlink() and not real.is_symlink()
        assert f"license_name: {codec}" in (real / "README.md").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"run", "shards", "real", "link"}


def test_a_model_that_no_export_wrote_is_no_export(
    run: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model of another library has files of the same names."""
    out = tmp_path / "bert"
    out.mkdir()
    (out / "config.json").write_text('{"architectures": ["BertModel"]}')
    (out / "model.safetensors").write_bytes(b"weights")
    (out / "README.md").write_text("# BERT\n")
    before = digests(out)
    assert command("export", run, out, "--shards", shards) == 2
    assert f"{out} holds a model that no export wrote" in capsys.readouterr().err
    assert digests(out) == before


def test_what_a_person_wrote_into_the_card_stays(run: Path, shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    card = out / "README.md"
    assert command("export", run, out, "--shards", shards) == 0
    text = card.read_text()
    card.write_text(
        text.replace("tags:\n", "datasets:\n- ours/photographs # a year of them\ntags:\n- mine\n") + "\nCite us.\n"
    )
    assert command("export", run, out, "--shards", shards, "--licence", "mit") == 0
    written = card.read_text()
    assert "- ours/photographs # a year of them\n" in written and "\n- mine\n- autoencoder\n" in written
    assert "license: mit\n" in written and written.endswith("\nCite us.\n")
    assert written.count("## Numbers") == 1 and "Not stated" not in written


def test_decoding_adds_and_never_replaces(
    run: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    latents, images = tmp_path / "latents", tmp_path / "images"
    assert command("encode", run, shards, latents) == 0
    assert command("decode", run, latents, images, "--count", 3) == 0
    put_note(images)
    (images / "f.png").write_bytes(b"the original")
    before = digests(images)
    assert command("decode", run, latents, images) == 2
    assert f"{images / 'f.png'} exists and is another picture" in capsys.readouterr().err
    assert before.items() <= digests(images).items()
    (images / "f.png").unlink()
    assert command("decode", run, latents, images) == 0
    assert len(list(images.iterdir())) == 12


def test_an_index_of_another_program_stays(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = shards / "index.json"
    index.write_text('{"shards": [], "version": 2}')  # as MosaicML's streaming has it
    assert command("check", shards, "--write-index") == 2
    assert f"{index} is none of ldm_vae's" in capsys.readouterr().err
    assert json.loads(index.read_text()) == {"shards": [], "version": 2}
    index.write_text("{")  # damaged: the command is what mends it
    assert command("check", shards, "--write-index") == 1  # it tells of the damage
    assert json.loads(index.read_text())["format"] == "ldm_vae.index"


def test_statistics_are_not_written_into_the_hubs_cache(
    run: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """There the files of a model are links to contents that are named by their hash."""
    out, blob = tmp_path / "out", tmp_path / "blob"
    assert command("export", run, out, "--shards", shards) == 0
    shutil.move(out / "config.json", blob)
    (out / "config.json").symlink_to(blob)
    before = blob.read_bytes()
    assert command("stats", out, shards, "--write") == 2
    assert f"{out / 'config.json'} is a link, as in the Hub's cache" in capsys.readouterr().err
    assert blob.read_bytes() == before
    assert LatentCodec.load(out, device="cpu").scale is not None


def test_a_file_is_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    link = tmp_path / "numbers.json"
    link.symlink_to(tmp_path / "disk" / "real")
    for text in ("first", "second"):
        with atomic_file(link) as stage:
            assert stage.suffix == ".json"  # encoders choose the format by it
            stage.write_text(text)
        assert link.is_symlink() and (tmp_path / "disk" / "real").read_text() == text


@pytest.mark.parametrize("content", ['{"mean": "mine"}', "notes", "[1]"])
def test_statistics_of_another_program_stay(
    run: Path, shards: Path, tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    assert command("export", run, model, "--shards", shards) == 0
    assert command("stats", model, shards, "--write") == 0  # its own may be replaced
    (model / "latent_statistics.json").write_text(content)
    before = digests(model)
    assert command("stats", model, shards, "--write") == 2
    assert "latent_statistics.json would be replaced, and is none of ldm_vae's" in capsys.readouterr().err
    assert digests(model) == before


@pytest.mark.parametrize("content", ['{"format": "other"}', "damaged", "earlier"])
def test_a_refused_encode_leaves_nothing(
    run: Path, shards: Path, tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    if content == "earlier":  # the description of another job, without its tars
        assert command("encode", run, shards, tmp_path / "other", "--crop", "center:8") == 0
        content = (tmp_path / "other" / "latents.json").read_text()
    out.mkdir()
    (out / "latents.json").write_text(content)
    assert command("encode", run, shards, out) == 2
    assert [path.name for path in out.iterdir()] == ["latents.json"]
    assert (out / "latents.json").read_text() == content
    assert capsys.readouterr().err.count("\n") == 1
