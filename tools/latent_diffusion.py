"""Worked example: trains a small class-conditional DiT on stored latents, saves it as a DiTPipeline, and samples it.

    python -m tools.latent_diffusion runs/demo/export runs/demo/latents/train runs/demo/diffusion --classes picture

docs/latent_diffusion.md explains it.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from diffusers import AutoencoderKL, DiTPipeline
from einops import rearrange
from torch import Tensor
from torchvision.utils import make_grid
from tqdm import tqdm

from ldm_vae.atomic import atomic_file, atomic_folder, require_writable_folder
from ldm_vae.codec import LatentCodec, to_pil
from ldm_vae.errors import UserError
from ldm_vae.interop.pipelines import fit_scale
from ldm_vae.latents.dataset import LatentDataset
from ldm_vae.noise import rng
from ldm_vae.recipe import validate
from tools.command import run_command
from tools.denoiser import (
    NO_LABEL,
    DenoiserConfig,
    Depth,
    LearningRate,
    StepCount,
    Width,
    build_denoiser,
    flow_scheduler,
    train_denoiser,
)

CLASSES_ON_SHEET = 8  # at most
PIPELINE = (  # what diffusers saves
    *("model_index.json", "scheduler/scheduler_config.json"),
    *(f"{part}/{name}" for part in ("transformer", "vae") for name in ("config.json", "diffusion_pytorch_model*")),
)


def latent_diffusion(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Diffusers folder: `ldm-vae export --target dit`.")],
    latents: Annotated[Path, typer.Argument(metavar="LATENTS", help="Folder that `ldm-vae encode` wrote with it.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for pipeline/, samples.png and losses.json.")],
    classes: Annotated[
        Literal["cls", "picture", "none"], typer.Option(help="The label stored with a sample, its key, or no class.")
    ] = "cls",
    side: Annotated[
        int, typer.Option(min=1, help="Side of the crops of latents to train on; a crop shows f times as many pixels.")
    ] = 24,
    tokens: Annotated[int, typer.Option(min=1, help="Patches along the side.")] = 12,
    width: Width = 128,
    depth: Depth = 6,
    steps: StepCount = 800,
    batch: Annotated[int, typer.Option(min=1, help="Crops per step.")] = 16,
    lr: LearningRate = 1.0e-3,
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance; 1 is none.")] = 1.5,
    per_class: Annotated[int, typer.Option(min=1, help="Samples of each class on the sheet.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all random choices.")] = 0,
) -> None:
    """Train a small latent diffusion model on stored latents and sample it through diffusers' DiTPipeline."""
    require_writable_folder(out / "pipeline", PIPELINE)
    options = dict(width=width, depth=depth, tokens=tokens, steps=steps, batch=batch, lr=lr, seed=seed)
    config = validate(DenoiserConfig, options, "options")
    codec = LatentCodec.load(model, device="cpu")
    if codec.source.kind != "diffusers" or codec.scale is None:
        raise UserError(f"{model} is no diffusers folder", "write one: `ldm-vae export RUN FOLDER --target dit`")
    # The pipeline only knows the codec's scaling_factor, so the latents are scaled by that alone.
    scale = fit_scale("dit", codec.scale, codec.model.config)
    dataset = LatentDataset(latents, codec=codec, scale=scale, seed=seed)
    labels, names = read_classes(dataset, classes)
    denoiser = build_denoiser(config, codec.latent_channels, side)
    denoiser.to("cuda" if torch.cuda.is_available() else "cpu")
    with tqdm(total=steps, unit="step", disable=not sys.stderr.isatty()) as bar:
        losses = train_denoiser(denoiser, crops(dataset, labels, side, batch, seed), config, lambda loss: bar.update())

    vae: Any = AutoencoderKL
    pipe: Any = DiTPipeline(denoiser, vae.from_pretrained(model), flow_scheduler())
    pipe.register_to_config(id2label=dict(enumerate(names)))
    with atomic_folder(out / "pipeline", ours=PIPELINE) as stage:
        pipe.save_pretrained(stage)
    shown = list(range(min(len(names), CLASSES_ON_SHEET))) or [NO_LABEL]
    with atomic_file(out / "samples.png") as stage:
        sheet(out / "pipeline", codec, dataset, labels, shown, per_class, guidance, seed).save(stage)
    with atomic_file(out / "losses.json") as stage:
        stage.write_text(json.dumps({"config": config.model_dump(), "losses": losses}, indent=1) + "\n")
    tenth = max(1, steps // 10)
    first, last = (sum(part) / tenth for part in (losses[:tenth], losses[-tenth:]))
    print(f"loss {first:.3f} over the first tenth of the steps, {last:.3f} over the last; {out / 'samples.png'}")


def read_classes(dataset: LatentDataset, classes: str) -> tuple[list[int], list[str]]:
    """Labels of all samples, and names of all classes."""
    if classes == "none":
        return [NO_LABEL] * len(dataset), []
    if classes == "picture":
        labels, names = list(range(len(dataset))), [dataset.key(i) for i in range(len(dataset))]
    else:
        stored = [dataset.fields(i).get("cls") for i in range(len(dataset))]
        if None in stored:
            what = f"sample {dataset.key(stored.index(None))} has no cls"
            raise UserError(what, "give --classes picture, or --classes none")
        labels = [int(label or 0) for label in stored]
        names = [str(label) for label in range(max(labels) + 1)]
    if min(labels) < 0 or max(labels) >= NO_LABEL:
        raise UserError(f"classes {min(labels)} to {max(labels)}", f"DiTPipeline knows 0 to {NO_LABEL - 1}")
    return labels, names


def crops(
    dataset: LatentDataset, labels: Sequence[int], side: int, batch: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches: (B, c, side, side) from random places of random samples, and their labels."""
    for step in itertools.count():
        dataset.set_epoch(step)  # another sample of each posterior, another choice of mirroring
        generator = rng(seed, "crops", step)
        items = generator.integers(len(dataset), size=batch).tolist()
        yield (
            torch.stack([crop(dataset, i, side, *generator.random(2)) for i in items]),
            torch.tensor([labels[i] for i in items]),
        )


def crop(dataset: LatentDataset, item: int, side: int, down: float, right: float) -> Tensor:
    """A crop (c, side, side) of the latent of a sample.

    down, right: its place, in [0, 1).
    """
    latent: Tensor = dataset[item]["latent"]
    rows, columns = latent.shape[1] - side + 1, latent.shape[2] - side + 1
    if min(rows, columns) < 1:
        size = f"{latent.shape[1]} x {latent.shape[2]}"
        raise UserError(f"the latent of {dataset.key(item)} is {size}, smaller than {side}", "give a smaller --side")
    top, left = int(down * rows), int(right * columns)
    return latent[:, top : top + side, left : left + side]


def sheet(
    pipeline: Path,
    codec: LatentCodec,
    dataset: LatentDataset,
    labels: Sequence[int],
    shown: Sequence[int],
    per_class: int,
    guidance: float,
    seed: int,
) -> Any:
    """A sheet with a row for each class: one decoded crop of its data, then samples of the pipeline, read from disk."""
    dit: Any = DiTPipeline
    pipe = dit.from_pretrained(pipeline)
    pipe.to("cuda" if torch.cuda.is_available() else "cpu")
    pipe.set_progress_bar_config(disable=True)
    rows = []
    for label in shown:
        data = crop(dataset, labels.index(label), pipe.transformer.config.sample_size, 0.5, 0.5)
        samples = pipe(
            class_labels=[label] * per_class,
            guidance_scale=guidance,
            num_inference_steps=25,
            generator=torch.Generator().manual_seed(seed),
            output_type="np",  # in [0, 1]; the one form besides PIL that each version of diffusers gives
        ).images
        pictures = rearrange(torch.from_numpy(samples), "b h w c -> b c h w") * 2 - 1
        rows += [codec.decode(data[None]).clamp(-1, 1), pictures]
    return to_pil(make_grid(torch.cat(rows), nrow=1 + per_class, pad_value=1.0)[None])[0]


if __name__ == "__main__":
    run_command(latent_diffusion)
