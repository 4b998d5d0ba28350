"""Which parts of a codec's configuration diffusers' pipelines read, and which they silently ignore.

Source: diffusers 0.42, pipelines/{stable_diffusion, stable_diffusion_xl, stable_diffusion_3, flux, dit}. Each one runs
with an export in tests/interop/test_pipelines.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ldm_vae.bottlenecks.scale import LatentScale
from ldm_vae.choices import ScaleKind, Target
from ldm_vae.errors import UserError
from ldm_vae.networks.network import NetworkConfig

PICTURES = (1, 3)  # channels that pipelines turn into pictures


@dataclass(frozen=True)
class Pipeline:
    """A pipeline of diffusers.

    name: name of its class.
    scale: the richest kind of scale that it applies in full.
    natural: the kind that its siblings apply in full, too: those of image to image and of inpainting.
    latent_channels: latent channels of the published denoisers for it.
    statistics: number of channels for which it applies latents_mean and latents_std; 0: it never does.
    upcasts: whether it decodes in float32 where force_upcast is set.
    """

    name: str
    scale: ScaleKind
    natural: ScaleKind
    latent_channels: int
    statistics: int = 0
    upcasts: bool = False


PIPELINES: dict[Target, Pipeline] = {
    "sd": Pipeline("StableDiffusionPipeline", "factor", "factor", 4),
    "sdxl": Pipeline("StableDiffusionXLPipeline", "factor", "factor", 4, statistics=4, upcasts=True),
    "sd3": Pipeline("StableDiffusion3Pipeline", "shift", "factor", 16),
    "flux": Pipeline("FluxPipeline", "shift", "shift", 16),
    "dit": Pipeline("DiTPipeline", "factor", "factor", 4),
}


def natural_scale(target: Target | None) -> ScaleKind:
    """The kind of scale that a pipeline and its siblings apply. Without a target it is `factor`, which all apply."""
    return "factor" if target is None else PIPELINES[target].natural


def fit_scale(target: Target, scale: LatentScale, config: NetworkConfig) -> LatentScale:
    """The scale in the form that the pipeline needs. Raises UserError for a codec that it could not use correctly."""
    pipeline = PIPELINES[target]
    if config.out_channels not in PICTURES or config.in_channels != config.out_channels:
        raise UserError(f"a codec of {config.out_channels} image channels", f"{pipeline.name} makes pictures of 1 or 3")
    if scale.mean is not None and pipeline.statistics != config.latent_channels:
        which = f"only for {pipeline.statistics} channels" if pipeline.statistics else "not at all"
        raise UserError(
            f"{pipeline.name} applies statistics per channel {which}", f"export with --scale {pipeline.scale}"
        )
    if pipeline.scale == "shift":
        # Without a number here these pipelines add None.
        return replace(scale, shift=scale.shift or 0.0)
    if scale.shift:
        raise UserError(f"{pipeline.name} passes over the shift of the latents", "export with --scale factor")
    return scale


def remarks(target: Target, scale: LatentScale, config: NetworkConfig, *, force_upcast: bool) -> list[str]:
    """What the user should know about the codec in this pipeline and its siblings, one line each."""
    pipeline = PIPELINES[target]
    found = []
    if config.latent_channels != pipeline.latent_channels:
        theirs, ours = pipeline.latent_channels, config.latent_channels
        found.append(
            f"the published denoisers for {pipeline.name} take {theirs} latent channels; yours must take {ours}"
        )
    if force_upcast and not pipeline.upcasts:
        found.append(f"{pipeline.name} passes over force_upcast: run it in bfloat16 or float32, not float16")
    if target == "sd3" and scale.shift:
        found.append("StableDiffusion3InpaintPipeline decodes without the shift: for it, export with --scale factor")
    if target == "sdxl" and scale.mean is not None:
        found.append(
            "StableDiffusionXLInpaintPipeline and StableDiffusionXLInstructPix2PixPipeline encode without the "
            "statistics per channel: for them, export with --scale factor"
        )
    if target == "sdxl" and force_upcast and not getattr(config, "post_quant_conv", True):
        found.append(
            f"{pipeline.name} cannot decode in float16 without a post_quant_conv: run it in bfloat16 or float32"
        )
    return found
