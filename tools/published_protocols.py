"""Compares `--protocol` with the scripts of the projects themselves, on the same pictures and the same codec.

    python -m tools.published_protocols MODEL SHARDS --vavae LightningDiT --seed SEED-Voken --titok 1d-tokenizer

Each option names a checkout of that project. The posterior's mode is decoded on both sides, since noise differs.
Without --inception its network has random weights: the distances are then no quality, but must agree all the same.
"""

from __future__ import annotations

import hashlib
import json as json_format
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Annotated
from unittest.mock import patch

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch_fidelity import feature_extractor_inceptionv3 as torch_fidelity

from ldm_vae.choices import PublishedProtocol
from ldm_vae.codec import LatentCodec
from ldm_vae.data.images.decode import decode_image, encode_image
from ldm_vae.data.images.fit import ImageConfig, fit_image
from ldm_vae.data.shards.index import load_index
from ldm_vae.data.stream.batch import Batch
from ldm_vae.data.stream.reader import measured_batches
from ldm_vae.evaluation.evaluate import Metrics, evaluate_batches
from ldm_vae.evaluation.protocols import published_protocol
from ldm_vae.pretrained import inception as inception_module
from tools.command import run_command

# What each script prints, and what we call it.
NUMBERS: dict[PublishedProtocol, dict[str, str]] = {
    "vavae": {"PSNR": "psnr", "SSIM": "ssim_signed", "LPIPS": "lpips_vgg", "rFID": "rfid_pytorch"},
    "seed": {
        "PSNR": "psnr",
        "SSIM": "ssim_uniform",
        "LPIPS_VGG": "lpips_vgg",
        "LPIPS_ALEX": "lpips_alex",
        "FID": "rfid_pytorch",
    },
    "titok": {"rFID": "rfid"},
}


def compare(
    model: Annotated[str, typer.Argument(help="A run, checkpoint or exported folder of a KL codec.")],
    shards: Annotated[str, typer.Argument(help="Pictures.")],
    vavae: Annotated[Path | None, typer.Option(help="Checkout of hustvl/LightningDiT.")] = None,
    seed: Annotated[Path | None, typer.Option(help="Checkout of TencentARC/SEED-Voken.")] = None,
    titok: Annotated[Path | None, typer.Option(help="Checkout of bytedance/1d-tokenizer.")] = None,
    inception: Annotated[Path | None, typer.Option(help="Weights of Inception; without it, random ones.")] = None,
    images: Annotated[int, typer.Option(min=2, help="How many pictures; a multiple of the batch.")] = 24,
    batch: Annotated[int, typer.Option(min=1, help="Images in a batch of the scripts.")] = 4,
) -> None:
    """Prints the numbers of each script beside those of our protocol of its name."""
    codec = LatentCodec.load(model)
    table = Table("protocol", "metric", "their script", "--protocol", "difference")
    checkouts: dict[PublishedProtocol, Path | None] = {"vavae": vavae, "seed": seed, "titok": titok}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        weights = inception or _random_inception(Path(folder) / "inception.pth")
        if inception is None:
            digest = hashlib.sha256(weights.read_bytes()).hexdigest()
            stack.enter_context(patch.object(inception_module, "WEIGHTS_SHA256", digest))
        codec.as_diffusers().save_pretrained(Path(folder) / "model")
        pictures = _pictures(shards, images, Path(folder) / "pictures" / "all")
        for name, checkout in checkouts.items():
            if checkout is None:
                continue
            arguments = (name, checkout.resolve(), f"{folder}/model", f"{folder}/pictures", weights, batch)
            script = Path(__file__).with_name("published_scripts.py")
            done = subprocess.run(
                [sys.executable, str(script), *map(str, arguments)], capture_output=True, text=True, cwd=folder
            )
            if done.returncode:
                sys.exit(done.stderr)
            theirs = json_format.loads(done.stdout.splitlines()[-1])
            ours = _ours(codec, name, pictures, weights)
            for printed, metric in NUMBERS[name].items():
                their, our = theirs[printed], ours[metric]
                assert our is not None, metric
                table.add_row(name, metric, f"{their:.6f}", f"{our:.6f}", f"{our - their:+.1e}")
    Console(width=100).print(table)


def _random_inception(file: Path) -> Path:
    """Weights whose features are far from 0, saved as the published file is."""
    with (
        patch.object(torch_fidelity, "load_state_dict_from_url", lambda *_, **__: {}),
        patch.object(torch_fidelity.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None),
    ):
        torch.manual_seed(0)
        state = torch_fidelity.FeatureExtractorInceptionV3("random", ["2048"]).state_dict()
    for name in state:
        if name.endswith("bn.weight"):
            state[name] *= 6**0.5  # PyTorch's initialisation loses that much a layer
    torch.save(state, file)
    return file


def _pictures(shards: str, count: int, folder: Path) -> list[Path]:
    """The first pictures of the shards as PNG files: what every script reads alike."""
    folder.mkdir(parents=True)
    index = load_index(shards)
    found = []
    stream = measured_batches(index, shards, ImageConfig(), batch=1, device=torch.device("cpu"), rank=0, world=1)
    for number, one in enumerate(islice(stream, count)):
        found.append(folder / f"{number:05d}.png")
        found[-1].write_bytes(encode_image(one.image[0].numpy(), "png"))
    return found


def _ours(codec: LatentCodec, name: PublishedProtocol, pictures: list[Path], weights: Path) -> dict[str, float | None]:
    protocol = published_protocol(name).model_copy(update={"latent": "mode"})
    metrics = Metrics(protocol, codec.device, inception_file=weights)
    batches = (
        Batch(
            torch.from_numpy(fit_image(decode_image(path.read_bytes(), "png", 3), protocol.image, None))[None],
            None,
            [path.stem],
            torch.zeros(1),
        )
        for path in pictures
    )
    return evaluate_batches(codec, batches, protocol, metrics=metrics).metrics


if __name__ == "__main__":
    run_command(compare)
