"""Networks of the family: images of one size -> a flat latent, and back to the parameters of a distribution.

base.py   What all of them have: one side of the pictures, a likelihood, a flat latent
mlp.py    Layers that connect everything; without hidden ones, a linear VAE
"""
