"""Blocks that networks are made of.

blocks.py          Residual block, attention and resampling of the KL autoencoder
checkpointing.py   Gradient checkpointing: trade a second forward pass of a block for its activations
features.py        What an encoder or a decoder gives: its output, and what its last layer made it of
encoder.py         Image -> moments of the posterior
decoder.py         Latent -> reconstruction
discriminators/    Networks that tell real images from reconstructions
"""
