"""Networks that tell real images from reconstructions.

patch.py   PatchGAN discriminator
"""
