"""What tests on a GPU do there, in a process of its own: on_device.py DEVICE WORK [ARGUMENT ...]; it prints JSON.

DEVICE is `cuda`; `cpu`, to compare with; or `gpu`, which pretends to be one and shows that the work itself runs.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import runpy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from ldm_vae import LatentCodec
from ldm_vae.bottlenecks.scale import LatentScale
from ldm_vae.data.shards.index import load_index
from ldm_vae.data.stream.reader import train_batches
from ldm_vae.networks.kl import Autoencoder, AutoencoderConfig
from ldm_vae.recipe import load_recipe
from ldm_vae.transfer import Courier
from tools.stand_in.device import stand_in
from tools.stand_in.record import RECORD
from train.arithmetic import repeatable
from train.build import build_accelerator, build_autoencoder, build_frozen, build_run
from train.compiled import compile_run
from train.cost import count_step
from train.recipe import Recipe, resolve_precision
from train.step import step_of

STEPS = 5
STEADY = 3  # the steps from this one on must not wait for the device
NETWORK = AutoencoderConfig(block_out_channels=(32, 64, 64), norm_groups=8, layers_per_block=1)


@contextmanager
def never_waiting(device: str) -> Iterator[None]:
    """An error of CUDA's own where the host waits; the stand-in counts."""
    if device != "cuda":
        RECORD.reset()
        yield
        assert not RECORD.waits and not RECORD.pageable, (RECORD.waits, RECORD.pageable)
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def steps(device: str, file: str, *changes: str) -> dict[str, Any]:
    """The first steps of a recipe: values, the length of each parameter's averaged gradients, a hash of the weights,
    and where all that was computed."""
    recipe = load_recipe(Recipe, Path(file), changes)
    accelerator = build_accelerator(recipe)
    recipe = resolve_precision(recipe)
    autoencoder, recipe = build_autoencoder(recipe)
    frozen, recipe = build_frozen(recipe)
    run = build_run(recipe, accelerator, autoencoder, frozen)
    compile_run(run, frozen, recipe)
    data = {"rank": 0, "world": 1, "accumulation": recipe.optimizer.accumulation}
    stream = train_batches(recipe.data, load_index(recipe.data.train), recipe.seed, start_step=0, **data)
    courier, step, rows = Courier(accelerator.device), step_of(recipe), []
    with repeatable(recipe.deterministic, accelerator.device.type):
        for number, micro_batches in enumerate(islice(stream, STEPS)):
            with never_waiting(device) if number >= STEADY else nullcontext():
                values = step(run, [batch.by(courier, run.dtype) for batch in micro_batches], number)
            rows.append({name: float(value) for name, value in values.items()})
    stream.close()
    gradients = {
        f"{network} {name}": float(value.norm())
        for network, update in run.updates.items()
        for name, value in update.state().items()
        if name.startswith("exp_avg/")
    }
    weights = hashlib.sha256()
    for value in run.autoencoder.state_dict().values():
        weights.update(value.cpu().numpy().tobytes())
    return {"rows": rows, "gradients": gradients, "weights": weights.hexdigest(), "device": accelerator.device.type}


def peak(device: str, file: str, images: str, side: str, *changes: str) -> dict[str, int]:
    """Bytes at the peak of a step, and those that a dry run counts on meta."""
    from tools.stand_in.scenes import training_step  # it takes any device that accelerate finds

    recipe = load_recipe(Recipe, Path(file), changes)
    counted, resolved = build_autoencoder(resolve_precision(recipe), device="meta")
    told = count_step(resolved, counted, (int(side), int(side)), int(images)).peak
    memory = torch.get_device_module(device)
    memory.reset_peak_memory_stats()
    training_step(recipe, int(images), int(side))
    return {"told": told, "taken": memory.max_memory_allocated()}


def codec(device: str, height: str, width: str, mebibytes: str) -> dict[str, dict[str, float]]:
    """A codec on the device, whole and within `mebibytes`: for each pass the largest difference to the CPU, in standard
    deviations of its result, and the MiB that it took beside weights and input."""
    there = make_codec("cpu")
    coarse = torch.rand(1, 3, 24, 32) * 2 - 1
    image = torch.nn.functional.interpolate(coarse, (int(height), int(width)), mode="bicubic").clamp(-1, 1)
    latent = there.encode(image)
    given = {"encode": image, "decode": latent}
    expected = {"encode": latent, "decode": there.decode(latent)}
    there, memory = there.to(device), torch.get_device_module(device)
    found: dict[str, dict[str, float]] = {}
    for name, options in {"whole": {}, "pieces": {"max_memory": int(mebibytes) * 2**20}}.items():
        for direction, value in given.items():
            moved = value.to(device)
            memory.reset_peak_memory_stats()
            before = memory.memory_allocated()
            result = getattr(there, direction)(moved, **options)
            taken = memory.max_memory_allocated() - before
            error = (result.cpu() - expected[direction]).abs().max() / expected[direction].std()
            found[f"{name} {direction}"] = {"error": float(error), "memory": taken / 2**20}
            del moved, result
    return found


def halved(device: str, images: str, side: str, mebibytes: str) -> dict[str, Any]:
    """PSNR of a batch where memory is plenty and where it is not, and what is said of it."""
    from ldm_vae.data.stream.batch import Batch
    from ldm_vae.evaluation.evaluate import measure_batches
    from ldm_vae.metrics.image import ImageMetrics

    there = make_codec(device)
    image = torch.rand(int(images), 3, int(side), int(side)) * 2 - 1

    def measured() -> list[Any]:
        batch = Batch(image, None, [str(i) for i in range(len(image))], torch.arange(len(image)))
        return [row.values for row in measure_batches(there, [batch], ImageMetrics(("psnr",), there.device))]

    plenty = measured()
    limit(device, int(mebibytes))
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("ldm_vae.fitting").addHandler(handler)
    return {"plenty": plenty, "little": measured(), "said": said}


def command(device: str, mebibytes: str, module: str, *arguments: str) -> dict[str, Any]:
    """The exit code of `python -m MODULE ARGUMENT ...`, with so much of the device's memory, or 0 for all of it."""
    if int(mebibytes):
        limit(device, int(mebibytes))
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return {"code": end.code or 0}
    return {"code": 0}


def make_codec(device: str) -> LatentCodec:
    torch.manual_seed(0)
    return LatentCodec(Autoencoder(NETWORK).eval().requires_grad_(False), LatentScale(0.5)).to(device)


def limit(device: str, mebibytes: int) -> None:
    """Lets this process take so much of the device's memory. That more is free is still told to those who ask."""
    memory = torch.get_device_module(device)
    memory.empty_cache()
    memory.set_per_process_memory_fraction(mebibytes * 2**20 / memory.mem_get_info()[1])


WORK: dict[str, Callable[..., dict[str, Any]]] = {work.__name__: work for work in (steps, peak, codec, halved, command)}


def main(device: str, work: str, *arguments: str) -> None:
    torch.set_num_threads(1)
    with stand_in() if device == "gpu" else nullcontext():
        print(json.dumps(WORK[work](device, *arguments)))


if __name__ == "__main__":
    main(*sys.argv[1:])
    sys.stdout.flush()
    os._exit(0)
