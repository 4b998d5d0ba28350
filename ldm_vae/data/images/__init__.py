"""Pictures: the bytes of a file -> an array in [-1, 1], cut to size.

pixels.py   Pixels in memory: their limits, their range, colours to sRGB, the way up
decode.py   File bytes <-> (C, H, W) float32 in [-1, 1]
tiff.py     TIFF and 16-bit PNG -> pixels: what Pillow would cut down to 8 bits or cannot open
fit.py      Resize, crop and flip between the picture in a file and what the network sees
"""
