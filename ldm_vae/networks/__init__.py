"""Whole autoencoders: what training wraps and export saves.

kl.py   Encoder, bottleneck and decoder as the one module that training wraps and export saves
"""
