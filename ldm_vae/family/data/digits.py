"""The 1,797 handwritten digits of scikit-learn, 8 x 8 pixels, in ten classes; `data.image.resize` enlarges them.

Source: Alpaydin & Kaynak 1998, "Optical recognition of handwritten digits", UCI Machine Learning Repository.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image

from ldm_vae.extras import require

VERSION = 1  # of the shards: another one makes them anew
PARTS = {"train": slice(0, 1500), "validation": slice(1500, None)}  # of the shuffled digits
WHITE = 16  # the data set counts pixels that are on, in blocks of 4 x 4


def samples(part: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Key and fields (png, cls) of each digit. Raises MissingExtra without scikit-learn."""
    require("family", "made:digits")
    from sklearn.datasets import load_digits  # takes a second

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))[PARTS[part]]
    for number in sorted(order.tolist()):
        levels = (digits.images[number] * (255 / WHITE)).round().astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(levels).save(file, "PNG")
        yield f"{number:04d}", {"png": file.getvalue(), "cls": str(digits.target[number]).encode()}
