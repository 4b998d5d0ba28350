"""Passwords and signatures of data URLs are sent, and are in no file, no line and no name that a command leaves."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from ldm_vae.data.shards.index import load_index, write_index
from ldm_vae.data.shards.left_out import warn_once
from ldm_vae.errors import UserError
from ldm_vae.passwords import keep_aside
from ldm_vae.pretrained.download import UnreachableHost, download_file, open_url
from tests.cli.commands import command
from tests.cli.conftest import write_shard
from tests.cli.private_server import PASSWORD, SECRETS, PrivateServer, private_server
from tests.conftest import ROOT, members, write_tar

pytestmark = pytest.mark.numerical

WAYS = ("password", "signature", "each file")
TINY = """\
output: {output}
steps: 2
model: {{block_out_channels: [8, 16], layers_per_block: 1, norm_groups: 4, latent_channels: 2}}
data: {{train: "{places}", validation: "{places}", batch: 2, workers: 1, image: {{crop: 16}}}}
loss: {{perceptual: {{channels: off}}}}
discriminator: null
validation: {{every: 1, metrics: [psnr]}}
checkpoint: {{every: 1}}
log: {{every: 1, trackers: [tensorboard]}}
"""


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PrivateServer]:
    """A server of two tars, one picture of which is broken, with an index."""
    warn_once.cache_clear()
    monkeypatch.setattr("ldm_vae.passwords._kept", {})  # what other tests gave
    folder = tmp_path / "served"
    for name, keys in (("0", "abcd"), ("1", "efgh")):
        write_shard(folder / "data" / f"{name}.tar", list(keys), sizes=[(16, 16)])
    last = folder / "data" / "1.tar"
    write_tar(last, members(last) | {"z.png": b"no picture", "z.cls": b"0", "z.txt": b""})
    write_index(folder / "data")
    with private_server(folder) as server:
        yield server


def places(server: PrivateServer, way: str) -> str:
    if way == "password":
        return server.with_password("data")
    return server.signed("data" if way == "signature" else "data/{0..1}.tar")


def assert_none_in(folder: Path, *texts: str) -> int:
    """The number of files looked at."""
    forbidden = re.compile("|".join(map(re.escape, SECRETS)).encode())
    files = [path for path in folder.rglob("*") if "served" not in path.relative_to(folder).parts]
    for path in files:
        assert not forbidden.search(os.fsencode(path)), path
        if path.is_file():
            assert not forbidden.search(path.read_bytes()), path
    for text in texts:
        assert not forbidden.search(text.encode()), text
    return len(files)


@pytest.mark.parametrize("way", WAYS)
def test_no_command_leaves_a_secret(
    served: PrivateServer,
    way: str,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("ldm_vae.latents.source.cache_folder", lambda: tmp_path / "cache")
    shards, out = places(served, way), tmp_path / "out"
    out.mkdir()
    assert command("check", shards, "--decode", "--json", out / "check.json") == 1  # of the broken picture
    assert command("encode", run, shards, out / "latents", "--json", out / "encode.json") == 0
    assert command("encode", run, shards, out / "latents") == 0
    assert command("check", out / "latents", "--source", shards, "--json", out / "latents.json") == 0
    assert command("roundtrip", run, out / "latents", shards, "--json", out / "roundtrip.json") == 0
    assert command("stats", run, shards, "--write", "--json", out / "stats.json") == 0
    results = run / "results.json"
    baseline = f"pca={shards}"
    assert (
        command(
            "evaluate",
            run,
            shards,
            "--metrics",
            "psnr",
            "--crop",
            "center:16",
            "--baseline",
            baseline,
            "--json",
            results,
        )
        == 0
    )
    assert command("inspect", run, shards, "--against", shards) == 0
    assert command("report", run, "--shards", shards) == 0
    assert command("export", run, out / "export", "--shards", shards) == 0
    assert command("export", run, out / "second") == 0
    # What goes wrong has names, too.
    gone = shards.replace("/data", "/gone")
    for words in (
        ("encode", run, gone, out / "none"),
        ("evaluate", run, gone),
        ("check", gone, "--json", out / "e.json"),
    ):
        assert command(*words) in (1, 2)
    printed = capfd.readouterr()
    assert assert_none_in(tmp_path, printed.out, printed.err, caplog.text) > 30
    assert served.plain("data") in results.read_text()
    assert served.refused == 0


@pytest.mark.parametrize("way", ["password", "each file"])
def test_training_leaves_none_and_a_resumed_run_takes_a_new_one(
    served: PrivateServer, way: str, tmp_path: Path
) -> None:
    folder = tmp_path / "run"

    def train(*overrides: str) -> str:
        recipe = tmp_path / "served" / "recipe.yaml"
        recipe.write_text(TINY.format(output=folder, places=places(served, way)))
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "LDM_VAE_CACHE": str(tmp_path / "cache")}
        words = [sys.executable, "-m", "train", str(recipe), *overrides]
        done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert_none_in(tmp_path, done.stdout, done.stderr)
        return done.stdout

    if way == "password":
        assert served.plain("data") in train("--dry-run")
    train(f"data.train={places(served, way)}")
    if way != "password":
        served.signature += "-of-tomorrow"
    train("steps=3")
    assert (folder / "checkpoints" / "step_00000003").is_dir()
    assert served.plain("data") in (folder / "recipe.yaml").read_text()
    assert served.refused == 0


def test_what_reads_a_stored_recipe_asks_for_the_url_anew(
    served: PrivateServer, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = served.plain("data")
    (run / "recipe.yaml").write_text(f"data: {{train: {plain}, validation: {plain}, image: {{crop: 16}}}}\n")
    shards = tmp_path / "served" / "data"
    words = ("evaluate", run, shards, "--metrics", "psnr", "--crop", "center:16", "--baseline")
    assert command(*words, "pca") == 2
    error = capsys.readouterr().err
    assert "password or signature" in error and "--baseline pca=SHARDS" in error and error.count("\n") == 1
    assert command("report", run) == 0
    assert "password or signature" in (run / "report.html").read_text()
    assert command(*words, f"pca={served.with_password('data')}") == 0
    assert_none_in(run)


def test_training_by_a_stored_recipe_asks_for_the_url_anew(
    served: PrivateServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=r"give the URL with it: none is ever stored"):
        load_index(served.plain("data"))


def test_the_password_of_an_index_of_packages_is_sent_and_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """urllib takes the password for a port, and says so with the password in it."""
    (tmp_path / "simple").mkdir()
    (tmp_path / "simple" / "page").write_bytes(b"page")
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(urllib.request, "_opener", None)  # which keeps the proxies of whoever opened something first
    with private_server(tmp_path) as server:
        plain = keep_aside(server.with_password("simple"))
        with open_url(f"{plain}/page") as response:
            assert response.read() == b"page" and response.url == server.plain("simple/page")
        with caplog.at_level(logging.INFO), pytest.raises(UnreachableHost) as missing:
            download_file(f"{plain}/none", "0" * 8, tmp_path / "file")
        assert_none_in(tmp_path, str(missing.value), caplog.text)
        assert server.refused == 0


def test_files_of_earlier_versions_lose_theirs_where_they_are_shown_or_uploaded(
    served: PrivateServer, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """0.1.0 stored what it was given: the card of an export, and a report, hold none of it."""
    url = served.signed("data")
    shards = tmp_path / "served" / "data"
    assert command("stats", run, shards, "--write") == 0
    assert command("evaluate", run, shards, "--metrics", "psnr", "--json", run / "results.json") == 0
    for name in ("latent_statistics.json", "results.json"):
        text = (run / name).read_text()
        assert str(shards) in text
        (run / name).write_text(text.replace(str(shards), url))
    (run / "recipe.yaml").write_text(f'data: {{train: "{served.with_password("data")}", image: {{crop: 16}}}}\n')
    assert command("export", run, tmp_path / "export") == 0
    assert command("report", run, "--shards", shards) == 0
    shutil.copy(run / "report.html", tmp_path / "export")
    assert_none_in(tmp_path / "export")
    assert served.plain("data") in (tmp_path / "export" / "README.md").read_text()
    assert PASSWORD not in capsys.readouterr().out
