"""A small diffusion transformer of diffusers, trained by flow matching, for the probe and the worked example.

The network learns the velocity noise - latent at (1 - t) latent + t noise, for t uniform in [0, 1] (Lipman et al. 2023,
arXiv:2210.02747; Liu et al. 2023, arXiv:2209.03003). If the latents are white noise of unit variance, no network has a
loss below pi / 2, and a network that answers 0 has a loss of 2. So a loss below pi / 2 shows that structure was learnt.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import torch
import typer
from diffusers import DiTTransformer2DModel, DPMSolverMultistepScheduler
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from ldm_vae.errors import UserError
from ldm_vae.noise import rng
from ldm_vae.recipe import Config
from ldm_vae.schedules import warmup_decay

NO_LABEL = 1000  # the label for no class; DiTPipeline always guides away from it
HEAD_CHANNELS = 32  # channels of an attention head
TIMESTEPS = 1000  # the timestep of diffusers is t times this


# Options of both commands; their defaults differ.
Width = Annotated[int, typer.Option(help="Channels of a token, a multiple of 32.")]
Depth = Annotated[int, typer.Option(min=1, help="Transformer blocks.")]
StepCount = Annotated[int, typer.Option(min=1, help="Optimizer steps.")]
LearningRate = Annotated[float, typer.Option(help="Learning rate of AdamW.")]


class DenoiserConfig(Config):
    """The transformer and its training."""

    width: Annotated[int, Field(gt=0, multiple_of=HEAD_CHANNELS)] = 128
    """Channels of a token."""

    depth: PositiveInt = 6
    """Transformer blocks."""

    tokens: PositiveInt = 8
    """Tokens along each side of a latent; patches are as large as that makes them."""

    steps: PositiveInt
    """Optimizer steps."""

    batch: PositiveInt = 32
    """Latents per step."""

    lr: Annotated[float, Field(gt=0)] = 1.0e-3
    """Learning rate of AdamW; it rises over a twentieth of the steps and falls to 0 by a cosine."""

    label_dropout: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of latents whose class is withheld."""

    seed: int = 0
    """Seed of the first weights, the noise and the times."""


def build_denoiser(config: DenoiserConfig, channels: int, side: int) -> Any:
    """A DiTTransformer2DModel for latents (B, channels, side, side). Raises UserError where patches do not fit.

    The work between the first and the last layer is the same for every codec with equal `tokens`: only the side of a
    patch differs.
    """
    if side % config.tokens:
        raise UserError(
            f"latents of side {side} are not divisible into {config.tokens} patches", "change the size or the tokens"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model: Any = DiTTransformer2DModel(
            in_channels=channels,
            out_channels=channels,
            sample_size=side,
            patch_size=side // config.tokens,
            num_layers=config.depth,
            num_attention_heads=config.width // HEAD_CHANNELS,
            attention_head_dim=HEAD_CHANNELS,
            num_embeds_ada_norm=NO_LABEL,
        )
    # As in DiT (arXiv:2212.09748); diffusers does not do it: blocks start as the identity, the velocity starts as 0.
    for layer in (*(block.norm1.linear for block in model.transformer_blocks), model.proj_out_1, model.proj_out_2):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    # In training mode diffusers withholds a label from each block separately; train_denoiser withholds it from all
    # blocks.
    return model.eval()


def train_denoiser(
    model: Any,
    batches: Iterable[tuple[Tensor, Tensor]],
    config: DenoiserConfig,
    done: Callable[[float], object] = lambda loss: None,
) -> list[float]:
    """Trains `model` in place, on its device, and returns the loss of each step: mean squared error per element.

    batches: at least `config.steps` pairs of scaled latents (B, c, s, s) and labels (B,), int64.
    done(loss): called after each step.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=0.0)
    losses: list[float] = []
    for step, (latents, labels) in enumerate(itertools.islice(batches, config.steps)):
        generator = rng(config.seed, "denoiser", step)
        noise = torch.from_numpy(generator.standard_normal(tuple(latents.shape), dtype="float32"))
        time = torch.from_numpy(generator.random(len(latents), dtype="float32"))
        withheld = torch.from_numpy(generator.random(len(latents)) < config.label_dropout)
        at = time.view(-1, 1, 1, 1)
        noisy, velocity = (1 - at) * latents + at * noise, noise - latents
        for group in optimizer.param_groups:
            group["lr"] = config.lr * warmup_decay(
                step, warmup=config.steps // 20, decay="cosine", final=0.0, steps=config.steps
            )
        predicted = model(
            noisy.to(model.device),
            timestep=TIMESTEPS * time.to(model.device),
            class_labels=labels.masked_fill(withheld, NO_LABEL).to(model.device),
        ).sample
        loss = (predicted - velocity.to(model.device)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        done(losses[-1])
    return losses


def flow_scheduler() -> Any:
    """The sampler for models of this training, for any pipeline that takes a scheduler."""
    return DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0)


@torch.no_grad()
def sample_latents(model: Any, noise: Tensor, labels: Tensor, steps: int) -> Tensor:
    """Scaled latents (B, c, s, s), sampled without guidance.

    noise: (B, c, s, s).
    labels: (B,).
    steps: evaluations of the network.
    """
    latents, labels = noise.to(model.device), labels.to(model.device)
    scheduler = flow_scheduler()
    scheduler.set_timesteps(steps, device=model.device)
    for time in scheduler.timesteps:
        velocity = model(latents, timestep=time.expand(len(labels)), class_labels=labels).sample
        latents = scheduler.step(velocity, time, latents).prev_sample
    return latents
