"""Plays a scene on the stand-in device, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.conftest import ROOT

SCENES = Path(__file__).with_name("scenes.py")


def play(scene: str, *arguments: str) -> Any:
    """What a scene prints."""
    done = subprocess.run([sys.executable, SCENES, scene, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
