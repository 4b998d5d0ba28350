"""Whole autoencoders: what training wraps and export saves.

likelihood.py   What a decoder's output says about pixels
network.py      What the engine asks of any model; the forward pass of training
kl.py           The convolutional KL autoencoder of latent diffusion
"""
