"""Pictures: the bytes of a file -> an array in [-1, 1], cut to size.

pixels.py   What every decoder needs: limits, errors, colours to sRGB, orientation, rounding to 8 bits
decode.py   Decodes jpg, png, webp, tiff and npy to (C, H, W) float32 in [-1, 1], and encodes it
tiff.py     Reads TIFF and 16-bit PNG, which Pillow would cut down to 8 bits or cannot open
fit.py      Resizes, crops and flips a decoded picture to what the network sees
"""
