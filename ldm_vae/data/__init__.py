"""Shards of images -> batches: pictures, shards, and the stream of training.

images/   Pictures: the bytes of a file -> an array in [-1, 1], cut to size
shards/   Shards: what is in them, where, and whether they are whole
stream/   The stream of training: the order of samples, read by workers, as batches
"""
