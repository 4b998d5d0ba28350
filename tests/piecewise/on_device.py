"""python -m tests.piecewise.on_device SCENE FILE: pieces on a device that pretends to be a GPU; writes what it saw.

Run in a process of its own, since the device stays. FILE gets JSON, or tensors where a scene has values.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm_vae.errors import UserError
from ldm_vae.networks.kl import Autoencoder, AutoencoderConfig
from ldm_vae.piecewise import Plan, decode_pieces, encode_pieces, passes
from tests.piecewise.conftest import build
from tools.stand_in.device import stand_in
from tools.stand_in.record import Record

SIDE = 1024  # pixels of the pictures that are counted
SMALL = AutoencoderConfig(block_out_channels=(8, 8, 16), norm_groups=4, layers_per_block=1)


def full_size(dtype: torch.dtype) -> Autoencoder:
    """The network of SDXL, whose weights have no values."""
    with torch.device("meta"):
        model = Autoencoder(AutoencoderConfig())
    model.to("gpu").cast(dtype)
    return model


def counted(record: Record, run: Callable[[Tensor], Any], x: Tensor) -> dict[str, Any]:
    """What a pass took beside its input and its result."""
    record.reset()
    before = record.now
    done = run(x)
    result, plan = done if isinstance(done, tuple) else (done, None)
    found = {
        "kernels": record.kernels.total(),
        "waits": dict(record.waits),
        "pageable": dict(record.pageable),
        "moved": record.up + record.down,
        "peak": record.peak - before - result.nbytes,
    }
    if isinstance(plan, Plan):
        found |= {"strips": plan.strips, "bound": plan.working_bytes, "spill": plan.spill, "work": plan.work}
    return found


def counts(record: Record) -> dict[str, Any]:
    """Pictures of full size: whole, in pieces, and within a bound."""
    found: dict[str, Any] = {}
    for dtype in (torch.bfloat16, torch.float32):
        model = full_size(dtype)
        z = torch.zeros(1, 4, SIDE // 8, SIDE // 8).to("gpu", dtype)
        image = torch.zeros(1, 3, SIDE, SIDE).to("gpu", dtype)
        name = str(dtype).removeprefix("torch.")
        found[f"whole decode {name}"] = counted(record, model.decode, z)
        found[f"whole encode {name}"] = counted(record, model.encode, image)
        found[f"pieces decode {name}"] = counted(record, partial(decode_pieces, model), z)
        found[f"pieces encode {name}"] = counted(record, partial(encode_pieces, model), image)
    found["bounded"] = counted(record, partial(decode_pieces, model, max_memory=1100 * 2**20), z)
    return found


def values(record: Record) -> dict[str, Tensor]:
    """Small pictures by every kind of plan, with the plan's strips, whether it spilled, waits, and bytes moved."""
    model, found = build(SMALL).to("gpu"), {}
    generator = torch.Generator().manual_seed(0)
    given = {"decode": torch.randn(2, 4, 25, 16, generator=generator)}
    given["encode"] = torch.rand(2, 3, 100, 64, generator=generator) * 2 - 1  # rows that strips do not share equally
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ldm_vae.piecewise.plan.DEVICE_STRIP", 2**15)  # so that these pictures are cut
        patch.setattr("ldm_vae.piecewise.plan.DEVICE_CALL", 0.0)  # which in so small a network is nearly all
        for way, run in (("decode", decode_pieces), ("encode", encode_pieces)):
            x = given[way].to("gpu")
            bound = None
            for kind in ("plain", "again", "spilled"):
                # Nothing may be computed again: what has no room must go to the host.
                patch.setattr("ldm_vae.piecewise.plan.MOST_WORK", 1.1 if kind == "spilled" else 32.0)
                record.reset()
                result, plan = run(model, x, max_memory=bound)
                waits, moved = record.waits.total(), record.up + record.down
                bound = bound or result.nbytes + int(0.3 * plan.working_bytes)
                found[f"{way} {kind}"] = result.cpu()
                found[f"{way} {kind} plan"] = torch.tensor([plan.strips, int(plan.spill), waits, moved])
            found[f"{way} given"] = given[way]
    return found


def rooms(record: Record) -> dict[str, Any]:
    """Pictures of 1000 x 1000 pixels on cards with so many GiB free: the decoder's passes, and what was left of it."""
    model, found = full_size(torch.float32), {}
    batches: list[int] = []
    model.decoder.register_forward_hook(lambda _module, given, _result: batches.append(len(given[0])))
    for gibibytes, pictures in ((80.0, 8), (24.0, 8), (5.0, 1), (0.05, 1)):
        z = torch.zeros(pictures, 4, 125, 125).to("gpu")
        batches.clear()
        record.capacity = record.now + int(gibibytes * 2**30)
        record.reset()
        try:
            passes.decode(model, z)
            refusal = None
        except UserError as error:
            refusal = str(error)
        found[str(gibibytes)] = {
            "batches": list(batches),
            "left": record.capacity - record.peak,
            "waits": dict(record.waits),
            "refusal": refusal,
        }
    return found


if __name__ == "__main__":
    scene, file = sys.argv[1:]
    with_values = scene == "values"
    with stand_in(values=with_values) as on, torch.no_grad():
        if with_values:
            torch.save(values(on), file)
        else:
            Path(file).write_text(json.dumps({"counts": counts, "rooms": rooms}[scene](on)))
