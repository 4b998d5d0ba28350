"""The whole path on real photographs, from the checkout's root: `make demo [STEPS=n]`.

Each stage writes something into runs/demo, and is skipped where that exists. So a second call continues where the first
was interrupted. Training continues from its last checkpoint; what was made of an older checkpoint is made again.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from ldm_vae.waiting import choose_waiting

if __name__ == "__main__":
    choose_waiting()

import torch
from diffusers import AutoencoderKL
from rich.console import Console
from rich.table import Table

from ldm_vae.atomic import refuse_foreign, remove_folder
from ldm_vae.cli.app import main as ldm_vae
from ldm_vae.codec import LatentCodec
from ldm_vae.data.shards.index import SourceConfig, load_index
from ldm_vae.data.stream.reader import DataConfig, validation_batches
from ldm_vae.diagnostics.anomaly import SCORES_FILE
from ldm_vae.diagnostics.explore import PICTURES
from ldm_vae.diagnostics.findings import INSPECTION_FILE
from ldm_vae.errors import UserError
from ldm_vae.interop.checkpoint import Checkpoint
from ldm_vae.interop.diffusers import EXPORTED
from ldm_vae.latents.format import ENCODED
from ldm_vae.padding import pad_to_multiple
from ldm_vae.recipe import resolve
from tools.photographs import SPLITS, write_photographs

RECIPE = Path("configs/demo_cpu.yaml")
ONE_PROCESS = Path(__file__).parent.parent / "configs" / "accelerate" / "one_process.yaml"
RUN = Path("runs/demo")
SHARDS = RUN / "shards"
TRAIN, VALIDATION = str(SHARDS / "train"), str(SHARDS / "validation")
RESULTS, STATISTICS_PATH, EXPORT = RUN / "results.json", RUN / "latent_statistics.json", RUN / "export"
LATENTS, DECODED = RUN / "latents", RUN / "decoded"
INSPECTION, REPORT = RUN / "inspection", RUN / "report.html"
# Folders that are made again after more training, and what the demo's commands write there.
MADE_OF_A_CHECKPOINT = {
    EXPORT: EXPORTED,
    LATENTS: [f"{split}/{name}" for split in SPLITS for name in ENCODED],
    DECODED: ["*.png"],
    INSPECTION: (INSPECTION_FILE, SCORES_FILE, *PICTURES),
}
DECODED_PICTURES = 3
SAME = 1e-4  # largest difference to diffusers, range [-1, 1], from the order of summation; a step of 8 bits is 8e-3
BASELINES = ("pca", "jpeg", "webp")
DEMO_METRICS = (
    "psnr,ssim,ms_ssim,lpips_vgg,lpips_alex,frechet_vgg16"  # no FID: Inception has 95 MB, and three images are too few
)


def main(steps: int | None) -> None:
    make_shards()
    train_codec(steps if steps is not None else int(resolve(RECIPE)["steps"]))
    evaluate_codec()
    export_codec()
    encode_and_decode()
    inspect_latents()
    make_report()


def make_shards() -> None:
    for split in SPLITS:
        if not (SHARDS / split / "index.json").exists():
            write_photographs(RUN / "photographs")
            run_ldm_vae("shards", RUN / "photographs" / split, SHARDS / split)


def train_codec(steps: int) -> None:
    checkpoint = Checkpoint.latest(RUN)
    if checkpoint is not None and checkpoint.step >= steps:
        return
    for stale, ours in MADE_OF_A_CHECKPOINT.items():
        refuse_foreign(stale, ours)
    for stale in (RESULTS, STATISTICS_PATH):
        stale.unlink(missing_ok=True)
    for stale in MADE_OF_A_CHECKPOINT:
        remove_folder(stale)
    # One process on any machine: without a file of ours, accelerate would read the user's, or guess.
    launch = ["launch", "--config_file", os.path.relpath(ONE_PROCESS)]
    launch.append(
        f"--num_cpu_threads_per_process={len(os.sched_getaffinity(0))}"
    )  # else accelerate takes one for each physical core
    arguments = [*launch, "-m", "train", str(RECIPE), f"steps={steps}"]
    print(f"\n$ accelerate {shlex.join(arguments)}", flush=True)
    training = subprocess.Popen([str(Path(sys.executable).with_name("accelerate")), *arguments])
    try:
        failed = training.wait()
    except KeyboardInterrupt:
        training.wait()  # training was interrupted, too, and saves
        raise
    if failed:
        reason = (
            json.loads((RUN / "status.json").read_text())["reason"] if (RUN / "status.json").exists() else "see above"
        )
        raise UserError("training ended early", f"{reason}; run `make demo` again to continue")


def evaluate_codec() -> None:
    """Writes results.json: this codec and, under "others", baselines of the same rate."""
    if not RESULTS.exists():
        baselines = [word for name in BASELINES for word in ("--baseline", name)]
        run_ldm_vae("evaluate", RUN, VALIDATION, *baselines, "--metrics", DEMO_METRICS)


def export_codec() -> None:
    if not STATISTICS_PATH.exists():
        run_ldm_vae("stats", RUN, TRAIN, "--write")
    if not EXPORT.exists():
        run_ldm_vae("export", RUN, EXPORT)
    check_export()


def check_export() -> None:
    """Checks that plain diffusers gives the same pixels as our codec."""
    vae: Any = AutoencoderKL
    theirs, ours = vae.from_pretrained(EXPORT).eval(), LatentCodec.load(RUN, device="cpu")
    largest = 0.0
    for batch in images(VALIDATION):
        with torch.no_grad():
            image = pad_to_multiple(batch.image, ours.factor)
            reconstruction = theirs.decode(theirs.encode(image).latent_dist.mode()).sample
        largest = max(largest, float((reconstruction - ours.reconstruct(image)).abs().max()))
    if not largest <= SAME:
        remove_folder(EXPORT)
        raise UserError(f"diffusers' reconstruction differs by {largest:.2g}", f"expected at most {SAME}: report a bug")
    print(f"diffusers.AutoencoderKL.from_pretrained({str(EXPORT)!r}): same pixels, to {largest:.1g}")


def encode_and_decode() -> None:
    for split in SPLITS:
        run_ldm_vae("encode", RUN, SHARDS / split, LATENTS / split)  # continues where it was interrupted
    if count_pictures(DECODED) < DECODED_PICTURES:
        run_ldm_vae("decode", RUN, LATENTS / "validation", DECODED, "--count", str(DECODED_PICTURES))


def count_pictures(folder: Path) -> int:
    """The pictures in a folder, without the hidden one that a killed `ldm-vae decode` was writing."""
    return len(list(folder.glob("[!.]*.png")))


def inspect_latents() -> None:
    if not INSPECTION.exists():
        run_ldm_vae("inspect", RUN, VALIDATION)


def make_report() -> None:
    run_ldm_vae("report", RUN)
    results = json.loads(RESULTS.read_text())
    codecs = {"this codec": results, **{other["name"]: other for other in results.get("others", [])}}
    table = Table("held-out photographs", *codecs)
    for name in results["metrics"]:
        values = [codec["metrics"][name] for codec in codecs.values()]
        table.add_row(name, *("missing" if value is None else f"{value:.3f}" for value in values))
    Console().print("\n", table)
    print("\n".join(str(RUN / name) for name in ("checkpoints", "samples", "metrics.jsonl")))
    print("\n".join(map(str, (RESULTS, EXPORT, LATENTS, DECODED, INSPECTION))))
    print(f"\nOpen {REPORT} in a browser. For the commands above: . .venv/bin/activate")


def images(shards: str) -> Any:
    """All images of the shards, one at a time and at their own size."""
    config = DataConfig(train=(SourceConfig(shards=shards),), batch=1, workers=0)
    return validation_batches(config, load_index(shards), batch=1, rank=0, world=1)


def run_ldm_vae(*arguments: str | Path) -> None:
    """Prints an `ldm-vae` command as a person would type it, and runs it."""
    words = [str(argument) for argument in arguments]
    print(f"\n$ ldm-vae {shlex.join(words)}", flush=True)
    try:
        ldm_vae(words)
    except SystemExit as done:
        if done.code:
            raise


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--steps", type=int, help="optimizer steps instead of the recipe's")
    try:
        main(parser.parse_args().steps)
    except UserError as error:
        print(f"demo: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("demo: stopped; run `make demo` again to continue", file=sys.stderr)
        sys.exit(130)
