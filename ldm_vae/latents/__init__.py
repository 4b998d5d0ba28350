"""Images as a data set of latents: written, read, measured.

measure.py     Measures a codec on images: the statistics of its latents, and its largest activation
format.py      The format of latents on disk: tars, records and latents.json
stream.py      Reads shards of images and encodes their samples, in order
encode.py      Encodes shards of images to shards of latents, and goes on where it stopped
dataset.py     LatentDataset: gives stored latents for training diffusion models
roundtrip.py   Compares stored latents with the images they were made of
prefetch.py    Runs a generator in a thread, ahead of the code that uses its items
"""
