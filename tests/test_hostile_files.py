"""Whatever a file holds, it is read, or refused in a line that a person can act on; memory stays bounded.

Each kind of file is taken from something whole, changed in hundreds of ways, and read by what reads it.
"""

from __future__ import annotations

import io
import itertools
import json
import resource
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

from ldm_vae import LatentCodec, LatentDataset, UserError
from ldm_vae.bottlenecks.scale import LatentScale
from ldm_vae.data.shards.check import check_shards, index_folders
from ldm_vae.data.shards.index import load_index
from ldm_vae.data.shards.samples import read_samples
from ldm_vae.data.shards.shard import dump_index
from ldm_vae.diagnostics.classes import class_names
from ldm_vae.errors import LONGEST
from ldm_vae.interop.export import export_model
from ldm_vae.interop.load import load_model, statistics_of, weights_hash
from ldm_vae.interop.weights import INDEX, WEIGHTS
from ldm_vae.latents.check import check_latents
from ldm_vae.metrics.latent import LatentStatistics
from ldm_vae.recipe import load_recipe
from ldm_vae.report.page import write_report
from ldm_vae.report.run import read_run
from tests.conftest import TINY, write_shards
from tests.hostile import damaged, hostile_json, trees
from tests.latents.jobs import job
from tests.latents.jobs import run as encode
from tests.report.conftest import make_run, write_shard
from train.recipe import Recipe
from train.status import read_status, write_status

HEADROOM = 3 * 2**30  # bytes beyond what the tests' process has; a terabyte that a file asks for is far beyond
COUNT = 100  # changed values of each file


@pytest.fixture(autouse=True)
def _bounded_memory() -> Iterator[None]:
    """What a file asks for in vain ends as MemoryError, which no reader may raise."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + HEADROOM, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """run, an export, one in several files, shards with index and classes, and latents."""
    folder = tmp_path_factory.mktemp("whole")
    pictures = write_shard(folder / "pictures")
    run = make_run(folder / "run", pictures)
    codec = LatentCodec.load(run, device="cpu")
    codec.scale = LatentScale(0.5)
    loaded = load_model(run)
    statistics = LatentStatistics.read(run / "latent_statistics.json").model_copy(
        update={"codec": weights_hash(loaded.model)}
    )
    statistics.write(run / "latent_statistics.json")
    export_model(loaded, folder / "export", statistics, command="")
    split_weights(folder / "export", folder / "split")
    write_shards(folder / "shards", [4, 3])
    (folder / "shards" / "index.json").write_text(dump_index(load_index(str(folder / "shards")).shards))
    (folder / "shards" / "classes.json").write_text('["cat", "dog"]')
    encode(codec, folder / "shards", folder / "latents", job(codec, batch=2))
    return folder


def split_weights(export: Path, folder: Path) -> None:
    """The same model with its weights in two files, as diffusers writes it with max_shard_size."""
    state = load_model(export).model.state_dict()
    folder.mkdir()
    shutil.copy(export / "config.json", folder)
    homes = {name: f"part-{number % 2}.safetensors" for number, name in enumerate(state)}
    for home in set(homes.values()):
        (folder / home).write_bytes(save({name: value for name, value in state.items() if homes[name] == home}))
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": homes}))


def survive(path: Path, contents: Iterable[bytes], read: Callable[[], object]) -> None:
    """Reads each content; anything but success and UserError fails, and so does success that hides in a traceback."""
    before = path.read_bytes()
    lines: list[str] = []
    tried = 0
    for content in contents:
        path.write_bytes(content)
        tried += 1
        try:
            read()
        except UserError as error:
            lines.append(str(error))
        except Exception as error:
            raise AssertionError(f"{path.name}: {content[:300]!r}") from error
    path.write_bytes(before)
    read()  # the file as it was is read, or the refusals would say nothing
    path.unlink()
    path.mkdir()
    with suppress(UserError):
        read()
    path.rmdir()
    assert tried >= 10 and all(line.strip() and len(line) < 3 * LONGEST for line in lines)


def copied(whole: Path, tmp_path: Path, name: str) -> Path:
    return Path(shutil.copytree(whole / name, tmp_path / name))


def loaded(folder: Path) -> Callable[[], object]:
    def read() -> None:
        codec = LatentCodec.load(folder, device="cpu")
        codec.scale = codec.scale or LatentScale()
        codec.decode(torch.zeros(1, codec.latent_channels, 2, 2))

    return read


def reported(run: Path) -> Callable[[], object]:
    """Reads a run, and makes a page of every eighth, since that takes a second. It decodes nothing."""
    shutil.rmtree(run / "checkpoints", ignore_errors=True)
    count = itertools.count()

    def read() -> None:
        read_run(str(run))
        if next(count) % 8 == 0:
            write_report([str(run)], None, None, "ldm-vae report")

    return read


@pytest.mark.parametrize("name", ["export", "split"])
def test_config_of_a_model(whole: Path, tmp_path: Path, name: str) -> None:
    path = copied(whole, tmp_path, name) / "config.json"
    survive(path, hostile_json(path.read_bytes(), COUNT), loaded(path.parent))


def test_index_of_weights(whole: Path, tmp_path: Path) -> None:
    path = copied(whole, tmp_path, "split") / INDEX
    survive(path, hostile_json(path.read_bytes(), 20), loaded(path.parent))


def test_weights(whole: Path, tmp_path: Path) -> None:
    path = copied(whole, tmp_path, "export") / WEIGHTS
    data = path.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    flipped = [head + data[len(head) :] for head in damaged(data[:header], COUNT)]
    read = loaded(path.parent)
    survive(path, [*flipped, *damaged(data, 20), (2**62).to_bytes(8, "little") + data[8:]], lambda: finite_or_not(read))


def finite_or_not(read: Callable[[], object]) -> None:
    """Flipped bits of weights are other weights, which may decode to infinity: said in a line, too."""
    read()


@pytest.mark.parametrize("nested", [False, True])
def test_pickled_weights(whole: Path, tmp_path: Path, nested: bool) -> None:
    folder = copied(whole, tmp_path, "export")
    state: dict[str, Any] = dict(load_model(folder).model.state_dict())
    (folder / WEIGHTS).unlink()
    path = folder / "diffusion_pytorch_model.bin"
    first = next(iter(state))
    odd = [None, 3, [state], {"state_dict": None}, {"state_dict": {"a": 1}}, {1: state[first]}, state | {first: "x"}]
    odd += [state | {first: value} for value in (torch.zeros(()), state[first].int(), state[first].to_sparse())]
    odd += [state | {first: torch.zeros(1).expand(2**40)}, state | {first: state[first].to(torch.complex64)}]
    contents = [pickled(value) for value in odd]
    path.write_bytes(pickled({"state_dict": state} if nested else state))
    survive(path, [*contents, *damaged(path.read_bytes(), 40)], loaded(folder))


def pickled(value: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def test_meta_of_a_checkpoint(whole: Path, tmp_path: Path) -> None:
    checkpoint = copied(whole, tmp_path, "run") / "checkpoints" / "step_00000200"
    path = checkpoint / "meta.json"
    meta = json.loads(path.read_bytes())
    origin = {"encoder": "0" * 64, "codecs": ["1" * 64], "scale": LatentScale(2.0).to_config()}
    meta |= {"origin": origin, "metrics": {"validation/psnr": 20.0}, "frozen": {}, "health": {"pixel": [0.1, 3]}}
    path.write_text(json.dumps(meta))
    survive(path, hostile_json(path.read_bytes(), COUNT), loaded(checkpoint))


def test_manifest_of_a_checkpoint(whole: Path, tmp_path: Path) -> None:
    run = copied(whole, tmp_path, "run")
    path = run / "checkpoints" / "step_00000200" / "manifest.json"
    survive(path, hostile_json(path.read_bytes(), 40), loaded(run))


def test_statistics(whole: Path, tmp_path: Path) -> None:
    run = copied(whole, tmp_path, "run")
    path = run / "latent_statistics.json"
    model = load_model(whole / "export")

    def read() -> None:
        statistics = LatentStatistics.read(path)
        for kind in ("factor", "shift", "channel"):
            export_model(model, tmp_path / "out", statistics, kind=kind, command="")
            numbers = load_model(tmp_path / "out").scale
            assert numbers is not None and all(map(np.isfinite, (numbers.factor, numbers.shift or 0.0)))
        statistics_of(load_model(run).source, statistics.codec)

    survive(path, hostile_json(path.read_bytes(), COUNT), read)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("std", value) for value in ("Infinity", "NaN", "1e-320", "1e-42", "-1.0", "1e300")),
        *(("mean", "NaN"), ("mean", "1e300"), ("images", "-1"), ("values", "0")),
    ],
)
def test_statistics_that_are_no_scale_are_not_exported(whole: Path, tmp_path: Path, field: str, value: str) -> None:
    content = json.loads((whole / "run" / "latent_statistics.json").read_bytes())
    text = json.dumps(content | {field: "HERE"}).replace('"HERE"', value)
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(UserError):
        export_model(
            load_model(whole / "export"), tmp_path / "out", LatentStatistics.read(tmp_path / "s.json"), kind="shift",
            command="",
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_statistics_of_another_number_of_channels_are_not_exported(whole: Path, tmp_path: Path) -> None:
    statistics = LatentStatistics.read(whole / "run" / "latent_statistics.json")
    wide = statistics.model_copy(update={"channel_mean": (0.0,) * 7, "channel_std": (1.0,) * 7})
    with pytest.raises(UserError, match="one a channel"):
        export_model(load_model(whole / "export"), tmp_path / "out", wide, kind="channel", command="")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["results.json", "status.json", "latent_statistics.json", "inspection/inspection.json"]
)
def test_what_a_report_reads(whole: Path, tmp_path: Path, name: str) -> None:
    run = copied(whole, tmp_path, "run")
    survive(run / name, hostile_json((run / name).read_bytes(), 40), reported(run))


def test_results_in_a_card(whole: Path, tmp_path: Path) -> None:
    run = copied(whole, tmp_path, "run")
    path = run / "results.json"
    content = json.loads(path.read_bytes())
    small = {name: content[name] for name in ("metrics", "missing", "notes", "protocol") if name in content}
    small["protocol"] = small["protocol"] | {"weights_sha256": weights_hash(load_model(run).model)}
    path.write_text(json.dumps(small))
    statistics = LatentStatistics.read(run / "latent_statistics.json")

    def read() -> None:
        export_model(load_model(run), tmp_path / "out", statistics, command="")

    survive(path, hostile_json(path.read_bytes(), 60), read)


@pytest.mark.parametrize("name", ["metrics.jsonl", "warnings.jsonl"])
def test_logs(whole: Path, tmp_path: Path, name: str) -> None:
    run = copied(whole, tmp_path, "run")
    path = run / name
    lines = [{"step": 3, "pixel": 0.5, "warning": "w 1"}, {"step": 4, "validation/psnr": 3.0, "warning": "w 2"}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    changed = [f"{json.dumps(tree)}\n{json.dumps(lines[1])}\n".encode() for tree in trees(lines[0], 30)]
    survive(path, [*changed, *damaged(path.read_bytes(), 10), b"\xff" * 10, b"\n" * 10], reported(run))


def test_status_of_a_run(whole: Path, tmp_path: Path) -> None:
    run = copied(whole, tmp_path, "run")

    def read() -> None:
        read_status(run)
        write_status(run, "failed", "why")

    survive(run / "status.json", hostile_json((run / "status.json").read_bytes(), 40), read)


@pytest.mark.parametrize("name", ["latents.json", "records/000000.json"])
def test_latents(whole: Path, tmp_path: Path, name: str) -> None:
    out = copied(whole, tmp_path, "latents")

    def read() -> None:
        check_latents(out, None)
        latents = LatentDataset(out, scale=LatentScale())
        for item in range(min(len(latents), 20)):
            assert latents[item]["latent"].isfinite().all()

    survive(out / name, hostile_json((out / name).read_bytes(), COUNT), read)


def test_latents_are_finished_whatever_their_records_hold(whole: Path, tmp_path: Path) -> None:
    out = copied(whole, tmp_path, "latents")
    codec = LatentCodec.load(whole / "run", device="cpu")
    codec.scale = LatentScale(0.5)
    path = out / "records" / "000001.json"
    content = json.loads(path.read_bytes())

    def read() -> None:
        encode(codec, whole / "shards", out, job(codec, batch=2))
        assert len(LatentDataset(out)) == 7

    survive(path, [json.dumps(tree).encode() for tree in trees(content, 10)], read)


@pytest.mark.parametrize(
    "header",
    ["(8, 1000000, 1000000)", "(10**12,)", "(-1, 2, 2)", "()", "(4, 0, 2)", "4", "(True, 2, 2)", "(9e9, 1)", "(" * 300],
)
def test_arrays_of_latents(whole: Path, tmp_path: Path, header: str) -> None:
    out = copied(whole, tmp_path, "latents")
    path = out / "000000.tar"
    data = path.read_bytes()
    start = data.index(b"\x93NUMPY")
    length = 128 - 10  # of the header of a small array
    text = f"{{'descr': '<f2', 'fortran_order': False, 'shape': {header}, }}".encode()
    hostile = data[: start + 10] + text.ljust(length - 1)[: length - 1] + b"\n" + data[start + 128 :]
    path.write_bytes(hostile)
    with pytest.raises(UserError, match=r"000000\.tar is damaged"):
        LatentDataset(out, scale=LatentScale())[0]


@pytest.mark.parametrize("name", ["index.json", "classes.json"])
def test_index_of_shards(whole: Path, tmp_path: Path, name: str) -> None:
    shards = copied(whole, tmp_path, "shards")

    def read() -> None:
        class_names(str(shards))
        for shard in load_index(str(shards)).shards:
            for _ in read_samples(shard):
                pass
        list(check_shards(str(shards), decode=False, channels=None))
        index_folders(str(shards))

    survive(shards / name, hostile_json((shards / name).read_bytes(), COUNT), read)


def test_scans_in_a_cache(whole: Path, tmp_path: Path) -> None:
    shards, cache = copied(whole, tmp_path, "shards"), tmp_path / "cache"
    (shards / "index.json").unlink()
    load_index(str(shards), cache=cache)
    (path,) = cache.glob("*.json")

    def read() -> None:
        for shard in load_index(str(shards), cache=cache).shards:
            assert sum(1 for _ in read_samples(shard)) == shard.samples

    survive(path, hostile_json(path.read_bytes(), 40), read)


PAIRS = list(zip("abcdefgh", "bcdefghi", strict=True))  # each stands for nine times the one before
HOSTILE_YAML = (
    *("", "- 1", "a", "[" * 5000, "{a: " * 5000, "? " * 5000, "- " * 50_000, "&a [*a]", "steps: &a [*a]", "a: *b"),
    "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in PAIRS),
    "a: &a {x: 1}\n" + "".join(f"{b}: &{b} {{<<: [{','.join([f'*{a}'] * 9)}]}}\n" for a, b in PAIRS),
    *("a: 2001-99-99", "a: " + "9" * 6000, "[1]: 2", "? {a: b}\n: c", "a: !!binary x", "a: !!python/name:os.system"),
    *("a: 1\na: 2", "a\0b: 1", "---\na: 1\n---\nb: 2", '"\\ud800": 1', "\ufeffsteps: 3", "base: ''", "base: [1]"),
    *("base: {}", "base: " + "x" * 5000, 'base: "a\\0b"', "base: .", "base: recipe.yaml", "%YAML 9.9\n---\na: 1"),
    "a: !!set {b, c}",
    "# " + "x" * 2**21,
)  # fmt: skip


@pytest.mark.slow
def test_recipes(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(TINY.format(output=tmp_path / "out", shards=whole / "shards"))
    content = load_recipe(Recipe, path).model_dump(mode="json")
    changed = [json.dumps(tree).encode() for tree in trees(content, 200)]
    survive(
        path,
        [*(text.encode("utf-8", "surrogatepass") for text in HOSTILE_YAML), *changed, *damaged(path.read_bytes(), 60)],
        lambda: load_recipe(Recipe, path),
    )


def test_recipe_of_a_run(whole: Path, tmp_path: Path) -> None:
    run = copied(whole, tmp_path, "run")
    statistics = LatentStatistics.read(run / "latent_statistics.json")
    path = run / "recipe.yaml"
    tree = {"data": {"train": [{"shards": "x"}], "validation": "v", "image": {"crop": 8, "resize": 9}}, "steps": 5}

    def read() -> None:
        read_run(str(run))
        export_model(load_model(run), tmp_path / "out", statistics, command="")

    changed = [json.dumps(other).encode() for other in trees(tree, 30)]
    survive(path, [*(text.encode("utf-8", "surrogatepass") for text in HOSTILE_YAML), *changed], read)


@pytest.mark.parametrize(
    "override", ["a." * 5000 + "b=1", "steps=[" + "[" * 5000, "steps=&a [*a]", "steps=" + "9" * 6000], ids=range(4)
)
def test_overrides(whole: Path, tmp_path: Path, override: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(TINY.format(output=tmp_path / "out", shards=whole / "shards"))
    with pytest.raises(UserError):
        load_recipe(Recipe, path, [override])


def test_no_output_is_refused(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(TINY.format(output="''", shards=whole / "shards"))
    with pytest.raises(UserError, match=r"recipe\.yaml: output"):
        load_recipe(Recipe, path)
