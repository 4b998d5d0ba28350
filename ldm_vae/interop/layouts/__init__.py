"""What diffusers calls a network and its weights, a file for each of its classes.

layout.py   Finds the layout of a network: the class of diffusers that can hold it, and how the two are translated
kl.py       AutoencoderKL <-> our network of kind `kl`
"""
