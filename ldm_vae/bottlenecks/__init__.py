"""What stands between encoder and decoder: how a latent is drawn, and what it costs.

base.py       What every bottleneck returns, so that losses and the codec need not know which one it was
gaussian.py   The diagonal Gaussian bottleneck of a KL autoencoder
scale.py      The affine map between the raw latents of a codec and the ones diffusion models see, as diffusers
              writes it
"""
