"""What stands between encoder and decoder: how a latent is drawn, and what it costs.

base.py            What every bottleneck does
gaussian.py        The diagonal Gaussian bottleneck of a KL autoencoder
deterministic.py   No bottleneck but the number of channels
scale.py           The affine map between raw latents and the ones that diffusion models see, as diffusers writes it
"""
