"""What a run says as it starts, of images that it replaces, and as it ends."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from ldm_vae.data.shards.index import load_index
from tests.conftest import write_shards
from tests.train.runs import run_in_process


@pytest.mark.parametrize(
    ("counts", "said"), [([1], "1 process on cpu, float32, 1 image in 1 shard"), ([5, 4], "9 images in 2 shards")]
)
def test_the_first_line_counts_in_words_that_agree(
    recipe: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, counts: list[int], said: str
) -> None:
    shards = write_shards(tmp_path / "few", counts)
    with caplog.at_level(logging.INFO, logger="train"):
        run_in_process(recipe, f"data.train={shards}", "data.validation=null", "steps=1")
    first = caplog.messages[0]
    assert first.startswith(f"{tmp_path / 'run'}: step 0 of 1, 1 process on ") and first.endswith(said)
    assert caplog.messages[1].startswith("device: cpu (")  # and why


def test_replaced_images_are_named_once(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = load_index(str(write_shards(tmp_path / "shards", [20])))
    (shard,) = index.shards
    broken = [shard.key(ordinal) for ordinal in (2, 7)]
    for ordinal in (2, 7):
        url, offset, _ = shard.place(ordinal, "png")
        with Path(url).open("r+b") as file:
            file.seek(offset)
            file.write(bytes(8))  # over the signature
    run_in_process(recipe, f"data.train={tmp_path / 'shards'}", "steps=15", "log.every=1")  # three epochs
    lines = [line for line in capsys.readouterr().err.splitlines() if "replaced" in line]
    assert len(lines) == 2  # each epoch meets both, and they are in different steps
    for number, line in enumerate(lines, start=1):
        assert line.startswith(f"1 broken image replaced, {number} so far (broken.jsonl): {tmp_path / 'shards'}/")
    assert sorted(line.split()[9] for line in lines) == broken
    assert all("(" in line.split(": ", 1)[1] for line in lines)  # the reason
