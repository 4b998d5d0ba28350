"""Shards: what is in them, where, and whether they are whole.

urls.py      What the path or URL of a shard says: where it lies, what it is called, what is beside it
retry.py     Tells a fault of the data from one of the machine, and tries again what may succeed next time
disk.py      Calls on local paths, which are made again where the disk or the machine fails
remote.py    Reads ranges of bytes over http(s), and from s3, gs, hf and whatever else fsspec opens
made.py      Data sets that the package makes, as shards in the cache
storage.py   Reads ranges of bytes from local files and from servers, and finds the shards that are named
tar.py       Reads the members of a tar from its headers, and checks what can be wrong with a tar
names.py     Cuts the names of members into the key of the sample and the field
shard.py     The index of one shard: where every member of every sample lies; the format of index.json
left_out.py  Counts what is left out of a data set, and says it once
beside.py    Finds what lies beside the shards of a folder and looks like data, but is read by nobody
folder.py    Finds the samples in a folder of images
scan.py      Finds out what is in a shard, or in a folder of images, that has no index
describe.py  Finds what is in the shards that are named: from index.json, from a cache of scans, or by a scan
index.py     The index of a data set: what is in all shards of its sources, and how these are mixed
classes.py   The classes of a folder of images: which folders are classes, and their numbers
verify.py    Reads the samples of a folder of images, and finds those that are broken
pack.py      Packs a folder of images into tar shards
trial.py     Tries how long packing a folder of images will take, and what its tars will hold
samples.py   Reads every sample of a shard with all its fields, in order
content.py   Finds what is wrong with the content of one member
check.py     Finds what is wrong with shards
"""
