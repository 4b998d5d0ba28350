"""Images as a data set of latents: written, read, measured.

measure.py        Measures a codec on images: the statistics of its latents, and its largest activation
source.py         The digest of what a shard of images holds
first_version.py  Version 1 of latents.json and its records: read as the present one, and finished as it was begun
format.py         The format of latents on disk: what tars, records and latents.json hold
folder.py         Writes and reads the files of a folder of latents
pictures.py       Reads the pictures of shards, in order, and decodes them in threads
stream.py         Encodes pictures, in order
job.py            The job that the options of `ldm-vae encode` describe
encode.py         Encodes shards of images to shards of latents, and goes on where it stopped
trial.py          Tries what encoding will give and how long it will take
check.py          Finds what is wrong with a folder of latents
dataset.py        LatentDataset: gives stored latents for training diffusion models
fields.py         The class and the text of a stored sample, and what stands for one that is missing
buckets.py        Batches of latents of one size, for DataLoader(batch_sampler=...)
decode.py         Decodes stored latents to pictures
picture_names.py  Where the picture of each latent goes, so that none takes the place of another
picture_files.py  Writes decoded pictures as files, while the next ones are decoded
roundtrip.py      Compares stored latents with the images they were made of
prefetch.py       Runs a generator in a thread, ahead of the code that uses its items
"""
