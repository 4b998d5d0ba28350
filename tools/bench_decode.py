"""Measures time, memory and error of decoding and encoding one large picture: full pass, diffusers' tiles, our pieces.

    python -m tools.bench_decode MODEL PICTURE --side 2048 --threads 1 --rounds 3 --max-memory 768 --max-memory 384

MODEL is a diffusers folder with trained weights; PICTURE is resized to side x side. A table in Markdown is printed for
each direction. Every pass runs in a process of its own. Methods take turns, and each pass is compared with the full
pass of its round.

CPU seconds are user and system time of all threads; on a machine that others use, too, they say more than the clock.
Extra memory is how much the resident memory of the process grows after weights and input are loaded (on a GPU, how much
allocated device memory grows). Errors are differences to the full pass; the last column is that to the same network in
float64 with the same weights and input, which tells whose rounding an error is.
"""

from __future__ import annotations

import json
import multiprocessing
import re
import resource
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import typer
from diffusers import AutoencoderKL
from PIL import Image

from ldm_vae.atomic import atomic_file
from ldm_vae.cli.options import writable
from ldm_vae.codec import LatentCodec, from_pil
from ldm_vae.piecewise import decode_pieces, encode_pieces
from tools.command import run_command

LARGE_TILE = 512  # px; the tile that an export sets may be smaller
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TABLE_COLUMNS = {  # heading -> what is measured, and how it is printed
    "seconds": ("seconds", "{:.1f}"),
    "of full": ("seconds_ratio", "{:.2f}"),
    "CPU seconds": ("cpu_seconds", "{:.1f}"),
    "of full ": ("cpu_seconds_ratio", "{:.2f}"),
    "extra MB": ("megabytes", "{:.0f}"),
    "of full  ": ("megabytes_ratio", "{:.2f}"),
    "largest error, std": ("error_std", "{:.1e}"),
    "largest, of 255": ("error_levels", "{:.2g}"),
    "mean, of 255": ("error_mean_levels", "{:.2g}"),
    "largest from float64, std": ("exact_std", "{:.1e}"),
}
EXACT = "float64.npy"  # what the network computes in float64
Method = Literal["full", "tiles", "pieces"]


def bench_decode(
    model: Annotated[str, typer.Argument(help="diffusers folder or Hub id")],
    picture: Annotated[Path, typer.Argument(exists=True, help="any photograph")],
    side: Annotated[int, typer.Option(help="px, a multiple of f")] = 2048,
    threads: Annotated[int, typer.Option(help="threads of the CPU")] = 1,
    rounds: Annotated[int, typer.Option(help="passes per method; medians are printed")] = 3,
    max_memory: Annotated[list[int] | None, typer.Option(help="MiB, a row for each [default: 768, 384]")] = None,
    direction: Annotated[list[str] | None, typer.Option(help="decode or encode [default: both]")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", callback=writable)] = None,
) -> None:
    """Measure full passes, tiles and pieces on one large picture."""
    methods: dict[str, tuple[Method, int]] = {
        "full pass": ("full", 0),
        f"enable_tiling(), {LARGE_TILE} px": ("tiles", LARGE_TILE),
        "enable_tiling(), the export's own": ("tiles", 0),
        "pieces": ("pieces", 0),
    }
    methods |= {f"pieces, max_memory {number} MiB": ("pieces", number) for number in max_memory or (768, 384)}
    tables = {}
    for way in direction or ("decode", "encode"):
        tables[way] = _rows(way, methods, model, picture, side, threads, rounds)
        print(f"\n{way}, {side} x {side} px, {threads} thread(s), {DEVICE}, median of {rounds} round(s)\n")
        _print_table(tables[way])
    if json_file is not None:
        setting = {"model": model, "side": side, "threads": threads, "rounds": rounds, "device": DEVICE}
        with atomic_file(json_file) as stage:
            stage.write_text(json.dumps({"setting": setting, "methods": tables}, indent=2) + "\n")


def _rows(
    way: str, methods: dict[str, tuple[Method, int]], model: str, picture: Path, side: int, threads: int, rounds: int
) -> dict[str, dict[str, float]]:
    """What was measured for each method: medians over rounds. Ratios are taken within a round."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in methods}
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder) / "input.npy"
        _apart(_prepare, way, model, picture, side, threads, given)
        for _ in range(rounds):
            full: dict[str, float] = {}
            for name, (kind, number) in methods.items():
                row: dict[str, float] = _apart(_pass, way, model, given, threads, kind, number)
                full = full or row
                ratios = {f"{key}_ratio": row[key] / full[key] for key in ("seconds", "cpu_seconds", "megabytes")}
                runs[name].append(row | ratios)
    return {name: {key: statistics.median(run[key] for run in done) for key in done[0]} for name, done in runs.items()}


def _print_table(rows: dict[str, dict[str, float]]) -> None:
    _print_line(["method", *(heading.strip() for heading in TABLE_COLUMNS)])
    _print_line(["---"] * (1 + len(TABLE_COLUMNS)))
    for name, row in rows.items():
        _print_line([name, *(form.format(row[key]) if key in row else "" for key, form in TABLE_COLUMNS.values())])


def _print_line(cells: Sequence[str]) -> None:
    print("| " + " | ".join(cells) + " |")


def _apart(function: Any, *arguments: Any) -> Any:
    """Calls the function in a fresh process, so that no method profits from the memory of another."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def _prepare(way: str, model: str, picture: Path, side: int, threads: int, given: Path) -> None:
    """Writes the input of the passes to `given`, the picture or its latents; and beside it what float64 makes of it."""
    torch.set_num_threads(threads)
    with Image.open(picture) as opened:
        image = from_pil(opened.convert("RGB").resize((side, side), Image.Resampling.BICUBIC))
    codec = LatentCodec.load(model)
    if way == "decode":
        image = codec.draw(encode_pieces(codec.model, image.to(codec.device))[0]).cpu()
    np.save(given, image.numpy())
    codec.to("float64")
    exact = decode_pieces if way == "decode" else encode_pieces
    np.save(given.with_name(EXACT), exact(codec.model, image.double().to(codec.device))[0].cpu().numpy())


@torch.no_grad()
def _pass(way: str, model: str, given: Path, threads: int, kind: Method, number: int) -> dict[str, float]:
    """Runs and measures one pass.

    number: side of the tiles in px (0: the export's), or MiB for the pieces (0: no bound).
    """
    torch.set_num_threads(threads)
    x = torch.from_numpy(np.load(given)).to(DEVICE)
    vae: Any = AutoencoderKL.from_pretrained(model)
    vae = vae.eval().to(DEVICE)
    ours = LatentCodec.load(vae).model
    if kind == "tiles":
        vae.enable_tiling()
        if number:
            vae.tile_sample_min_size, vae.tile_latent_min_size = number, number // ours.config.factor
    pieces = decode_pieces if way == "decode" else encode_pieces

    def run_pass(x: torch.Tensor) -> torch.Tensor:
        if kind == "pieces":
            return pieces(ours, x, max_memory=number * 2**20 or None)[0]
        result: torch.Tensor = vae.decode(x).sample if way == "decode" else vae.encode(x).latent_dist.parameters
        return result

    run_pass(x[:, :, :64, :64])  # libraries load and choose their kernels
    before, start, cpu = _memory(reset=True), time.perf_counter(), _cpu_seconds()
    result = run_pass(x)
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    seconds, cpu, after = time.perf_counter() - start, _cpu_seconds() - cpu, _memory()
    full = given.with_name("full.npy")
    if kind == "full":
        np.save(full, result.cpu().numpy())
    expected = torch.from_numpy(np.load(full))
    exact = torch.from_numpy(np.load(given.with_name(EXACT)))
    error = (result.cpu() - expected).abs()
    row = {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "megabytes": (after - before) / 1e6,
        "error_std": (error.max() / expected.std()).item(),
        "exact_std": ((result.cpu().double() - exact).abs().max() / exact.std()).item(),
    }
    if way == "decode":  # moments have no levels of 255
        row |= {"error_levels": 127.5 * error.max().item(), "error_mean_levels": 127.5 * error.mean().item()}
    return row


def _cpu_seconds() -> float:
    """User and system time of this process in all threads; page faults of fresh memory are included."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _memory(reset: bool = False) -> int:
    """Peak memory of this process in bytes, on Linux or CUDA; where the peak is reset, the memory now."""
    if DEVICE == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated()
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert peak is not None
    return 1024 * int(peak[1])


if __name__ == "__main__":
    run_command(bench_decode)
