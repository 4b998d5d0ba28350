"""What the autoencoder minimises, a small file each.

pixel.py         Distances between pixels, and the log-variance that may divide them
perceptual.py    LPIPS, the learned perceptual distance, as a loss
rate.py          The price of the latent, in nats per image
adversary.py     What a second player is: a network that is trained along, and that the autoencoder may feel
adversarial.py   The PatchGAN discriminator as an adversary: its losses, and when they apply
anchor.py        Gradients of losses at the weight of a last layer
adaptive.py      The adaptive weight: makes the gradient of a loss as long as the reconstruction's at a last layer
reduction.py     From one value per image to the scalar that is minimised
objective.py     Names the terms, weights them, adds them; the only file that knows them all
"""
