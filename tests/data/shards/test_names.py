"""Fields with dots, as webdataset writes them, beside keys with dots: by shard, in an index, in a folder of files."""

from __future__ import annotations

import json
import logging
import tarfile
from pathlib import Path

import pytest
import webdataset

from ldm_vae.data.images.fit import ImageConfig
from ldm_vae.data.shards.check import check_shards
from ldm_vae.data.shards.index import SourceConfig, load_index, write_index
from ldm_vae.data.shards.names import compound_fields
from ldm_vae.data.stream.reader import DataConfig, validation_batches
from tests.conftest import encoded, picture
from tests.data.conftest import WriteTar

PNG = encoded(picture(0, (8, 8)))


@pytest.mark.parametrize(
    ("names", "compound"),
    [
        ("0.cls 0.jpg 0.seg.png 1.cls 1.jpg 1.seg.png", {"seg.png"}),
        ("f/0.jpg f/0.seg.PNG f/0.caption.txt", {"seg.png", "caption.txt"}),
        ("0.jpg 0.seg.png 1.seg.png 1.cls 2.seg.png", {"seg.png"}),  # pictures are missing
        ("0.image.jpg 0.mask.png 0.cls 1.image.jpg 1.mask.png 1.cls", {"image.jpg", "mask.png"}),
        ("0.jpg 0.0.png 0.1.png 1.jpg 1.0.png", {"0.png", "1.png"}),  # as many masks as there are things
        ("0.jpg b.v1.0.jpg b.v1.0.cls 0.seg.png", {"seg.png"}),  # both in one shard
        ("b.v1.0.jpg b.v1.0.cls b.v1.1.jpg b.v1.1.cls a.jpg a.cls", set()),
        ("a.jpg a.cls a.v2.jpg a.v2.cls", set()),  # labelled, so a sample of its own
        ("cat.0.jpg cat.1.jpg dog.0.jpg dog.1.jpg", set()),
        ("img.jpg img.1.jpg img.2.jpg img.3.jpg", set()),
        ("a.jpg a.v2.jpg b.v2.jpg c.v2.jpg d.v2.jpg", set()),  # most stand alone
        ("folder.1/a.jpg .hidden.jpg .b.c.jpg a. readme", set()),
        ("site.json site.home.jpg site.about.jpg", set()),  # no field that several samples have
    ],
)
def test_which_fields_hold_dots(names: str, compound: set[str]) -> None:
    assert compound_fields(names.split()) == compound


def test_compound_fields_are_read_as_webdataset_reads_them(write_tar: WriteTar, tmp_path: Path) -> None:
    """One sample for each key: its picture trains, its label is kept, its mask never trains."""
    members: dict[str, bytes] = {}
    for number in range(5):
        mask = encoded(picture(50 + number, (8, 8)))
        members |= {f"{number}.cls": b"%d" % number, f"{number}.jpg": encoded(picture(number, (8, 8)), "jpeg")}
        members |= {f"{number}.seg.png": mask}
    path = write_tar(tmp_path / "0.tar", members)
    for _ in ("scanned", "indexed"):
        index = load_index(str(tmp_path))
        (shard,) = index.shards
        plain = list(webdataset.WebDataset([str(path)], shardshuffle=False))
        assert [shard.key(i) for i in range(shard.samples)] == [sample["__key__"] for sample in plain]
        for ordinal, sample in enumerate(plain):
            assert set(shard.fields(ordinal)) == {field for field in sample if not field.startswith("__")}
            assert shard.picture(ordinal) == "jpg"
        config = DataConfig(train=(SourceConfig(shards=""),), batch=1, workers=0, image=ImageConfig(), broken_budget=0)
        (batch,) = validation_batches(config, index, batch=8, rank=0, world=1)
        assert batch.key == list("01234") and batch.label is not None and batch.label.tolist() == list(range(5))
        reports = check_shards(str(tmp_path), decode=True, channels=3)
        assert not [problem for report in reports for problem in report.problems]
        write_index(tmp_path)


def test_masks_beside_pictures(test_data: Path) -> None:
    (shard,) = load_index(str(test_data / "data" / "failing" / "masks_beside_pictures.tar")).shards
    assert all(set(shard.fields(ordinal)) == {"jpg", "seg.png", "cls"} for ordinal in range(shard.samples))


def test_a_mask_is_no_picture_where_the_picture_is_missing(write_tar: WriteTar, tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", {"0.image.png": PNG, "0.cls": b"1", "1.image.png": PNG, "1.cls": b"2"})
    reports = check_shards(str(tmp_path), decode=False, channels=3)
    said = "no picture in this sample: image.png stands beside one, png would be one"
    assert [problem.reason for report in reports for problem in report.problems] == [said, said]


def test_an_index_of_an_earlier_version_is_read_as_it_is_and_told(
    write_tar: WriteTar, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """0.1.0 cut every name at its last dot."""
    path = write_tar(tmp_path / "0.tar", {"0.png": PNG, "0.seg.png": PNG, "1.png": PNG, "1.seg.png": PNG})
    with tarfile.open(path) as tar:
        places = {member.name: (member.offset_data, member.size) for member in tar}
    columns = list(zip(*places.values(), strict=True))
    shard = {"name": "0.tar", "bytes": path.stat().st_size, "samples": 4, "keys": ["0", "0.seg", "1", "1.seg"]}
    shard |= {"members": {"png": {"offset": columns[0], "size": columns[1]}}}
    (tmp_path / "index.json").write_text(json.dumps({"format": "ldm_vae.index", "version": 1, "shards": [shard]}))
    with caplog.at_level(logging.WARNING):
        index = load_index(str(tmp_path))
    assert [index.shards[0].key(i) for i in range(4)] == ["0", "0.seg", "1", "1.seg"]
    assert "takes 2 parts of samples, such as 0.seg.png, for samples of their own" in caplog.text
    config = DataConfig(train=(SourceConfig(shards=""),), batch=1, workers=0, image=ImageConfig(), broken_budget=0)
    (batch,) = validation_batches(config, index, batch=8, rank=0, world=1)
    assert batch.key == ["0", "0.seg", "1", "1.seg"]
    reports = check_shards(str(tmp_path), decode=False, channels=3)
    found = [(problem.member, problem.reason) for report in reports for problem in report.problems]
    assert found == [("0", "index.json takes its parts for several samples: write the index anew")]


def test_what_is_no_image_is_told_once(write_tar: WriteTar, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_tar(tmp_path / "0.tar", {"0.png": PNG, "0.seg.png": PNG, "1.jpg": PNG, "1.png": PNG, "2.txt": b"words"})
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            load_index(str(tmp_path))
    (record,) = caplog.records
    for part in (
        "1 picture beside another of the same sample (1.png)",
        "1 picture in a field with a dot, such as a mask (0.seg.png)",
        "1 sample without a picture (2)",
    ):
        assert part in record.getMessage()
