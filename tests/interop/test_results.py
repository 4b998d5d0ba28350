"""results.json of any version is read, or refused with the place that is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ldm_vae.errors import UserError
from ldm_vae.interop.results import StoredResults


def read(folder: Path, content: object) -> StoredResults:
    path = folder / "results.json"
    path.write_text(json.dumps(content))
    return StoredResults.read(path)


def test_the_oldest_form_and_keys_of_others_are_read(tmp_path: Path) -> None:
    found = read(tmp_path, {"metrics": {"psnr": 25.0}, "missing": {}, "protocol": {}, "pca": {"metrics": {}}})
    assert found.metrics == {"psnr": 25.0} and found.per_image == [] and found.others == []


def test_what_is_not_finite_is_missing(tmp_path: Path) -> None:
    found = read(
        tmp_path, {"metrics": {"psnr": float("nan")}, "per_image": [{"key": "a", "values": {"psnr": float("inf")}}]}
    )
    assert found.metrics == {"psnr": None} and found.per_image[0].values == {"psnr": None}


def test_the_place_that_is_wrong_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"results.json cannot be read \(per_image.0.key: Field required\): move it"):
        read(tmp_path, {"per_image": [{"values": {}}]})
