"""What trackers get is read back from their files: rows, pictures, warnings and the recipe."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from PIL import Image

from ldm_vae.errors import UserError
from ldm_vae.recipe import load_recipe
from tests.train.runs import assert_same_end, rows, run_in_process
from train import trackers
from train.health import Health
from train.recipe import Recipe
from train.trackers import Trackers, settings_of, start_trackers

TENSORBOARD = "log.trackers=[tensorboard]"


@pytest.fixture
def warned(monkeypatch: pytest.MonkeyPatch) -> str:
    """Every row of training is warned of."""
    text = "pixel jumped to 1 <b>; lower *optimizer.lr*"  # TensorBoard shows Markdown
    monkeypatch.setattr(Health, "_jumps", lambda self, row: [text] if "pixel" in row else [])
    return text


def events(folder: Path) -> Any:
    """TensorBoard's own reader of a run, which keeps all that it finds."""
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulators.EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    found.Reload()
    return found


def text_of(tensor: Any) -> str:
    return str(tensor.tensor_proto.string_val[0].decode())


def logged(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The rows of metrics.jsonl, a series for each name."""
    series: dict[str, list[tuple[int, float]]] = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        for name in row.keys() - {"step"}:
            series.setdefault(name, []).append((row["step"], row[name]))
    return series


def assert_same_curves(found: Any, folder: Path) -> None:
    series = logged(folder)
    assert set(found.Tags()["scalars"]) == series.keys()
    for name, points in series.items():
        seen = [(event.step, event.value) for event in found.Scalars(name)]
        assert [step for step, _ in seen] == [step for step, _ in points], name
        # TensorBoard keeps float32.
        assert [value for _, value in seen] == pytest.approx([value for _, value in points], rel=1e-6), name


def test_tensorboard_holds_rows_pictures_warnings_and_the_recipe(recipe: Path, tmp_path: Path, warned: str) -> None:
    run_in_process(recipe, TENSORBOARD)
    run = tmp_path / "run"
    found = events(run / "tensorboard")
    assert_same_curves(found, run)

    assert sorted(found.Tags()["images"]) == ["images/0", "images/1", "latents/0", "latents/1"]
    for step in (3, 6):
        sheet = np.asarray(Image.open(run / "samples" / f"step_{step:08d}.png"))
        top = 0
        for number in range(2):
            (encoded,) = [event for event in found.Images(f"images/{number}") if event.step == step]
            picture = np.asarray(Image.open(io.BytesIO(encoded.encoded_image_string)))
            height, width = picture.shape[0], picture.shape[1] // 3
            assert np.array_equal(picture[:, : 2 * width], sheet[top : top + height, : 2 * width])
            assert picture[:, 2 * width :].any()  # a network of six steps does not give the image back
            top += height
    latents = [Image.open(io.BytesIO(event.encoded_image_string)) for event in found.Images("latents/0")]
    assert [latent.size for latent in latents] == [(2 * 120 + 1, 100)] * 2  # 2 channels of 24 x 20, five times as large

    assert [(event.step, text_of(event)) for event in found.Tensors("warnings/text_summary")] == [
        (step, warned) for step in (2, 4, 6)
    ]
    (text,) = found.Tensors("recipe/text_summary")
    assert text_of(text) == f"```yaml\n{(run / 'recipe.yaml').read_text()}```"


def test_tensorboard_shows_hyperparameters_beside_the_latest_validation(recipe: Path, tmp_path: Path) -> None:
    plugin_data = pytest.importorskip("tensorboard.plugins.hparams.plugin_data_pb2").HParamsPluginData
    run_in_process(recipe, TENSORBOARD, "steps=2")
    found = events(tmp_path / "run" / "tensorboard")
    content = found.PluginTagToContent("hparams")
    start = plugin_data.FromString(content["_hparams_/session_start_info"]).session_start_info.hparams
    assert start["optimizer.lr"].number_value == 1e-3
    assert start["model.block_out_channels"].string_value == "[8, 16]"
    assert start["data.image.resize"].string_value == "null"
    assert start["loss.pixel.kind"].string_value == "l1"
    experiment = plugin_data.FromString(content["_hparams_/experiment"]).experiment
    shown = {metric.name.tag for metric in experiment.metric_infos}
    assert shown == {"validation/psnr", "validation/rate"} <= set(found.Tags()["scalars"])


def test_curves_are_not_torn_where_a_run_goes_on_from_an_older_checkpoint(recipe: Path, tmp_path: Path) -> None:
    """A killed run has logged beyond its last checkpoint."""
    run = tmp_path / "run"
    run_in_process(recipe, TENSORBOARD, "steps=4", "log.every=1", "checkpoint.every=2")
    (last,) = (run / "checkpoints").glob("*4")
    (last / "manifest.json").unlink()  # as if it had been killed while it saved
    beyond = [row["step"] for row in rows(run)]
    assert beyond == [1, 2, 3, 3, 4, 4]
    run_in_process(recipe, TENSORBOARD, "steps=6", "log.every=1", "checkpoint.every=2", "optimizer.decay=cosine")
    assert len(list((run / "tensorboard").iterdir())) == 2  # a file for each launch, one curve
    found = events(run / "tensorboard")
    assert_same_curves(found, run)
    assert [event.step for event in found.Images("images/0")] == [3, 6]


def test_a_run_of_an_earlier_version_goes_on_in_its_own_folder(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "run" / "ldm_vae").mkdir(parents=True)
    run_in_process(recipe, TENSORBOARD, "steps=1")
    assert list((tmp_path / "run" / "ldm_vae").iterdir()) and not (tmp_path / "run" / "tensorboard").exists()


def test_trackers_change_no_number(recipe: Path, tmp_path: Path) -> None:
    run_in_process(recipe, f"output={tmp_path / 'with'}", TENSORBOARD)
    run_in_process(recipe, f"output={tmp_path / 'without'}")
    assert (tmp_path / "with" / "tensorboard").exists() and not (tmp_path / "without" / "tensorboard").exists()
    assert_same_end(tmp_path / "with", tmp_path / "without")


def test_without_trackers_no_picture_is_made() -> None:
    def refused() -> Iterator[tuple[str, Image.Image]]:
        raise AssertionError("nobody shows it")

    nobody = Trackers([])
    nobody.show(1, refused)
    nobody.log(1, {"pixel": 0.5})
    nobody.warn(1, ["warning"])


def test_a_tracker_that_cannot_write_is_named() -> None:
    class Full(GeneralTracker):  # type: ignore[misc]  # of accelerate, which has no types
        name, requires_logging_directory = "tensorboard", False
        tracker = None

        def log(self, values: dict[str, Any], step: int | None = None, **more: Any) -> None:
            raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"a tracker cannot write .*No space left.*: mend that, or set log.trackers"):
        Trackers([Full()]).log(1, {"pixel": 0.5})


def test_settings_are_dotted_names_and_plain_values(recipe: Path) -> None:
    settings = settings_of(load_recipe(Recipe, recipe))
    assert settings["optimizer.betas"] == json.dumps(list(load_recipe(Recipe, recipe).optimizer.betas))
    assert settings["data.image.flip"] is True and settings["steps"] == 6 and settings["data.image.resize"] == "null"
    assert all(isinstance(value, bool | int | float | str) for value in settings.values())


def test_a_run_goes_on_under_its_name(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[GeneralTracker] = []
    for kind in ("WandBTracker", "TrackioTracker"):
        tracker = getattr(trackers, kind)
        monkeypatch.setattr(tracker, "start", lambda self: started.append(self))
        monkeypatch.setattr(tracker, "store_init_configuration", lambda self, values: None)
    for folder in ("run", "run", "other/run"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        settings = load_recipe(Recipe, recipe, [f"output={tmp_path / folder}", "log.trackers=[wandb,trackio]"])
        start_trackers(settings, 0, Accelerator())
    first, second, other = ({**started[i].init_kwargs, **started[i + 1].init_kwargs} for i in (0, 2, 4))
    wandb, trackio = started[0].init_kwargs, started[1].init_kwargs
    assert first == second
    assert wandb["id"] == trackio["name"] != other["id"]
    assert wandb["resume"] == trackio["resume"] == "allow"
    assert wandb["dir"] == str(tmp_path / "run") and other["dir"] == str(tmp_path / "other" / "run")


def wandb_records(folder: Path) -> Iterator[Any]:
    """What an offline run of W&B holds: records of its protocol in a log of LevelDB's format, after seven bytes."""
    record = pytest.importorskip("wandb.proto.wandb_internal_pb2").Record
    (path,) = folder.glob("offline-run-*/run-*.wandb")
    data, place, whole = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if (left := 2**15 - place % 2**15) < 7:  # blocks of 32 KiB end in padding
            place += left
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # full, last
            yield record.FromString(whole)
            whole = b""


def test_wandb_holds_the_same_in_the_run_folder(
    recipe: Path, tmp_path: Path, warned: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)  # where W&B would write if it were not told
    run_in_process(recipe, "log.trackers=[wandb]")
    run = tmp_path / "run"
    assert not (tmp_path / "wandb").exists()
    records = list(wandb_records(run / "wandb"))
    (described,) = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert described.run_id == (run / "tracker_id").read_text() and described.display_name == "run"

    histories: dict[int, dict[str, Any]] = {}
    for record in records:
        if record.WhichOneof("record_type") == "history":
            row = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            histories[row["_step"]] = row
    assert histories.keys() == {2, 3, 4, 6}
    for row in rows(run):
        for name, value in row.items():
            if name != "step":
                assert histories[row["step"]][name] == value
    files = next((run / "wandb").glob("offline-run-*")) / "files"
    sheet = np.asarray(Image.open(run / "samples" / "step_00000006.png"))
    (image,) = histories[6]["images/0/filenames"]
    picture = np.asarray(Image.open(files / image))
    assert np.array_equal(picture[:, : sheet.shape[1]], sheet[: picture.shape[0]])
    assert histories[6]["latents/1/filenames"]
    table = json.loads((files / histories[6]["warnings/path"]).read_text())
    assert table["columns"] == ["step", "warning"] and table["data"] == [[step, warned] for step in (2, 4, 6)]
    configured = {
        update.key or "/".join(update.nested_key): json.loads(update.value_json)
        for record in records
        if record.WhichOneof("record_type") == "config"
        for update in record.config.update
    }
    assert configured["optimizer.lr"] == 1e-3 and configured["model.block_out_channels"] == "[8, 16]"


def test_trackio_holds_rows_pictures_and_the_recipe(
    recipe: Path, tmp_path: Path, warned: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio = pytest.importorskip("trackio")
    run_in_process(recipe, "log.trackers=[trackio]")
    name = (tmp_path / "run" / "tracker_id").read_text()
    (run,) = [one for one in trackio.Api().runs("ldm_vae") if one.name == name]
    assert run.config["optimizer.lr"] == 1e-3
    stored = pytest.importorskip("trackio.sqlite_storage").SQLiteStorage.get_logs("ldm_vae", name)
    merged: dict[int, dict[str, Any]] = {}
    for log in stored:
        merged.setdefault(log["step"], {}).update(log)
    for row in rows(tmp_path / "run"):
        assert row.items() <= merged[row["step"]].items()
    assert merged[6]["warnings"] == warned
    for step in (3, 6):
        assert {merged[step][f"{kind}/{i}"]["_type"] for kind in ("images", "latents") for i in range(2)} == {
            "trackio.image"
        }
