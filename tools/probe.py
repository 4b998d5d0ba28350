"""Learnability probe: reconstruction and generation under the same small budget, one row for each codec.

    python -m tools.probe runs/a runs/b SHARDS --size 64 --images 800 --steps 600 --json probe.json

A codec that reconstructs well does not always have latents that a diffusion model learns well (Yao et al. 2025,
arXiv:2501.01423). So one table shows both: PSNR, LPIPS and the Fréchet distance of reconstructions, and the Fréchet
distance of samples, all against the same images. Every codec gets the same transformer, patches per image, steps and
seeds. Latents are samples of the posterior, standardised channel by channel, so that no codec is worse for its scale.
"""

from __future__ import annotations

import json as json_format
import sys
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor
from tqdm import tqdm

from ldm_vae.atomic import atomic_file
from ldm_vae.cli.options import Json
from ldm_vae.codec import LatentCodec
from ldm_vae.data.images.fit import ImageConfig
from ldm_vae.data.images.pixels import to_uint8
from ldm_vae.data.shards.index import load_index
from ldm_vae.data.stream.reader import measured_batches
from ldm_vae.errors import UserError
from ldm_vae.metrics.pair import PairNetwork
from ldm_vae.passwords import without_secrets
from ldm_vae.recipe import validate
from tools.command import run_command
from tools.denoiser import DenoiserConfig, Depth, LearningRate, StepCount, Width, build_denoiser
from tools.learnability import AT_ONCE, learn, reconstruct

DIGITS = {"psnr": 2, "lpips_vgg": 3, "frechet_vgg16": 1}  # decimal places in the table


def probe(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Runs, exported folders or Hub ids.")],
    shards: Annotated[str, typer.Argument(metavar="SHARDS", help="Image shards; their first images are used.")],
    size: Annotated[
        int, typer.Option(min=1, help="Pixels: the short side is resized to it, and a square is cut from the middle.")
    ] = 64,
    images: Annotated[
        int, typer.Option(min=2, help="Images to train on and to compare with; as many are sampled.")
    ] = 800,
    tokens: Annotated[int, typer.Option(min=1, help="Patches along the side of a latent, for every codec.")] = 8,
    width: Width = 128,
    depth: Depth = 4,
    steps: StepCount = 600,
    batch: Annotated[int, typer.Option(min=1, help="Latents per step.")] = 32,
    lr: LearningRate = 1.0e-3,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each codec.")] = 2,
    sampling_steps: Annotated[int, typer.Option(min=2, help="Evaluations of the network per sample.")] = 25,
    json: Json = None,
) -> None:
    """Train the same small diffusion transformer on the latents of each codec, and score its samples."""
    options = dict(width=width, depth=depth, tokens=tokens, steps=steps, batch=batch, lr=lr, label_dropout=0.0)
    configs = [validate(DenoiserConfig, options | {"seed": seed}, "options") for seed in range(seeds)]
    codecs = {name: LatentCodec.load(name) for name in models}
    for name, codec in codecs.items():  # before the minutes of work
        check_codec(name, codec, size, configs[0])
    pictures = read_images(shards, size, images)
    network = PairNetwork("vgg", next(iter(codecs.values())).device)
    rows = []
    for name, codec in codecs.items():
        reconstruction = reconstruct(codec, pictures, network)
        with tqdm(total=seeds * steps, unit="step", desc=name, disable=not sys.stderr.isatty(), leave=False) as bar:
            trainings = [
                learn(
                    codec,
                    reconstruction,
                    network,
                    config,
                    sampling_steps=sampling_steps,
                    done=lambda loss: bar.update(),
                )
                for config in configs
            ]
        numbers = {key: getattr(reconstruction, key) for key in DIGITS}
        about = {"factor": codec.factor, "latent_channels": codec.latent_channels, "weights": codec.weights_hash}
        rows.append({"name": name, **about, "metrics": numbers, "samples": trainings})
    protocol = {
        "shards": without_secrets(shards),
        "images": f"the first {images}, short side {size} (bicubic, antialias), center {size}, 8 bits",
        "latents": "drawn from the posterior, standardised channel by channel over these images; no classes",
        "denoiser": ", ".join(f"{key} {value}" for key, value in configs[0].model_dump(exclude={"seed"}).items()),
        "training": "flow matching, AdamW, cosine decay; loss: mean over the last tenth of the steps",
        "samples": f"{images}, DPM-Solver++ of order 2, {sampling_steps} steps",
        "frechet": "VGG16 of LPIPS, relu5_3 averaged over positions, against the same images; no FID",
        "feature_weights": network.weights,
        "torch": torch.__version__,
    }
    print_table(rows, protocol)
    if json is not None:
        with atomic_file(json) as stage:
            stage.write_text(json_format.dumps({"protocol": protocol, "codecs": rows}, indent=1) + "\n")


def check_codec(name: str, codec: LatentCodec, size: int, config: DenoiserConfig) -> None:
    """Raises UserError for a codec that cannot be probed at this size."""
    if codec.model.config.in_channels != 3 or codec.model.config.out_channels != 3:
        raise UserError(f"{name} is for images of {codec.model.config.in_channels} channels", "the features need 3")
    if size % codec.factor:
        raise UserError(f"--size {size} is not divisible by {codec.factor}, the factor of {name}", "choose a multiple")
    build_denoiser(config, codec.latent_channels, size // codec.factor)


def read_images(shards: str, size: int, count: int) -> Tensor:
    """The first `count` images: (N, 3, size, size), uint8. Raises UserError where there are fewer."""
    index = load_index(shards)
    image = ImageConfig(resize=size, crop=size, crop_mode="center")
    stream = measured_batches(index, shards, image, batch=AT_ONCE, device=torch.device("cpu"), rank=0, world=1)
    images: list[Tensor] = []
    for pictures in stream:
        images += to_uint8(pictures.image)
        if len(images) >= count:
            return torch.stack(images[:count])
    broken = f" and {len(stream.faults)} broken ones" if stream.faults else ""
    raise UserError(
        f"{shards} holds {len(images)} images{broken}, not {count}", "give more shards, or a lower --images"
    )


def print_table(rows: list[dict[str, Any]], protocol: dict[str, Any]) -> None:
    """Prints the table and its protocol."""
    table = Table("codec", "f, c", "PSNR, dB", "LPIPS VGG", "Fréchet, reconstructions", "Fréchet, samples", "loss")
    for row in rows:
        numbers = [f"{row['metrics'][key]:.{places}f}" for key, places in DIGITS.items()]
        distances = [one["frechet_vgg16"] for one in row["samples"]]
        losses = [f"{one['loss']:.3f}" for one in row["samples"]]
        table.add_row(
            row["name"],
            f"{row['factor']}, {row['latent_channels']}",
            *numbers,
            ", ".join("-" if value is None else f"{value:.1f}" for value in distances),
            ", ".join(losses),
        )
    console = Console(width=120)
    console.print(table)
    print("samples and loss: one number for each seed; white noise has a loss of pi / 2")
    for name, value in protocol.items():
        print(f"{name}: {value}")
    for row in rows:
        print(f"{row['name']}: weights {row['weights'][:12]}, {row['samples'][0]['parameters']:,} parameters learn it")


if __name__ == "__main__":
    run_command(probe)
