"""A data set as it comes: a folder a class, one file cut off, one no picture: `python classes.py FOLDER`."""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from tools.photographs import write_photographs

CLASSES = {"animals": "chelsea", "flowers": "flower", "food": "coffee", "people": "astronaut"}
SIDE, TILES = 96, 6

folder = Path(sys.argv[1])
with TemporaryDirectory() as whole:
    write_photographs(Path(whole))
    for name, photograph in CLASSES.items():
        (folder / name).mkdir(parents=True)
        (source,) = Path(whole).glob(f"*/{photograph}.png")
        with Image.open(source) as picture:
            for tile in range(TILES):
                left, top = SIDE * (tile % 3), SIDE * (tile // 3)
                picture.crop((left, top, left + SIDE, top + SIDE)).save(folder / name / f"{tile}.jpg", quality=95)
cut = folder / "food" / "cut_off.jpg"
cut.write_bytes((folder / "food" / "0.jpg").read_bytes()[:900])
(folder / "notes.docx").write_bytes(b"not a picture")
