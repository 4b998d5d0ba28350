"""A diffusion pipeline with the codec in it: diffusers loads the exported folder, and ours decodes any size."""

import torch
from diffusers import AutoencoderKL, DiTPipeline, DiTTransformer2DModel, DPMSolverMultistepScheduler

from ldm_vae import LatentCodec

torch.manual_seed(0)
vae = AutoencoderKL.from_pretrained("exported")
print(type(vae).__name__, vae.config.scaling_factor)
denoiser = DiTTransformer2DModel(
    num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1, sample_size=16,
    patch_size=2, norm_num_groups=4, num_embeds_ada_norm=1000,
)  # fmt: skip
pipe = DiTPipeline(transformer=denoiser, vae=vae, scheduler=DPMSolverMultistepScheduler())
pipe.set_progress_bar_config(disable=True)
pipe.vae = LatentCodec.load("exported").as_diffusers()
picture = pipe(class_labels=[3], num_inference_steps=2).images[0]
print(picture.size)
