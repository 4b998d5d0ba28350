"""Folders of images and of shards: linked folders, parts of samples, clashes, and what lies beside."""

from __future__ import annotations

import gzip
import logging
from pathlib import Path

import pytest

from ldm_vae.data.shards.check import check_shards
from ldm_vae.data.shards.folder import find_samples
from ldm_vae.data.shards.index import load_index
from ldm_vae.data.shards.pack import pack_folder
from ldm_vae.errors import UserError
from tests.conftest import encoded, picture
from tests.data.conftest import WriteTar

PNG = encoded(picture(0, (8, 8)))


def write(folder: Path, *names: str, content: bytes = PNG) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def keys(folder: Path) -> list[str]:
    return [sample.key for sample in find_samples(folder).samples]


def test_linked_folders_are_read(tmp_path: Path) -> None:
    """Class folders that are links, to a place outside and to a hidden one inside."""
    write(tmp_path / "store", "cat/1.png", "dog/2.png")
    images = write(tmp_path / "images", ".data/emu/3.png")
    (images / "cat").symlink_to(tmp_path / "store" / "cat")
    (images / "dog").symlink_to(tmp_path / "store" / "dog")
    (images / "emu").symlink_to(images / ".data" / "emu")
    assert keys(images) == ["cat/1", "dog/2", "emu/3"]
    packed = pack_folder(images, tmp_path / "out", samples_per_shard=10, seed=0, classes=None)
    assert packed.plan.classes.names == ["cat", "dog", "emu"]


def test_links_in_a_circle_end_and_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = write(tmp_path / "images", "cat/1.png")
    (images / "cat" / "up").symlink_to(images)
    (images / "same").symlink_to(images / "cat")
    assert keys(images) == ["cat/1"]
    with caplog.at_level(logging.WARNING):
        assert load_index(str(images)).samples == 1
    assert "left out: 2 links to a folder that is read already (same)" in caplog.text


def test_parts_of_a_picture_in_a_folder(tmp_path: Path) -> None:
    images = write(tmp_path / "images", "0.png", "0.seg.png", "1.png", "1.seg.png", "b.v1.png")
    write(images, "0.cls", "1.cls", "b.v1.cls", content=b"3")
    found = find_samples(images)
    assert {sample.key: set(sample.files) for sample in found.samples} == {
        "0": {"png", "seg.png", "cls"},
        "1": {"png", "seg.png", "cls"},
        "b_v1": {"png", "cls"},
    }
    assert [path.name for path in found.parts] == ["0.seg.png", "1.seg.png"]
    assert load_index(str(images)).fields == {"png": 3, "seg.png": 2, "cls": 3}
    pack_folder(images, tmp_path / "out", samples_per_shard=10, seed=0, classes=None)
    assert load_index(str(tmp_path / "out")).fields == {"png": 3, "seg.png": 2, "cls": 3}


def test_all_clashes_of_names_are_told_at_once(tmp_path: Path) -> None:
    images = write(tmp_path / "images", "a.png", "a.jpg", "b.PNG", "b.png", "c.x.png", "c_x.png", "d.png")
    with pytest.raises(UserError, match="3 pairs of files") as error:
        find_samples(images)
    assert all(name in error.value.what for name in ("a.png", "a.jpg", "b.PNG", "b.png", "c.x.png", "c_x.png"))
    many = write(tmp_path / "many", *(f"{number}.{kind}" for number in range(30) for kind in ("png", "jpg")))
    with pytest.raises(UserError, match=r"30 pairs.*; and 20 more"):
        find_samples(many)


@pytest.mark.parametrize(
    ("names", "numbered"),
    [
        (["00000/000000000.png", "00000/000000007.png", "00001/000010003.png"], True),  # img2dataset
        (["00000/00004.png", "01000/01000.png", "01000/01999.png"], True),  # FFHQ
        (["3f/3f09ab.png", "a0/a0bbcc.png"], True),  # by hash
        (["0/17.png", "1/4.png"], False),  # MNIST
        (["00000/00000_00001.png", "00001/00000_00002.png"], False),  # GTSRB
        (["01/00.png", "02/00.png"], False),
        (["a/a1.png", "b/b1.png"], False),
        (["1/10.png", "2/20.png"], False),
        (["0007/00071.png", "0008/00082.png"], False),
        (["n01440764/n01440764_10026.png", "n01443537/n01443537_2.png"], False),  # ImageNet
        (["cat/cat1.png", "dog/dog1.png"], False),
    ],
)
def test_folders_that_count_images_are_no_classes(tmp_path: Path, names: list[str], numbered: bool) -> None:
    images = write(tmp_path / "images", *names)
    packed = pack_folder(images, tmp_path / "out", samples_per_shard=10, seed=0, classes=None)
    assert (packed.plan.classes.numbered is not None, packed.plan.classes.names == []) == (numbered, numbered)
    asked = pack_folder(images, tmp_path / "asked", samples_per_shard=10, seed=0, classes=True)
    assert asked.plan.classes.names == sorted({name.split("/")[0] for name in names})


def test_what_lies_beside_shards_is_told(write_tar: WriteTar, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "shards"
    path = write_tar(folder / "0.tar", {"a.png": PNG})
    (folder / "1.tar.gz").write_bytes(gzip.compress(path.read_bytes()))
    write(folder, "b.png", "more/c.png", "notes/readme.md", ".hidden.png")
    with caplog.at_level(logging.WARNING):
        assert load_index(str(folder)).samples == 1
    for part in ("(1.tar.gz)", "1 picture in no shard (b.png)", "1 folder of shards or pictures (more)"):
        assert part in caplog.text
    assert "notes" not in caplog.text and "hidden" not in caplog.text
    (unread, _) = check_shards(str(folder), decode=False, channels=3)
    assert [problem.member for problem in unread.problems] == ["1.tar.gz", "b.png", "more"]
    with caplog.at_level(logging.WARNING):
        load_index(str(folder / "*.tar*"))
    assert "*.tar*: left out: 1 compressed archive (" in caplog.text
    path.unlink()
    (folder / "b.png").unlink()
    (folder / "more" / "c.png").unlink()
    with pytest.raises(UserError, match=r"1 compressed archive such as .*1\.tar\.gz: unpack"):
        load_index(str(folder))
