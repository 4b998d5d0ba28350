"""The results of a run are kept whole: by several writers at once, and beside what earlier versions wrote."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from ldm_vae.errors import UserError
from ldm_vae.evaluation.store import keep, refuse_results_of_others
from ldm_vae.interop.results import StoredResults

WRITERS, EACH = 4, 5


def measured(weights: str, psnr: float = 20.0, **protocol: Any) -> dict[str, Any]:
    facts = {"weights_sha256": weights, "step": 1, "shards": "x", "shards_sha256": "d", "crop": "none", **protocol}
    rows = [{"key": "a", "height": 8, "width": 8, "values": {"psnr": psnr}, "missing": {}}]
    return {"metrics": {"psnr": psnr}, "missing": {}, "notes": {}, "protocol": facts, "per_image": rows}


def write(path: Path, writer: int) -> None:
    for number in range(EACH):
        keep(path, measured(f"{writer}-{number}"))


def test_writers_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=write, args=(path, writer)) for writer in range(WRITERS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * WRITERS
    found = sorted(str(one.weights) for one in StoredResults.read(path).measurements)
    assert found == sorted(f"{writer}-{number}" for writer in range(WRITERS) for number in range(EACH))


def test_a_file_of_an_earlier_version_stays_below_what_is_new(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    old = measured("old", 12.5)
    del old["protocol"]["shards_sha256"]
    path.write_text(json.dumps(old | {"pca": {"metrics": {}}}))
    keep(path, measured("new"))
    stored = StoredResults.read(path)
    assert [one.weights for one in stored.measurements] == ["new", "old"]
    assert json.loads(path.read_text())["entries"] == [old | {"pca": {"metrics": {}}}]  # keys of others, too
    keep(path, measured("old", 13.5))  # the same place: the same data, as far as the old file says
    assert [(one.weights, one.metrics) for one in StoredResults.read(path).measurements] == [
        ("old", {"psnr": 13.5}),
        ("new", {"psnr": 20.0}),
    ]


def test_metrics_of_other_versions_are_not_mixed(tmp_path: Path) -> None:
    """What measured them may have changed; with the same versions they stay beside the new ones."""
    path = tmp_path / "results.json"
    for torch, expected in (("2", {"psnr", "ssim"}), ("3", {"psnr"})):
        first = measured("w", torch="2")
        first["metrics"] = {"ssim": 0.5}
        keep(path, first)
        keep(path, measured("w", torch=torch))
        assert set(StoredResults.read(path).metrics) == expected
        path.unlink()


def test_a_damaged_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text('{"metrics"')
    with pytest.raises(UserError, match=r"results.json is damaged .*: move it"):
        keep(path, measured("w"))
    assert path.read_text() == '{"metrics"'
    assert sorted(one.name for one in tmp_path.iterdir()) == [".results.lock", "results.json"]


def test_a_file_of_a_newer_version_is_no_place_for_json(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text('{"format": "ldm_vae.results", "version": 2}')
    with pytest.raises(UserError, match=r"has version 2, and this ldm_vae reads up to 1: update ldm_vae"):
        refuse_results_of_others(path, [])
    path.write_text('{"format": "ldm_vae.results", "version": 1}')
    with pytest.raises(UserError, match="keeps the measurements of another run: give another name to --json"):
        refuse_results_of_others(path, [])
    refuse_results_of_others(path, [path])
    for content in ("{", '{"format": "a.b"}', "{}"):  # anything else that a person names may be written anew
        path.write_text(content)
        refuse_results_of_others(path, [])
    refuse_results_of_others(tmp_path / "new.json", [])


def test_what_could_not_be_measured_now_keeps_its_value(tmp_path: Path) -> None:
    """As rFID, where Inception's weights cannot be fetched; a metric that never had a value has its newest reason."""
    path = tmp_path / "results.json"
    first = measured("w")
    first["metrics"] |= {"rfid": 1.5, "kid": None, "ssim": 0.5}
    first["missing"] = {"kid": "few images"}
    first["notes"] = {"rfid": "few images"}
    first["per_image"][0]["values"]["ssim"] = 0.5
    keep(path, first)
    second = measured("w", 21.0)
    second["metrics"] |= {"rfid": None, "kid": None, "ssim": None}
    second["missing"] = {"rfid": "no weights", "kid": "no weights", "ssim": "too small"}
    second["per_image"][0]["missing"]["ssim"] = "too small"
    keep(path, second)
    (stored,) = StoredResults.read(path).measurements
    assert stored.metrics == {"psnr": 21.0, "rfid": 1.5, "kid": None, "ssim": 0.5}
    assert stored.missing == {"kid": "no weights"} and stored.notes == {"rfid": "few images"}
    (row,) = stored.per_image
    assert row.values == {"psnr": 21.0, "ssim": 0.5} and row.missing == {}


def test_a_baseline_is_replaced_whole_or_stays(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    for named in ({"jpeg": "psnr", "webp": "psnr"}, {"jpeg": "ssim"}):
        keep(path, measured("w") | compared_with(named))
    stored = StoredResults.read(path)
    assert {other.name: set(other.metrics) for other in stored.others} == {"jpeg": {"ssim"}, "webp": {"psnr"}}
    assert {one.name: set(one.metrics) for one in stored.comparisons} == {"jpeg": {"ssim"}, "webp": {"psnr"}}


def test_single_images_of_others_are_not_kept(tmp_path: Path) -> None:
    """Their own runs hold them, and nothing reads them here; what an earlier version wrote stays as it is."""
    path = tmp_path / "results.json"
    old = measured("old") | compared_with({"pca": "psnr"})
    path.write_text(json.dumps(old))
    keep(path, measured("w") | compared_with({"jpeg": "psnr"}))
    written = json.loads(path.read_text())
    assert written["per_image"] and "per_image" not in written["others"][0] and written["others"][0]["metrics"]
    assert written["entries"] == [old]


def compared_with(baselines: dict[str, str]) -> dict[str, Any]:
    """baselines: name -> the only metric that was measured."""
    others = [
        {"name": name, "kind": "baseline", "metrics": {metric: 1.0}, "per_image": [{"key": "a", "values": {}}]}
        for name, metric in baselines.items()
    ]
    return {
        "others": others,
        "comparisons": [{"name": name, "metrics": {metric: {}}} for name, metric in baselines.items()],
    }
