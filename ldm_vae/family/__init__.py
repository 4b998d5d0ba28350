"""The textbook family: every VAE that the field teaches, on the engine that trains the codecs.

A model of the family is no codec: its latent is flat, (B, d, 1, 1), its images have one size, and it may need a label.
The family stands behind a wall: it imports the seams (networks, bottlenecks, losses, noise), and nothing outside
imports it but the commands. The tables of `ldm_vae/parts.py` name its modules as text: a recipe that asks for one
imports it.

data/          Data sets that come with the package
likelihoods/   What a decoder's output says of an image: the distributions of its values
networks/      Images of one size -> a flat latent, and back to the parameters of a distribution
model.py       A trained model of the family in Python: encode, decode, sample, and how likely images are
measures.py    What validation measures: bounds on the likelihood, rates, units in use; and a sheet of samples
"""
