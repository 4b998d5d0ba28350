"""Shards: what is in them, where, and whether they are whole.

storage.py   Bytes at an offset: local files by pread; http(s), s3, gs and whatever else fsspec opens by ranged
             reads
tar.py       The members of a tar, read from its headers alone and held against everything that a tar can get
             wrong
shard.py     What is in one shard: the place of every member of every sample, and how index.json writes it down
folder.py    The samples in a folder of images: a picture with the files beside it of the same name
scan.py      Finding out what is in a shard or a folder of images where no index tells
index.py     What is in all shards of a data set: from index.json beside them (see data/shards/shard.py), else
             from their headers
pack.py      A folder of images -> tar shards that webdataset and we read, with index.json and the names of the
             classes
samples.py   Every sample of a shard with all its fields, in order: what is carried along when images become
             latents
check.py     What is wrong with shards: everything that webdataset loses, mixes up or follows without a word,
             and broken contents
"""
