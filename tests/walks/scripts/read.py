"""Stored latents as a trainer reads them."""

from torch.utils.data import DataLoader

from ldm_vae import LatentDataset

latents = LatentDataset("latents")
batch = next(iter(DataLoader(latents, batch_size=4, shuffle=False)))
print(len(latents), {name: tuple(value.shape) for name, value in batch.items() if hasattr(value, "shape")})
