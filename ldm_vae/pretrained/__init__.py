"""Weights of networks that others trained: found, verified and kept.

download.py    Files of weights from the internet: streamed, verified by sha256, kept in a cache that processes
               share
backbones.py   Pretrained VGG16 and AlexNet convolutions for LPIPS: found, verified, converted and kept as
               safetensors
inception.py   The Inception network of FID and KID: its weights found, verified and kept
frozen.py      Networks that take part in training and are never trained: their weights are pinned by hash
"""
