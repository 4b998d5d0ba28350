"""Codecs to the Hugging Face Hub and back, with huggingface_hub itself against a server on this machine.

The real Hub is out of reach of these tests: its rights, its limits, and Xet remain to be seen.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

from ldm_vae import LatentCodec
from ldm_vae.errors import UserError
from ldm_vae.interop.diffusers import write_folder
from ldm_vae.interop.load import load_model
from ldm_vae.interop.native import NATIVE_WEIGHTS, native_config
from tests.interop.hub_server import COMMIT, HubServer
from tests.kl import autoencoder_in

TOKEN = "hf_the_right_one"
LOAD = """
import sys, torch
from ldm_vae import LatentCodec
for name in sys.argv[1:]:
    codec = LatentCodec.load(name, device="cpu")
    print(codec.weights_hash, codec.scale)
"""
PUSH = """
import sys
from ldm_vae import LatentCodec
for _ in range(2):  # the second time into a model that exists
    print(LatentCodec.load(sys.argv[1], device="cpu").push_to_hub("team/codec", private=True, token=sys.argv[2]))
"""
REFUSED = """
import os, sys
from ldm_vae.cli.app import main
model, *rest = sys.argv[1:]
for token, hub_id, out in zip(*[iter(rest)] * 3):
    os.environ["HF_TOKEN"] = token
    try:
        main(["export", model, out, "--push", hub_id])
    except SystemExit as stop:
        assert stop.code == 2, stop.code
"""


@pytest.fixture
def serve() -> Iterator[Callable[..., HubServer]]:
    servers: list[HubServer] = []

    def start(*, lfs: bool = False) -> HubServer:
        servers.append(HubServer(TOKEN, lfs=lfs))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def python(home: Path, url: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """A process of its own: the library reads its settings once. It sees no account of the person who tests."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    kept |= {"HF_HOME": str(home), "HF_ENDPOINT": url, "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=kept | environment, capture_output=True, text=True, timeout=120)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_command_uploads_the_export_as_it_is(
    vae: AutoencoderKL, serve: Callable[..., HubServer], tmp_path: Path
) -> None:
    vae.save_pretrained(tmp_path / "vae")
    server = serve(lfs=True)
    arguments = ("export", tmp_path / "vae", tmp_path / "out", "--licence", "cc0-1.0", "--push", "team/codec")
    done = python(tmp_path / "home", server.url, "-m", "ldm_vae", *arguments, HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    assert f"{server.url}/team/codec/commit/{COMMIT}" in done.stdout
    received = server.models["team/codec"]
    assert {"config.json", "diffusion_pytorch_model.safetensors", "README.md"} <= set(received)
    assert received == contents(tmp_path / "out")
    assert b"license: cc0-1.0" in received["README.md"]
    assert not any(TOKEN.encode() in content for content in received.values())
    assert list(server.large.values()) == [received["diffusion_pytorch_model.safetensors"]]  # the LFS path was taken
    assert server.visibility["team/codec"] is None  # what the account does


def test_codec_uploads_itself_and_comes_back(
    vae: AutoencoderKL, serve: Callable[..., HubServer], tmp_path: Path
) -> None:
    vae.save_pretrained(tmp_path / "vae")
    (tmp_path / "vae" / "results.json").write_text('{"metrics": {"psnr": 99.0}, "protocol": {"weights_sha256": "0"}}')
    server, home = serve(), tmp_path / "home"
    done = python(home, server.url, "-c", PUSH, tmp_path / "vae", TOKEN)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("is about other weights and not in the card: evaluate again") == 2
    assert b"psnr" not in server.models["team/codec"]["README.md"]
    assert done.stdout.splitlines() == [f"{server.url}/team/codec/commit/{COMMIT}"] * 2
    assert server.visibility["team/codec"] == "private"
    assert b"codec.push_to_hub('team/codec')" in server.models["team/codec"]["README.md"]
    server.models["team/pipeline"] = {
        "model_index.json": b"{}",
        **{f"vae/{name}": content for name, content in contents(tmp_path / "vae").items()},
    }
    done = python(home, server.url, "-c", LOAD, "team/codec", "team/pipeline")
    assert done.returncode == 0, done.stderr
    expected = LatentCodec.load(vae)
    assert done.stdout.splitlines() == [f"{expected.weights_hash} {expected.scale}"] * 2
    got = [request for request in server.seen if request.startswith("GET") and "/resolve/" in request]
    got.remove("GET /team/codec/resolve/main/README.md")  # by the second upload
    assert len(got) == 4  # of each config.json and the weights, no card
    # And from the cache alone.
    again = python(home, server.url, "-c", LOAD, "team/codec", "team/pipeline", HF_HUB_OFFLINE="1")
    assert again.stdout == done.stdout, again.stderr


def test_what_a_person_wrote_on_the_hub_stays(
    vae: AutoencoderKL, serve: Callable[..., HubServer], tmp_path: Path
) -> None:
    vae.save_pretrained(tmp_path / "vae")
    server = serve()
    arguments = ("-m", "ldm_vae", "export", tmp_path / "vae", tmp_path / "out", "--push", "team/codec")
    model = server.models["team/codec"] = {"README.md": b"---\ndatasets:\n- ours\n---\n\n# Our codec\n", "a.png": b"us"}
    done = python(tmp_path / "home", server.url, *arguments, HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    assert model["a.png"] == b"us"
    first = model["README.md"]
    assert first.startswith(b"---\ndatasets:\n- ours\nlibrary_name: diffusers\n") and first.endswith(b"\n# Our codec\n")
    done = python(tmp_path / "home", server.url, *arguments, "--licence", "mit", HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    assert model["README.md"].endswith(b"\n# Our codec\n") and model["README.md"].count(b"## Numbers") == 1
    assert b"\nlicense: mit\n" in model["README.md"]
    # Where a person wrote into both cards, nobody can know which holds.
    card = tmp_path / "out" / "README.md"
    card.write_text(card.read_text() + "\nSee our paper.\n")
    before = dict(model)
    done = python(tmp_path / "home", server.url, *arguments, HF_TOKEN=TOKEN)
    assert done.returncode == 2
    assert "a person wrote into both model cards" in done.stderr
    assert model == before and card.read_text().endswith("\nSee our paper.\n")


def test_folder_of_our_own_is_loaded_and_another_model_is_refused(
    vae: AutoencoderKL, serve: Callable[..., HubServer], tmp_path: Path
) -> None:
    codec, server = LatentCodec.load(vae), serve()
    assert codec.scale is not None
    config = native_config(codec.model.config, codec.scale, sample_size=32, force_upcast=False)
    write_folder(tmp_path / "own", config, codec.model.exported_state(), {}, weights=NATIVE_WEIGHTS)
    server.models["team/own"] = contents(tmp_path / "own")
    server.models["team/text"] = {"config.json": b"{}"}
    done = python(tmp_path / "home", server.url, "-c", LOAD, "team/own")
    assert done.stdout.strip() == f"{codec.weights_hash} {codec.scale}", done.stderr
    done = python(tmp_path / "home", server.url, "-m", "ldm_vae", "export", "team/text", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("ldm-vae: team/text holds no codec: give one that was exported")


def test_refusal_is_one_line_and_the_export_is_whole(
    vae: AutoencoderKL, serve: Callable[..., HubServer], tmp_path: Path
) -> None:
    vae.save_pretrained(tmp_path / "vae")
    server = serve()
    outs = [tmp_path / name for name in ("token", "id", "network")]
    cases = [(server.url, [("hf_a_wrong_one", "team/codec", outs[0]), (TOKEN, "no//id", outs[1])])]
    cases.append(("http://127.0.0.1:9", [(TOKEN, "team/codec", outs[2])]))  # where nobody listens
    for url, calls in cases:
        arguments = [argument for call in calls for argument in call]
        done = python(tmp_path / "home", url, "-c", REFUSED, tmp_path / "vae", *arguments)
        assert done.returncode == 0, done.stderr
        errors = done.stderr.strip().splitlines()
        assert len(errors) == len(calls), done.stderr
        for error, (token, hub_id, _) in zip(errors, calls, strict=True):
            assert error.startswith(f"ldm-vae: {hub_id} could not be uploaded (")
            assert token not in error
    assert not server.models
    for out in outs:
        exported = autoencoder_in(load_model(out).model)
        assert torch.equal(exported.encoder.conv_in.weight, vae.encoder.conv_in.weight)


def test_half_precision_and_unmeasured_latents_are_not_uploaded(vae: AutoencoderKL) -> None:
    with pytest.raises(UserError, match="float32"):
        LatentCodec.load(vae, dtype=torch.bfloat16).push_to_hub("team/codec")
    codec = LatentCodec.load(vae)
    codec.scale = None
    with pytest.raises(UserError, match="nobody has measured"):
        codec.push_to_hub("team/codec")
