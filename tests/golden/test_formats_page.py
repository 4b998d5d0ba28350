"""docs/formats.md names everything that the files of 0.1.0 hold."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tools.golden import GOLDEN

MADE = GOLDEN / "made_by_0_1_0"
PAGE = (ROOT / "docs" / "formats.md").read_text()
# `gradient_norm/NAME` in the page stands for any name.
NAMED = [re.sub("NAME|METRIC|N$", r"\\w+", re.escape(name)) for name in re.findall(r"`([^`\s]+)`", PAGE)]
FILES = [path for path in sorted(MADE.glob("**/*.json")) if path.name != "config.json"]  # that one is diffusers'
FREE = {"job", "protocol", "model", "recipe", "health", "sections"}  # what is in them is told elsewhere
NAMES = {"sizes", "quarantined", "metrics", "members", "values", "missing", "notes"}  # their keys are names of things


def keys(content: Any) -> Iterator[str]:
    """Every key of a file that the page is to explain."""
    for item in content if isinstance(content, list) else []:
        yield from keys(item)
    for key, value in content.items() if isinstance(content, dict) else []:
        yield key
        if key not in FREE | NAMES and not (key == "shards" and isinstance(value, dict)):
            yield from keys(value)


def unnamed(found: set[str]) -> set[str]:
    """Those that the page does not name."""
    return {key for key in found if not any(re.fullmatch(name, key) for name in NAMED)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(MADE)))
def test_keys_of_json_are_named(path: Path) -> None:
    assert unnamed(set(keys(json.loads(path.read_text()))) - {"format", "version"}) == set()


def test_keys_of_the_log_are_named() -> None:
    rows = [json.loads(line) for line in (MADE / "run" / "metrics.jsonl").read_text().splitlines()]
    assert unnamed({key for row in rows for key in row}) == set()
    assert unnamed({"validation", "gradient_norm", "shard"}) == {"validation", "gradient_norm", "shard"}  # it can fail


def test_files_of_a_run_are_named() -> None:
    found = {path.name for path in (MADE / "run").iterdir()} | {path.name for path in (MADE / "latents").iterdir()}
    found |= {path.stem for path in (MADE / "run").glob("checkpoints/*/*.safetensors")}
    folders = {"checkpoints", "samples", "inspection", "export", "records"}
    tokens = set(re.findall(r"`([^`]+)`", PAGE))
    assert {name for name in found - folders if name not in tokens} <= {"000001.tar"}
    assert all(any(token.startswith(f"{folder}/") for token in tokens) for folder in folders)
