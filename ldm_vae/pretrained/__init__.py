"""Weights of networks that others trained: found, verified and kept.

download.py    Downloads files of weights, verifies them, and keeps them in a cache that processes share
backbones.py   VGG16 and AlexNet convolutions for LPIPS
inception.py   The Inception network of FID and KID
frozen.py      Networks that take part in training and are never trained: pinned by hash
"""
