"""Whatever fails in a data worker reaches the trainer as one error that says what to do."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ldm_vae.data.stream.worker as worker_module
from ldm_vae.data.images.fit import ImageConfig
from ldm_vae.data.shards.index import Index, SourceConfig, load_index
from ldm_vae.data.stream.reader import DataConfig, train_batches, validation_batches
from ldm_vae.errors import UserError
from tests.data.conftest import MakeShards


@pytest.fixture
def index(make_shards: MakeShards, tmp_path: Path) -> Index:
    return load_index(str(make_shards(tmp_path / "shards", [30], side=6)))


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*_: object) -> Any:
        raise error

    return fail


CASES = {
    "a fault of ours": (
        "prepare_image",
        raising(KeyError("x")),
        "a data worker failed .KeyError: 'x'.: with data.workers=0 the trainer",
    ),
    "memory": ("prepare_image", raising(MemoryError()), "too little memory: use a machine"),
    "open files": (
        "prepare_image",
        raising(OSError(errno.EMFILE, os.strerror(errno.EMFILE))),
        "Too many open files: this machine fails",
    ),
    "an error that only its own arguments can make": (
        "prepare_image",
        raising(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no text")),
        "a data worker failed .UnicodeDecodeError: .*no text.: with data.workers=0",
    ),
    "what cannot be sent": (
        "parse_label",
        lambda _: lambda: 1,
        "a data worker failed .*Can't pickle .*: with data.workers=0",
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("stream", ["training", "validation"])
def test_what_fails_in_a_worker_is_told_with_a_remedy(
    index: Index, monkeypatch: pytest.MonkeyPatch, case: str, stream: str
) -> None:
    name, broken, said = CASES[case]
    monkeypatch.setattr(worker_module, name, broken)  # in this process, of which the workers are forks
    config = DataConfig(train=(SourceConfig(shards=""),), batch=6, workers=2, image=ImageConfig(crop=4))
    if stream == "training":
        batches: Any = train_batches(config, index, 0, start_step=0, rank=0, world=1, accumulation=1)
    else:
        batches = validation_batches(config, index, batch=6, rank=0, world=1)
    with pytest.raises(UserError, match=said):
        next(batches)
