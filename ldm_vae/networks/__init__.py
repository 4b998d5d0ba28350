"""Whole autoencoders: what training wraps and export saves.

likelihood.py   How a decoder's output is read: as a picture, or as a distribution of pixels
network.py      What training and the codec ask of any network; the forward pass of training
measures.py     What validation measures of networks that are no codecs of images
compiled.py     torch.compile in place, and whether it works here
kl.py           The convolutional KL autoencoder of latent diffusion
"""
