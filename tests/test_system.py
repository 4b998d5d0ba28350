"""A file that cannot be read just now is neither missing nor damaged: whoever reads it says so, and names it."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ldm_vae.diagnostics.findings import INSPECTION_FILE, Inspection
from ldm_vae.interop.checkpoint import Checkpoint, find_damage
from ldm_vae.interop.diffusers import CONFIG, read_config
from ldm_vae.interop.results import StoredResults
from ldm_vae.metrics.latent import LatentStatistics

READERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "checkpoint": (Checkpoint.open, "meta.json"),
    "damage of a checkpoint": (find_damage, "manifest.json"),
    "export": (read_config, CONFIG),
    "statistics": (lambda folder: LatentStatistics.read(folder / "statistics.json"), "statistics.json"),
    "results": (lambda folder: StoredResults.read(folder / "results.json"), "results.json"),
    "inspection": (Inspection.read, INSPECTION_FILE),
}


def failing(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Files of this name cannot be read, as from a disk that fails."""
    real = Path.open

    def open_file(self: Path, *arguments: Any) -> Any:
        if self.name == name:
            raise OSError(errno.EIO, "Input/output error")
        return real(self, *arguments)

    monkeypatch.setattr(Path, "open", open_file)


@pytest.mark.parametrize("what", READERS)
def test_an_error_of_the_disk_passes_and_names_the_file(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, name = READERS[what]
    (tmp_path / name).write_text("{}")
    failing(monkeypatch, name)
    with pytest.raises(OSError, match="Input/output error") as raised:
        read(tmp_path)
    assert (raised.value.errno, raised.value.filename) == (errno.EIO, str(tmp_path / name))


def test_a_checkpoint_that_cannot_be_read_is_not_passed_over_for_an_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        folder = tmp_path / "checkpoints" / f"step_{step:08d}"
        Checkpoint.write(folder, {"model": {"x": torch.full((2,), float(step))}}, {"step": step, "model": {}})
    newest = Checkpoint.latest(tmp_path)
    assert newest is not None and newest.step == 2
    failing(monkeypatch, "manifest.json")
    with pytest.raises(OSError, match="Input/output error"):
        Checkpoint.latest(tmp_path)
