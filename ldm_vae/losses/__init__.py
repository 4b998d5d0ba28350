"""What the autoencoder minimises, a small file each.

pixel.py         Distances between pixels, and the log-variance that may divide them
perceptual.py    LPIPS, the learned perceptual distance, as a loss
likelihood.py    How unlikely an image is under the decoder's distribution
rate.py          The price of the latent, in nats per image
adversary.py     What every adversary does: a second network with a loss of its own, trained beside the autoencoder
adversarial.py   The PatchGAN discriminator as an adversary: its losses, and when they apply
anchor.py        Gradients of losses at the weight of a last layer
adaptive.py      The adaptive weight: scales a loss so that its gradient at a last layer is as long as the
                 reconstruction's
reduction.py     From one value per image, or per sample of it, to the scalar that is minimised
objective.py     The objective: the weighted sum of all terms; the only file that knows them all
"""
