"""Time, peak memory and error of decoding one large picture: the full pass, diffusers' tiles, and our pieces.

    python tools/bench_decode.py runs/demo/export PICTURE --side 2048 --threads 2 --rounds 3 --json decode.json

MODEL is a diffusers folder with trained weights; PICTURE is resized to side x side and encoded first. Every decode runs
in a process of its own, methods taking turns. Extra memory is the growth of the process's resident memory over what it
held with weights and latents loaded (of allocated device memory on a GPU). Errors are differences to the full pass.
"""

from __future__ import annotations

import json
import multiprocessing
import re
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from diffusers import AutoencoderKL
from PIL import Image
from rich.console import Console
from rich.table import Table

from ldm_vae.codec import LatentCodec, from_pil
from ldm_vae.exact import decode_pieces, encode_pieces

SANE_TILE = 512  # px
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def bench(
    model: Annotated[str, typer.Argument(help="diffusers folder or Hub id")],
    picture: Annotated[Path, typer.Argument(exists=True, help="any photograph")],
    side: Annotated[int, typer.Option(help="px, a multiple of f")] = 2048,
    threads: Annotated[int, typer.Option(help="of the CPU")] = 2,
    rounds: Annotated[int, typer.Option(help="decodes per method; medians are printed")] = 3,
    max_memory: Annotated[int, typer.Option(help="MiB for the bounded decode")] = 512,
    json_file: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    methods = {
        "full pass": ("full", 0),
        f"enable_tiling(), {SANE_TILE} px": ("tiles", SANE_TILE),
        "enable_tiling(), the export's own": ("tiles", 0),
        "pieces": ("pieces", 0),
        f"pieces, max_memory {max_memory} MiB": ("pieces", max_memory),
    }
    with tempfile.TemporaryDirectory() as folder:
        latents = Path(folder) / "latents.npy"
        _apart(_encode, model, picture, side, threads, latents)
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in methods}
        for _ in range(rounds):
            for name, (kind, number) in methods.items():
                runs[name].append(_apart(_decode, model, latents, threads, kind, number))
    rows = {name: {key: statistics.median(run[key] for run in done) for key in done[0]} for name, done in runs.items()}
    table = Table("method", "seconds", "extra MB", "largest error, std", "largest, of 255", "mean, of 255")
    for name, row in rows.items():
        numbers = row["seconds"], row["megabytes"], row["error_std"], row["error_levels"], row["error_mean_levels"]
        table.add_row(name, *(f"{number:.3g}" for number in numbers))
    Console(width=120).print(table)
    if json_file is not None:
        setting = {"model": model, "side": side, "threads": threads, "rounds": rounds, "device": DEVICE}
        json_file.write_text(json.dumps({"setting": setting, "methods": rows}, indent=2) + "\n")


def _apart(function: Any, *arguments: Any) -> Any:
    """In a fresh process, so that no method profits from another's memory."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def _encode(model: str, picture: Path, side: int, threads: int, latents: Path) -> None:
    torch.set_num_threads(threads)
    codec = LatentCodec.load(model)
    with Image.open(picture) as opened:
        image = from_pil(opened.convert("RGB").resize((side, side), Image.Resampling.BICUBIC))
    moments, _ = encode_pieces(codec.model, image.to(codec.device))
    np.save(latents, codec.draw(moments).cpu().numpy())


@torch.no_grad()
def _decode(model: str, latents: Path, threads: int, kind: str, number: int) -> dict[str, float]:
    """number: side of the tiles in px (0: the export's), or MiB for the pieces (0: no bound)."""
    torch.set_num_threads(threads)
    z = torch.from_numpy(np.load(latents)).to(DEVICE)
    vae: Any = AutoencoderKL.from_pretrained(model)  # type: ignore[no-untyped-call]
    vae = vae.eval().to(DEVICE)
    ours = LatentCodec.load(vae).model
    if kind == "tiles":
        vae.enable_tiling()
        if number:
            vae.tile_sample_min_size, vae.tile_latent_min_size = number, number // ours.config.factor

    def decode(z: torch.Tensor) -> torch.Tensor:
        if kind == "pieces":
            return decode_pieces(ours, z, max_memory=number * 2**20 or None)[0]
        return vae.decode(z).sample

    decode(z[:, :, :8, :8])  # libraries load and choose their kernels
    before, start = _memory(reset=True), time.perf_counter()
    result = decode(z)
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    seconds, after = time.perf_counter() - start, _memory()
    full = latents.with_name("full.npy")
    if kind == "full":
        np.save(full, result.cpu().numpy())
    expected = torch.from_numpy(np.load(full))
    error = (result.cpu() - expected).abs()
    return {
        "seconds": seconds,
        "megabytes": (after - before) / 1e6,
        "error_std": (error.max() / expected.std()).item(),
        "error_levels": 127.5 * error.max().item(),
        "error_mean_levels": 127.5 * error.mean().item(),
    }


def _memory(reset: bool = False) -> int:
    """Peak bytes of this process, or now where the peak is reset (Linux, or CUDA)."""
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
    typer.run(bench)
