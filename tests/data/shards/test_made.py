"""Data sets that the package makes: the same shards each time, made once, and read like any other."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from ldm_vae import UserError
from ldm_vae.cli.app import main
from ldm_vae.data.shards.index import load_index
from ldm_vae.data.shards.samples import read_samples
from ldm_vae.family.data import digits


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LDM_VAE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_digits_are_those_of_scikit_learn(cache: Path) -> None:
    expected, seen = load_digits(), set()
    for part, count in (("train", 1500), ("validation", 297)):
        index = load_index(f"made:digits/{part}")
        assert index.samples == count and len(index.shards) == 1
        for key, fields in read_samples(index.shards[0]):
            assert not isinstance(fields, str)
            number = int(key)
            (cache / "digit.png").write_bytes(fields["png"])
            levels = np.asarray(Image.open(cache / "digit.png"))
            assert np.array_equal((levels / 255 * 16).round(), expected.images[number])
            assert int(fields["cls"]) == expected.target[number]
            seen.add(number)
    assert seen == set(range(1797))  # each in one part


def test_they_are_made_once_and_the_same(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def digest() -> str:
        return hashlib.sha256(Path(load_index("made:digits/validation").shards[0].url).read_bytes()).hexdigest()

    made, samples = [], digits.samples

    def noted(part: str) -> Iterator[tuple[str, dict[str, bytes]]]:
        made.append(part)
        return samples(part)

    monkeypatch.setattr(digits, "samples", noted)
    with ThreadPoolExecutor(2) as pool:
        assert len({future.result() for future in [pool.submit(digest) for _ in range(2)]}) == 1
    first, fingerprint = digest(), load_index("made:digits/validation").fingerprint
    assert made == ["validation"]
    monkeypatch.setenv("LDM_VAE_CACHE", str(tmp_path / "another"))
    assert digest() == first and load_index("made:digits/validation").fingerprint == fingerprint
    assert made == ["validation", "validation"]


def test_what_is_not_known_or_not_installed_is_one_line(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for spec in ("made:digits", "made:digits/test", "made:../x/train", "made:"):
        with pytest.raises(UserError, match="known are made:digits/train, made:digits/validation"):
            load_index(spec)
    monkeypatch.setattr("ldm_vae.extras.is_installed", lambda package: package != "sklearn")
    with pytest.raises(UserError, match="sklearn"):
        load_index("made:digits/train")
    assert not (cache / "made" / "digits-1" / "train").exists()  # nothing that is half made
    monkeypatch.undo()
    with pytest.raises(SystemExit) as ended:
        main(["check", "made:digits/validation", "--decode"])
    assert ended.value.code == 0
    assert "297" in capsys.readouterr().out
