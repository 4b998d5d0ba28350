"""Images as a data set of latents: written, read, measured.

measure.py     A codec and images -> the statistics of its latents and the range of its activations
format.py      Latent shards: one tar for each shard of images, of the same name, and latents.json that says
               what they are
stream.py      Image shards -> encoded samples, in order: read and decoded in threads, encoded in batches of one
               size
encode.py      Image shards -> latent shards: read, decode, encode and write at the same time, a shard at a time
dataset.py     LatentDataset: latent shards -> scaled latents, for training diffusion models on them
roundtrip.py   Stored latents against the images they were made of: what the codec costs, and what storage adds
               to it
prefetch.py    Running a generator ahead of the one who uses it
"""
