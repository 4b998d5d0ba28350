"""Plays the scenes: python -m tests.without_float64 FOLDER.

In a process of their own, since the stand-in device stays once it is on. FOLDER/scenes.json gets the traceback of each
scene, or null where it came to its end.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path

import torch

from tools.stand_in.device import stand_in


def play(folder: Path) -> dict[str, str | None]:
    """What became of each scene, by its name."""
    ends: dict[str, str | None] = {}
    with stand_in(float64=False):
        from tests.without_float64.scenes import SCENES  # now: decorators keep what they find in torch

        for scene in SCENES:
            try:
                scene(folder)
                ends[scene.__name__] = None
            except Exception:  # told by the test, with those of all other scenes
                ends[scene.__name__] = traceback.format_exc()
    return ends


if __name__ == "__main__":
    torch.set_num_threads(1)
    Path(sys.argv[1], "scenes.json").write_text(json.dumps(play(Path(sys.argv[1]))))
