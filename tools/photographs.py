"""The demo's data: the colour photographs that scikit-image and scikit-learn install, by name.

The split and the size of each photograph are fixed here, so that every demo sees the same pixels. The fundus and the
deep field are larger than the others and are reduced to their size; else random crops of them would be nearly flat. The
two halves of the stereo pair show one scene, so they belong to one split.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from PIL import Image

from ldm_vae.errors import UserError

SPLITS = ("train", "validation")


@dataclass(frozen=True)
class Photograph:
    """Where a photograph is installed, and how it is used."""

    package: Literal["skimage", "sklearn"]
    file: str  # path inside the package
    size: tuple[int, int]  # width and height in pixels, as kept
    split: Literal["train", "validation"]


PHOTOGRAPHS = {
    "astronaut": Photograph("skimage", "data/astronaut.png", (512, 512), "train"),
    "flower": Photograph("sklearn", "datasets/images/flower.jpg", (640, 427), "train"),
    "hubble_deep_field": Photograph("skimage", "data/hubble_deep_field.jpg", (587, 512), "train"),
    "ihc": Photograph("skimage", "data/ihc.png", (512, 512), "train"),
    "motorcycle_left": Photograph("skimage", "data/motorcycle_left.png", (741, 500), "train"),
    "motorcycle_right": Photograph("skimage", "data/motorcycle_right.png", (741, 500), "train"),
    "retina": Photograph("skimage", "data/retina.jpg", (512, 512), "train"),
    "rocket": Photograph("skimage", "data/rocket.jpg", (640, 427), "train"),
    "chelsea": Photograph("skimage", "data/chelsea.png", (451, 300), "validation"),
    "china": Photograph("sklearn", "datasets/images/china.jpg", (640, 427), "validation"),
    "coffee": Photograph("skimage", "data/coffee.png", (600, 400), "validation"),
}


def write_photographs(folder: Path) -> None:
    """Writes every photograph as folder/SPLIT/NAME.png. Raises UserError where a package is not installed."""
    for name, photograph in PHOTOGRAPHS.items():
        spec = find_spec(photograph.package)
        if spec is None or spec.origin is None:
            raise UserError(f"package {photograph.package} not found", 'install the extra: pip install -e ".[demo]"')
        target = folder / photograph.split / f"{name}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(Path(spec.origin).parent / photograph.file) as image:
            picture = image.convert("RGB")
        if picture.size != photograph.size:
            picture = picture.resize(photograph.size, Image.Resampling.LANCZOS)
        picture.save(target)
