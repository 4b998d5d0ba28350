"""Losses, one small file each.

pixel.py         Distances between pixels, element by element
perceptual.py    LPIPS, the learned perceptual distance, as a loss
rate.py          The price of information: the bottleneck's rate, KL(q(z|x) || p(z)), in nats per image
adversarial.py   Losses of the discriminator and of the generator against it, and when they apply
adaptive.py      The adaptive GAN weight: makes the adversarial gradient as long as the reconstruction's at the
                 decoder's last layer
objective.py     What the autoencoder minimises: names the terms, weights them, adds them; the only file that
                 knows them all
"""
