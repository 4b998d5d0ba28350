"""Makes tests/golden/made_by_0_1_0/: what a person has who used ldm_vae 0.1.0. Later versions must read all of it.

    PYTHONPATH=. python tests/golden/make_fixtures.py      from the root, at the commit that added this file

It is not to be run at a later commit: the files must stay as 0.1.0 wrote them. All commands are given relative paths
in a folder of their own, and the name of the machine in status.json is replaced, so that no file tells where it was
made. A second folder of latents is left as a killed `ldm-vae encode` leaves it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from make_inputs import write_pictures  # type: ignore[import-not-found]  # beside this file
from safetensors.torch import save_file

from tools.golden import GOLDEN, ONE_THREAD, ROOT, read_rows, rounded

OUT = GOLDEN / "made_by_0_1_0"
RECIPE = "recipe.yaml"
TRAIN, VALIDATION, BROKEN = 7, 2, 3  # pictures; the number of the one whose end is missing
STEPS, MORE = 6, 4  # of the recipe, and of the continuation


def python(folder: Path, *arguments: object, **variables: str) -> None:
    environment = {**os.environ, **ONE_THREAD, "PYTHONPATH": str(ROOT), **variables}
    subprocess.run([sys.executable, *map(str, arguments)], cwd=folder, env=environment, check=True)


def ldm_vae(folder: Path, *arguments: object, **variables: str) -> None:
    python(folder, "-m", "ldm_vae", *arguments, **variables)


def make_shards(folder: Path) -> None:
    train = write_pictures(folder / "pictures" / "train", range(TRAIN))
    validation = write_pictures(folder / "pictures" / "validation", range(100, 100 + VALIDATION))
    broken = train / f"{BROKEN:03d}.png"
    broken.write_bytes(broken.read_bytes()[:-500])
    ldm_vae(folder, "shards", train.relative_to(folder), "shards/train", "--samples-per-shard", 4)
    ldm_vae(folder, "shards", validation.relative_to(folder), "shards/validation")
    shutil.rmtree(folder / "pictures")


def make_run(folder: Path) -> None:
    """The run, and in continuation.jsonl the rows of the same run where nothing interrupts it."""
    python(folder, "-m", "train", RECIPE)
    python(folder, "-m", "train", RECIPE, "output=longer", f"steps={STEPS + MORE}")
    lines = [json.dumps(row) + "\n" for row in read_rows(folder / "longer" / "metrics.jsonl") if row["step"] > STEPS]
    (folder / "continuation.jsonl").write_text("".join(lines))
    shutil.rmtree(folder / "longer")
    (folder / "run" / ".lock").unlink(missing_ok=True)
    status = folder / "run" / "status.json"
    status.write_text(json.dumps(json.loads(status.read_text()) | {"host": "somewhere"}, indent=1) + "\n")


def measure(folder: Path) -> None:
    ldm_vae(folder, "stats", "run", "shards/train", "--write")
    files = ("--metrics", "psnr,ssim,lpips_alex", "--baseline", "jpeg", "--json", "run/results.json")
    ldm_vae(folder, "evaluate", "run", "shards/validation", *files)
    ldm_vae(folder, "inspect", "run", "shards/validation")
    ldm_vae(folder, "export", "run", "run/export", "--target", "sd")
    tensors = folder / "codec.safetensors"
    python(folder, GOLDEN / "codec_tensors.py", "run", "shards/validation/000000.tar", tensors)
    save_file(rounded(tensors), tensors)


def make_latents(folder: Path) -> None:
    """latents/ is finished. half/ holds the shards of the first of two processes, and what the second one, killed in
    the middle of its shard, leaves under a name of its own."""
    ldm_vae(folder, "encode", "run", "shards/train", "latents", "--mirrored")
    ldm_vae(folder, "encode", "run", "shards/train", "half", "--mirrored", RANK="0", WORLD_SIZE="2")
    begun = (folder / "latents" / "000001.tar").read_bytes()[:3000]
    (folder / "half" / ".tmp-00000000-1-00000000-0-000001.tar").write_bytes(begun)


def main() -> None:
    with TemporaryDirectory() as temporary:
        folder = Path(temporary, "home")
        folder.mkdir()
        shutil.copyfile(GOLDEN / "made_by_0_1_0.yaml", folder / RECIPE)
        make_shards(folder)
        make_run(folder)
        measure(folder)
        make_latents(folder)
        for lock in folder.rglob(".*.lock"):
            lock.unlink()
        for path in folder.rglob("*.safetensors"):
            path.chmod(0o644)  # safetensors writes for the owner alone
        shutil.rmtree(OUT, ignore_errors=True)
        shutil.copytree(folder, OUT)


if __name__ == "__main__":
    main()
