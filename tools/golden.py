"""Golden rows: does this checkout train and encode as an older commit does, bit for bit, on this machine?

    python -m tools.golden COMMIT       runs the recipes of tests/golden/ in both, and prints what differs (exit code 1)
    python -m tools.golden --record     stores the results of this checkout in tests/golden/rows/

Both commits are used through what stays the same when modules move: `python -m train`, `from ldm_vae import
LatentCodec`, and files. Recipes, pictures and weights are those of this checkout. Every process has one thread and no
GPU. The stored rows are computed in float64, because machines differ in float32: see tests/golden/test_golden.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from safetensors.torch import load_file, save_file
from torch import Tensor

from ldm_vae import UserError
from tools.command import run_command

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"
ROWS = GOLDEN / "rows"
RECIPES = ("demo", "compvis", "decoder")
NAMES = (*RECIPES, "codec")
RENAMED = {"log_variance": "heads.log_variance.value"}  # name of a tensor in older checkpoints -> name today
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "CUDA_VISIBLE_DEVICES": "",
    "ACCELERATE_USE_CPU": "true",
}


def golden(
    base: Annotated[str | None, typer.Argument(metavar="COMMIT", help="Commit to compare this checkout with.")] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help=f"Run only these of {', '.join(NAMES)}.")
    ] = None,
    record: Annotated[bool, typer.Option("--record", help="Store this checkout's rows as the golden ones.")] = False,
) -> None:
    """Compare this checkout with an older commit, bit for bit, or store its results."""
    names = only or list(NAMES)
    if unknown := sorted(set(names) - set(NAMES)):
        raise UserError(f"--only {unknown[0]}", f"choose from {', '.join(NAMES)}")
    if (base is None) != record:
        raise UserError("a commit or --record", "give one of them")
    with TemporaryDirectory(prefix="golden-") as folder:
        if base is None:
            for name in names:
                store(name, Path(folder))
        else:
            compare_with(base, names, Path(folder))


def store(name: str, folder: Path) -> None:
    """Stores the rows of a recipe, or the tensors of the codec, in tests/golden/rows/."""
    ROWS.mkdir(exist_ok=True)
    if name == "codec":
        save_file(rounded(run(ROOT, name, folder / name)), ROWS / "codec.safetensors")
        (ROWS / "codec.safetensors").chmod(0o644)  # safetensors writes files that only the owner can read
        return
    rows = read_rows(run(ROOT, name, folder / name, "precision=float64") / "metrics.jsonl")
    (ROWS / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def rounded(path: Path) -> dict[str, Tensor]:
    """The float64 tensors of the codec, rounded to float32 to be stored."""
    return {key: value.float() for key, value in load_file(path).items() if key.endswith("float64")}


def compare_with(base: str, names: list[str], folder: Path) -> None:
    """Runs both commits, two processes at a time, and prints their differences. Exits with 1 where there are any."""
    differences: list[str] = []
    with worktree(base, folder / "checkout") as older, ThreadPoolExecutor(2) as pool:
        for name in names:
            jobs = [
                pool.submit(run, checkout, name, folder / side / name) for checkout, side in ((older, "a"), (ROOT, "b"))
            ]
            first, second = (job.result() for job in jobs)
            lines = list(differences_of(first, second))
            print(f"{name}: {'the same, bit for bit' if not lines else 'differs'}", flush=True)
            differences += [f"{name}: {line}" for line in lines]
    if differences:
        print("\n".join(differences), file=sys.stderr)
        sys.exit(1)


def run(checkout: Path, name: str, out: Path, *overrides: str) -> Path:
    """Runs a recipe, or the codec, in a checkout. Returns the run folder, or the file of the codec's tensors.

    overrides: fields of the recipe, as `a.b=value`.

    Raises UserError with the end of the process's errors where it fails.
    """
    train, validation, codec = GOLDEN / "shards/train", GOLDEN / "shards/validation", GOLDEN / "codec"
    if name == "codec":
        out = out.with_suffix(".safetensors")
        command: list[object] = [GOLDEN / "codec_tensors.py", codec, validation / "000000.tar", out]
    else:
        places = [f"output={out}", f"data.train={train}", f"data.validation={validation}"]
        places += [f"model.init_from={codec}"] if name == "decoder" else []
        command = ["-m", "train", GOLDEN / f"{name}.yaml", *places, *overrides]
    out.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, **ONE_THREAD, "PYTHONPATH": str(checkout)}
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=checkout, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise UserError(f"{name} in {checkout} ended with {done.returncode}", done.stderr[-2000:])
    return out


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl without the values that depend on the clock."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows]


def differences_of(first: Path, second: Path) -> Iterator[str]:
    """A line for each key of the rows, and for each file of tensors, in which two runs (or two files) differ."""
    if first.is_file():
        yield from differences_of_tensors(first.name, load_file(first), load_file(second))
        return
    yield from differences_of_rows(*(read_rows(folder / "metrics.jsonl") for folder in (first, second)))
    files = [
        {str(path.relative_to(run)) for path in run.glob("checkpoints/*/*.safetensors")} for run in (first, second)
    ]
    for name in sorted(files[0] ^ files[1]):
        yield f"only one of them has {name}"
    for name in sorted(files[0] & files[1]):
        yield from differences_of_tensors(
            name, *(with_todays_names(load_file(folder / name)) for folder in (first, second))
        )


def differences_of_rows(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> Iterator[str]:
    """A line for each key that differs, with the first step at which it does."""
    if [row["step"] for row in first] != [row["step"] for row in second]:
        yield f"{len(first)} and {len(second)} rows, or rows of different steps"
    reported: set[str] = set()
    for ours, theirs in zip(first, second, strict=False):
        for name in sorted((ours.keys() | theirs.keys()) - reported):
            if (a := ours.get(name, "absent")) != (b := theirs.get(name, "absent")):
                reported.add(name)
                yield f"{name} from step {ours['step']} on: {a} and {b}"


def differences_of_tensors(name: str, first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> Iterator[str]:
    """A line for the tensors that one of them lacks, and a line for those whose type, shape or bits differ."""
    if lacking := sorted(first.keys() ^ second.keys()):
        yield f"{name}: only one of them has {len(lacking)} tensors, such as {lacking[0]}"
    differing = [key for key in sorted(first.keys() & second.keys()) if not same_bits(first[key], second[key])]
    if differing:
        a, b = first[differing[0]], second[differing[0]]
        how = f"largest difference {(a.double() - b.double()).abs().max():.3g}" if a.shape == b.shape else "its shape"
        yield f"{name}: {len(differing)} of {len(first)} tensors differ, such as {differing[0]} ({how})"


def with_todays_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under today's names. In optimizers a name begins with the moment, such as `exp_avg/`."""
    split = {key: key.rpartition("/") for key in tensors}
    return {f"{moment}{slash}{RENAMED.get(name, name)}": tensors[key] for key, (moment, slash, name) in split.items()}


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether type, shape and bytes are equal: a NaN equals itself, and 0 differs from -0."""
    return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()


@contextmanager
def worktree(commit: str, folder: Path) -> Iterator[Path]:
    """A checkout of `commit`, which is removed afterwards. Raises UserError where git does not know the commit."""
    git = ["git", "-C", str(ROOT), "worktree"]
    done = subprocess.run([*git, "add", "--detach", str(folder), commit], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"commit {commit}", done.stderr.strip().splitlines()[-1])
    try:
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True)


if __name__ == "__main__":
    run_command(golden)
