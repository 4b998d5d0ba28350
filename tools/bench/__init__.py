"""Measurements of speed, one file each: `python -m tools.bench NAME`.

__main__.py  The command line
load.py      Measures how fast images come from shards as batches, beside plain webdataset
"""
