"""Makes what the golden recipes read: tests/golden/shards and tests/golden/codec.

    python tests/golden/make_inputs.py        from the checkout's root

Both are committed, and the stored rows hold for these very files: nobody needs to run this again. The pictures are
shapes on gradients, drawn with integers from a seed and stored as PNG, so that every decoder reads the same values. A
little noise lies over them: where a picture is flat, the first weights `average` reconstruct it to the last bit, and
the sign of that error, which is the gradient of the L1 loss, would be rounding noise.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent
TRAIN, VALIDATION = 9, 2  # pictures
SIDES = (36, 40, 42, 44)  # px; 42 is no multiple of f = 4
NOISE = 2  # of 255


def picture(seed: int) -> Image.Image:
    """Stripes, a disc and a rectangle in random colours over a gradient."""
    draw = np.random.default_rng(seed)
    height, width = draw.choice(SIDES, 2)
    y, x = np.mgrid[:height, :width]
    first, second, *colours = draw.integers(0, 256, (5, 3))
    ramp = ((x + 2 * y) * 255 // (width + 2 * height))[..., None]
    pixels = (first * (255 - ramp) + second * ramp) // 255
    period = draw.integers(4, 9)
    pixels[(x + y) % period < period // 2] = colours[0]
    row, column, radius = draw.integers(10, 30), draw.integers(10, 30), draw.integers(6, 14)
    pixels[(y - row) ** 2 + (x - column) ** 2 < radius**2] = colours[1]
    top, left = draw.integers(0, 24, 2)
    pixels[top : top + 12, left : left + 15] = colours[2]
    pixels = (pixels + draw.integers(-NOISE, NOISE + 1, pixels.shape)).clip(0, 255)
    return Image.fromarray(pixels.astype(np.uint8))


def write_pictures(folder: Path, seeds: range) -> Path:
    """A folder of pictures, each with the number of a class beside it."""
    folder.mkdir(parents=True)
    for seed in seeds:
        picture(seed).save(folder / f"{seed:03d}.png", optimize=True)
        (folder / f"{seed:03d}.cls").write_text(str(seed % 3))
    return folder


def python(*arguments: object) -> None:
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", *map(str, arguments)], cwd=HERE, env=environment, check=True)


def main() -> None:
    for name in ("shards", "codec"):
        shutil.rmtree(HERE / name, ignore_errors=True)
    with TemporaryDirectory() as temporary:
        pictures, run = Path(temporary, "pictures"), Path(temporary, "run")
        train = write_pictures(pictures / "train", range(TRAIN))
        validation = write_pictures(pictures / "validation", range(100, 100 + VALIDATION))
        python("ldm_vae", "shards", train, "shards/train", "--samples-per-shard", 5)
        python("ldm_vae", "shards", validation, "shards/validation")
        python("train", "codec.yaml", f"output={run}")
        python("ldm_vae", "export", run, "codec", "--shards", "shards/train")
    for document in ("README.md", "latent_statistics.json"):  # they tell of the run that is gone
        (HERE / "codec" / document).unlink()


if __name__ == "__main__":
    main()
