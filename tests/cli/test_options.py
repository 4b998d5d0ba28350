"""Options that subcommands share, as they work in a command."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from tqdm import tqdm

from ldm_vae import progress
from tests.cli.commands import command
from tests.terminal import terminal


@pytest.mark.parametrize(("world", "total"), [(1, 11), (2, 7)])
def test_encode_counts_the_images_of_its_share(
    run: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: int, total: int
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(world))
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(progress, "tqdm", partial(tqdm, mininterval=0))  # draws each image, however fast
    with terminal(monkeypatch) as drawn:
        assert command("encode", run, shards, tmp_path / "out") == 0
        for count in range(1, total + 1):
            assert f" {count}/{total} [" in drawn()
