"""docs/latents.md: its commands and its Python run as they stand, and its table of bytes is what `encode` writes."""

from __future__ import annotations

import io
import os
import re
import shlex
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ldm_vae import LatentDataset
from ldm_vae.cli.app import main
from ldm_vae.interop.checkpoint import Checkpoint
from ldm_vae.latents.roundtrip import round_to_bits
from ldm_vae.networks.kl import Autoencoder, AutoencoderConfig
from tests.cli.conftest import write_shard
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "latents.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def save(run: Path, factor: int, channels: int) -> None:
    """A run of a tiny codec of that shape."""
    torch.manual_seed(0)
    levels = factor.bit_length()
    config = AutoencoderConfig(
        block_out_channels=(4,) * levels, norm_groups=2, layers_per_block=1, latent_channels=channels
    )
    states = {"model": Autoencoder(config).state_dict()}
    Checkpoint.write(
        run / "checkpoints" / "step_00000001", states, {"step": 1, "model": config.model_dump(mode="json")}
    )


def command(*arguments: object) -> None:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert not stop.value.code


def test_commands_and_python_run_as_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LDM_VAE_TEST_DATA", "optional")
    save(Path("runs/demo"), 4, 3)
    for name in ("000000", "000001"):
        write_shard(Path(f"shards/train/{name}.tar"), [f"{name}{i}" for i in range(3)], sizes=[(32, 40)])
    write_shard(Path("optional/data/bsds-val/000000.tar"), ["a", "b"], sizes=[(32, 32)])
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    assert len(lines) == 8
    for line in lines:
        small = line.replace("center:256", "center:32")  # to be quick
        program, *arguments = shlex.split(os.path.expandvars(small))
        assert program == "ldm-vae"
        command(*arguments)
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks("python"):
        exec(compile(block, "docs/latents.md", "exec"), names)
    assert names["latents"].shape == (2, 3, 8, 8)
    # What the page's own lines read is a draw from what LatentDataset reads: 192 normal values, give or take 5 sigma.
    stored = LatentDataset("latents/train")
    draws = []
    for item in range(len(stored)):
        mean, logvar = np.split(np.load(io.BytesIO(stored.fields(item)["moments.npy"])).astype(np.float32), 2)
        draws.append((names["first"] / names["factor"] + names["shift"] - mean) / np.exp(0.5 * logvar))
    assert min(float(np.sqrt((draw**2).mean())) for draw in draws) == pytest.approx(1.0, abs=0.25)
    with tarfile.open("latents/means8/000000.tar") as tar:
        members = (tar.extractfile(f"0000000.{name}.npy") for name in ("codes", "range"))
        codes, ranges = (np.load(io.BytesIO(member.read())) for member in members if member is not None)
    found = names["from_8_bits"](codes, ranges)
    expected = round_to_bits(LatentDataset("latents/means").raw(0)[None], 8)[0].numpy()
    # The same rounding, summed in another order in float32.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("name", "factor", "channels"),
    [("f4c3", 4, 3), ("f8c4", 8, 4), ("f8c16", 8, 16), ("f16c16", 16, 16), ("f16c32", 16, 32)],
)
def test_bytes_are_those_of_a_real_encode(tmp_path: Path, name: str, factor: int, channels: int) -> None:
    rows = {
        int(side): [int(number.replace(",", "")) for number in numbers.split("|")[:3]]
        for side, numbers in re.findall(rf"^\| {name} \| (\d+) \|(.*)$", PAGE, re.MULTILINE)
    }
    save(tmp_path / "run", factor, channels)
    write_shard(tmp_path / "shards" / "000000.tar", ["a"], sizes=[(256, 256)])
    stored = {}
    for kind in ("mode", "moments"):
        command("encode", tmp_path / "run", tmp_path / "shards", tmp_path / kind, "--latents", kind)
        with tarfile.open(tmp_path / kind / "000000.tar") as tar:
            members = {member.name: member for member in tar}
        array = members[f"a.{kind}.npy"]
        stored[kind] = array.size - 128  # numpy's header
        following = min(member.offset for member in members.values() if member.offset > array.offset)
        assert following - array.offset == stored[kind] + 1024  # as the page says
    assert rows[256] == [stored["mode"] // 2, stored["mode"], stored["moments"]]
    assert rows[1024] == [16 * number for number in rows[256]]


def test_totals_are_a_hundred_million_of_each() -> None:
    rows = re.findall(r"^\| f\d+c\d+ \| \d+ \|(.*)\|$", PAGE, re.MULTILINE)
    assert len(rows) == 10
    for row in rows:
        cells = [cell.strip() for cell in row.split("|")]
        expected = [f"{int(cell.replace(',', '')) * 1e8 / 1e12:.2f} TB" for cell in cells[:3]]
        assert cells[3:] == expected
