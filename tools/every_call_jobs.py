"""The small jobs of `every_call.py`: each command on four pictures and a network that computes in milliseconds."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

CACHE = "cache"  # the folder of what the jobs remember
LOGS = ("run/status.json", "run/metrics.jsonl", "run/warnings.jsonl")  # a training that fails is to change them
SIDES = ((32, 40), (48, 32), (40, 40), (32, 48))  # pixels, (width, height) of the pictures
RECIPE = """\
output: {folder}/run
steps: 2
model: {{block_out_channels: [4, 4], layers_per_block: 1, norm_groups: 2, latent_channels: 2}}
data: {{train: {folder}/shards, validation: {folder}/shards, batch: 2, workers: 0, image: {{crop: 32}}}}
loss: {{perceptual: {{channels: "off"}}}}
discriminator: null
validation: {{every: 2, batch: 2, metrics: [psnr], pictures: 1}}
checkpoint: {{every: 1}}
log: {{every: 1, trackers: []}}
"""
BACKBONES: dict[str, dict[int, tuple[int, int, int]]] = {  # layer -> inputs, outputs, side of its convolution
    "alexnet": {0: (3, 64, 11), 3: (64, 192, 5), 6: (192, 384, 3), 8: (384, 256, 3), 10: (256, 256, 3)},
    "vgg16": {0: (3, 64, 3), 2: (64, 64, 3), 5: (64, 128, 3), 7: (128, 128, 3), 10: (128, 256, 3)}
    | {12: (256, 256, 3), 14: (256, 256, 3), 17: (256, 512, 3)}
    | dict.fromkeys((19, 21, 24, 26, 28), (512, 512, 3)),
}
# What differs between two undisturbed runs: the time, the process, and what follows from them.
_CHANGING = (
    re.compile(rb'"(?:pid|updated|host)": [^,}\n]+'),
    re.compile(rb'"time/[^"]+": [^,}]+'),
    re.compile(rb"^run-[0-9a-f]{8}$"),  # the run's name for trackers
    re.compile(rb"[0-9.]+ images/s  [0-9.]+ min left"),
    re.compile(rb"in [0-9.,]+ (?:s|min) \([0-9.,]+ images/s\)"),
    re.compile(rb"\d{4}-\d\d-\d\d[ T]\d\d:\d\d(?::\d\d)?(?:[+.][0-9:+]+)?"),
)


@dataclass(frozen=True)
class Job:
    """A command to disturb.

    name: of the job.
    words: the command line after `ldm-vae`, or after `python -m train` where `trains`.
    needs: what lies in the folder before, of that which `prepare` makes.
    """

    name: str
    words: tuple[str, ...]
    needs: tuple[str, ...]
    trains: bool = False


def jobs() -> tuple[Job, ...]:
    """All jobs. Paths in their words are relative to the folder in which they run."""
    small = ("--batch", "2")
    return (
        Job("shards", ("shards", "pictures", "packed", "--samples-per-shard", "2"), ("pictures",)),
        Job("check", ("check", "shards", "--decode"), ("shards",)),
        Job("check --write-index", ("check", "shards", "--write-index"), ("shards",)),
        Job("stats", ("stats", "run", "shards", *small, "--json", "stats.json"), ("run", "shards")),
        Job("stats --write", ("stats", "run", "shards", *small, "--write"), ("run", "shards")),
        Job("encode", ("encode", "measured", "shards", "encoded", *small), ("measured", "shards")),
        Job("decode", ("decode", "measured", "latents", "decoded"), ("measured", "latents")),
        Job(
            "roundtrip",
            ("roundtrip", "measured", "latents", "shards", "--json", "roundtrip.json"),
            ("measured", "latents", "shards", CACHE),
        ),
        Job("check LATENTS", ("check", "latents", "--source", "shards"), ("latents", "shards")),
        Job(
            "evaluate",
            ("evaluate", "measured", "shards", *small, "--metrics", "psnr", "--json", "results.json"),
            ("measured", "shards"),
        ),
        Job("export", ("export", "measured", "exported"), ("measured",)),
        Job("export again", ("export", "measured", "exported", "--target", "sd3"), ("measured", "exported")),
        Job("inspect", ("inspect", "measured", "shards", *small, "--images", "2"), ("measured", "shards")),
        Job("report", ("report", "measured", "--shards", "shards"), ("measured", "shards")),
        Job("train", ("tiny.yaml",), ("shards", "tiny.yaml"), trains=True),
        Job("train, resumed", ("tiny.yaml", "steps=4"), ("shards", "tiny.yaml", "run"), trains=True),
    )


def prepare(folder: Path, run: Callable[[Job], None], keep: Callable[[str], None]) -> None:
    """Makes what the jobs need.

    folder: an empty folder, in which the jobs run.
    run: runs a job undisturbed.
    keep: takes a file or folder in `folder` for later.
    """
    (folder / "pictures").mkdir()
    for number, (width, height) in enumerate(SIDES):
        coarse = np.random.default_rng(number).integers(0, 256, (6, 5, 3), dtype=np.uint8)
        path = folder / "pictures" / f"{'ab'[number % 2]}" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path)
    keep("pictures")
    run(Job("", ("shards", "pictures", "shards", "--samples-per-shard", "2"), ()))
    keep("shards")
    (folder / "tiny.yaml").write_text(RECIPE.format(folder=folder))
    keep("tiny.yaml")
    run(Job("", ("tiny.yaml",), (), trains=True))
    keep("run")
    run(Job("", ("stats", "run", "shards", "--write"), ()))
    (folder / "run").rename(folder / "measured")
    keep("measured")
    run(Job("", ("encode", "measured", "shards", "latents", "--batch", "2"), ()))
    keep("latents")
    run(Job("", ("export", "measured", "exported"), ()))
    keep("exported")
    _fill_cache(folder / CACHE)
    keep(CACHE)


def _fill_cache(cache: Path) -> None:
    """Writes what the cache holds of the networks of LPIPS, with other weights, so that none are fetched."""
    import torch  # here, because a harness of other jobs needs none of it
    from safetensors.torch import save_file

    from ldm_vae.pretrained.backbones import weights_sha256

    cache.mkdir(exist_ok=True)
    for name, layers in BACKBONES.items():
        weights = {}
        for layer, (inputs, outputs, side) in layers.items():
            shape = (outputs, inputs, side, side)
            weights[f"features.{layer}.weight"] = torch.linspace(-0.1, 0.2, math.prod(shape)).view(shape)
            weights[f"features.{layer}.bias"] = torch.zeros(outputs)
        save_file(weights, cache / f"{name}.safetensors", metadata={"sha256": weights_sha256(weights)})


def steady(content: bytes) -> bytes:
    """Content of a file without what differs between two undisturbed runs."""
    for pattern in _CHANGING:
        content = pattern.sub(b"-", content)
    return content
