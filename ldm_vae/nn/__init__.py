"""Blocks that networks are made of.

blocks.py          Residual block, attention and resampling of the KL autoencoder
norm.py            Group normalisation, which may keep the type of what it reads where autocast would not
checkpointing.py   Gradient checkpointing: trade a second forward pass of a block for its activations
last_layer.py      What an encoder or a decoder returns: input and output of its last layer
encoder.py         Image -> moments of the posterior
decoder.py         Latent -> reconstruction
discriminators/    Networks that tell real images from reconstructions
"""
