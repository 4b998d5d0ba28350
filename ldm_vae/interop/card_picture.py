"""The picture of a model card: the run's own sheet of validation images, each beside its reconstruction."""

from __future__ import annotations

import io
import re
from pathlib import Path

from PIL import Image

from ldm_vae.interop.load import ModelSource

WIDEST, TALLEST = 1024, 1536  # pixels


def card_picture(source: ModelSource) -> tuple[bytes, int] | None:
    """The newest sheet that the run drew up to the step of the weights, as JPEG, and its step; None where it has none.

    A sheet that cannot be read is left out: a card does without.
    """
    if source.kind != "run" or source.folder is None:
        return None
    sheets = {
        int(found[1]): path
        for path in (source.folder / "samples").glob("step_*.png")
        if (found := re.fullmatch(r"step_(\d+)\.png", path.name))
    }
    steps = [step for step in sheets if source.step is None or step <= source.step]
    if not steps:
        return None
    picture = _as_jpeg(sheets[max(steps)])
    return None if picture is None else (picture, max(steps))


def _as_jpeg(path: Path) -> bytes | None:
    try:
        with Image.open(path) as image:
            image.thumbnail((WIDEST, TALLEST), Image.Resampling.LANCZOS)
            stream = io.BytesIO()
            image.convert("RGB").save(stream, "JPEG", quality=92)
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
    return stream.getvalue()
