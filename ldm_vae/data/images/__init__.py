"""Pictures: the bytes of a file -> an array in [-1, 1], cut to size.

pixels.py    What every decoder needs: limits, errors, colours to sRGB, orientation, rounding to 8 bits
jpeg.py      Reads the markers of a JPEG stream: its size, and whether it comes to its end
png.py       Checks the chunks of a PNG, and how much its pixels inflate to
decode.py    Decodes jpg, png, webp, tiff and npy to (C, H, W) float32 in [-1, 1], and encodes it
depth.py     Mixes channels of TIFF and 16-bit PNG at the depth they have
quiet.py     Silences what decoders say beside their errors
segments.py  Checks the strips and tiles of a TIFF before any is decoded
tiff.py      Reads TIFF, which Pillow would cut down to 8 bits or cannot open
filters.py   Pillow's resize filters as weights: what each pixel of a resized side is made of
resize.py    Resizes pictures with Pillow's filters: a whole one, or no more than the part of it that is kept
fit.py       Resizes, crops and flips a decoded picture to what the network sees
prepare.py   From the bytes of a file to what the network sees, in little time
peak.py      Says from the header of a file how much memory its picture will take
in_order.py  Decodes pictures in threads and gives them in order, within a bound of memory
"""
