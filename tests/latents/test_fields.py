"""What LatentDataset gives beside latents: the same fields in every item, whatever single samples lack."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from ldm_vae import LatentCodec, LatentDataset
from ldm_vae.bottlenecks.scale import LatentScale
from ldm_vae.data.shards.left_out import warn_once
from ldm_vae.errors import UserError
from ldm_vae.networks.kl import Autoencoder, AutoencoderConfig
from tests.conftest import npy, write_tar
from tests.latents.jobs import job, run

CONFIG = AutoencoderConfig(block_out_channels=(8, 8), norm_groups=4, layers_per_block=1, mid_attention=False)
SAMPLES = 6
BROKEN = b"caf\xe9 \xff"  # Latin-1, and no UTF-8


@pytest.fixture(autouse=True)
def _told_nothing() -> None:
    warn_once.cache_clear()


@pytest.fixture
def codec() -> LatentCodec:
    torch.manual_seed(0)
    return LatentCodec(Autoencoder(CONFIG).eval().requires_grad_(False))


def encode(codec: LatentCodec, folder: Path, fields: dict[str, list[bytes | None]]) -> Path:
    """Latents of six equal pictures in two tars. fields: name -> content of each sample, None where it lacks it."""
    for tar in range(2):
        members = {}
        for number in range(3 * tar, 3 * tar + 3):
            members[f"s{number}.npy"] = npy(np.full((3, 8, 8), number / SAMPLES - 1, np.float32))
            for name, contents in fields.items():
                content = contents[number]
                members |= {} if content is None else {f"s{number}.{name}": content}
        write_tar(folder / "shards" / f"{tar}.tar", members)
    run(codec, folder / "shards", folder / "out", job(codec, batch=2))
    return folder / "out"


def without_counts(out: Path) -> Path:
    """The same folder as an earlier version left it."""
    content = json.loads((out / "latents.json").read_text())
    content["fields"] = None
    (out / "latents.json").write_text(json.dumps(content))
    return out


def batches(dataset: LatentDataset) -> list[dict[str, object]]:
    """Batches of three in random order, by torch's own collate."""
    return list(DataLoader(dataset, batch_size=3, shuffle=True, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("counted", [True, False])
def test_items_have_the_fields_that_all_samples_have(
    codec: LatentCodec, tmp_path: Path, counted: bool, caplog: pytest.LogCaptureFixture
) -> None:
    fields: dict[str, list[bytes | None]] = {
        "cls": [b"%d" % number for number in range(SAMPLES)],
        "txt": [b"a", None, b"c", b"d", None, b"f"],
    }
    out = encode(codec, tmp_path, fields)
    assert json.loads((out / "latents.json").read_text())["fields"] == {"cls": 6, "txt": 4}
    dataset = LatentDataset(out if counted else without_counts(out), scale=LatentScale())
    assert "4 of 6 samples have txt, so no item gets it: fields=[\"txt\"] gives '' for the others" in caplog.text
    assert [sorted(dataset[item]) for item in range(6)] == [["cls", "key", "latent"]] * 6
    labels = torch.cat([cast(torch.Tensor, batch["cls"]) for batch in batches(dataset)])
    assert sorted(labels.tolist()) == list(range(6))


def test_what_is_asked_for_is_in_every_item(codec: LatentCodec, tmp_path: Path) -> None:
    fields: dict[str, list[bytes | None]] = {
        "cls": [None, b"1", b"2", b"three", b"4", b"5"],
        "txt": [b"a", None, b"c", b"d", None, b"f"],
    }
    out = encode(codec, tmp_path, fields)
    assert json.loads((out / "latents.json").read_text())["fields"] == {"cls": 4, "txt": 4}  # "three" is none
    dataset = LatentDataset(out, scale=LatentScale(), fields=["txt", "cls"])
    assert [dataset[item]["cls"] for item in range(6)] == [-1, 1, 2, -1, 4, 5]
    assert [dataset[item]["txt"] for item in range(6)] == ["a", "", "c", "d", "", "f"]
    assert [len(cast(list[str], batch["key"])) for batch in batches(dataset)] == [3, 3]
    assert sorted(LatentDataset(out, scale=LatentScale(), fields=())[0]) == ["key", "latent"]
    assert sorted(LatentDataset(out, scale=LatentScale())[0]) == ["key", "latent"]


def test_fields_that_no_sample_has_are_refused_at_once(codec: LatentCodec, tmp_path: Path) -> None:
    out = encode(codec, tmp_path, {"cls": [b"1"] * 6, "json": [b"{}"] * 6})
    with pytest.raises(UserError, match=r"no sample of .* has txt"):
        LatentDataset(out, fields=["txt"])
    with pytest.raises(UserError, match=r"'json' is not known: choose from cls, txt"):
        LatentDataset(out, fields=["cls", "json"])
    assert LatentDataset(out).fields(0)["json"] == b"{}"


def test_a_text_that_is_no_utf8_ends_no_epoch(
    codec: LatentCodec, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    texts: list[bytes | None] = ["höhe".encode(), BROKEN, BROKEN, "said \ufffd".encode(), b"e", b"f"]
    dataset = LatentDataset(encode(codec, tmp_path, {"txt": texts}), scale=LatentScale())
    with caplog.at_level(logging.WARNING):
        found = [dataset[item]["txt"] for item in (3, 0, 1, 2, 4, 5)]
    assert found == ["said \ufffd", "höhe", "caf\ufffd \ufffd", "caf\ufffd \ufffd", "e", "f"]
    assert [record.message for record in caplog.records] == [
        f"{tmp_path}/out: txt of s1 is no UTF-8, and gets U+FFFD where it is none; others may be so, too"
    ]
    assert dataset.fields(1)["txt"] == BROKEN
