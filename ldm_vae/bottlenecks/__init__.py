"""What stands between encoder and decoder: how a latent is drawn, and what it costs.

base.py            What every bottleneck does
gaussian.py        The diagonal Gaussian bottleneck of a KL autoencoder
deterministic.py   The latent is the encoder's output: no noise, no rate
scale.py           The affine map between raw latents and the ones that diffusion models see, as diffusers writes it
"""
