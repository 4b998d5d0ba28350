"""Translations between our networks and diffusers' classes, a file for each class.

layout.py   Finds the layout of a network: the class of diffusers that can hold it, and how the two are translated
kl.py       AutoencoderKL <-> our network of kind `kl`
"""
