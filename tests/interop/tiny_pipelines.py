"""Pipelines of diffusers around an AutoencoderKL, with tiny random denoisers and without text encoders."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL


def unet(down: tuple[str, str], up: tuple[str, str], **conditioning: Any) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=4,
        down_block_types=down,
        up_block_types=up,
        **conditioning,
    )


def sd(vae: AutoencoderKL) -> Any:
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    parts = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    pipe = StableDiffusionPipeline(
        vae=vae,
        unet=unet(("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")),
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        **parts,
        requires_safety_checker=False,
    )
    return pipe, {"prompt_embeds": torch.randn(1, 3, 8), "guidance_scale": 1.0}


def sdxl(vae: AutoencoderKL) -> Any:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    denoiser = unet(
        ("DownBlock2D", "CrossAttnDownBlock2D"),
        ("CrossAttnUpBlock2D", "UpBlock2D"),
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 8,
    )
    parts = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    pipe = StableDiffusionXLPipeline(
        vae=vae, unet=denoiser, scheduler=EulerDiscreteScheduler(), **parts, add_watermarker=False
    )
    embeds = {"prompt_embeds": torch.randn(1, 3, 8), "pooled_prompt_embeds": torch.randn(1, 8), "guidance_scale": 1.0}
    return pipe, embeds


def sd3(vae: AutoencoderKL) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=1,
        attention_head_dim=4,
        num_attention_heads=2,
        caption_projection_dim=8,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        pos_embed_max_size=8,
    )
    names = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3")
    pipe = StableDiffusion3Pipeline(
        vae=vae, transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), **dict.fromkeys(names)
    )
    embeds = {"prompt_embeds": torch.randn(1, 3, 8), "pooled_prompt_embeds": torch.randn(1, 8), "guidance_scale": 1.0}
    return pipe, embeds


def flux(vae: AutoencoderKL) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        axes_dims_rope=(4, 4, 8),
    )
    parts = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    pipe = FluxPipeline(vae=vae, transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), **parts)
    return pipe, {"prompt_embeds": torch.randn(1, 3, 8), "pooled_prompt_embeds": torch.randn(1, 8)}


def dit(vae: AutoencoderKL) -> Any:
    from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    transformer = DiTTransformer2DModel(
        sample_size=8, in_channels=4, out_channels=8, num_layers=1, attention_head_dim=4, num_attention_heads=2
    )
    return DiTPipeline(transformer=transformer, vae=vae, scheduler=DDIMScheduler()), {
        "class_labels": [1],
        "guidance_scale": 1.0,
    }


BUILD = {"sd": sd, "sdxl": sdxl, "sd3": sd3, "flux": flux, "dit": dit}
