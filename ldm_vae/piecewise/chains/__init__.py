"""Networks as chains of steps, a file for each kind of network.

chain.py   Finds the chains of a network
kl.py      The convolutional KL autoencoder as chains of steps
"""
