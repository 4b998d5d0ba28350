"""Shards of images -> batches.

images/   Pictures: the bytes of a file -> an array in [-1, 1], cut to size
shards/   Shards: what is in them, where, and whether they are whole
stream/   The stream of training: which sample comes when, read and decoded by workers, as batches
"""
