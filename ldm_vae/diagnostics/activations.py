"""The largest value that each layer outputs, and whether float16 can hold it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from ldm_vae.codec import LatentCodec
from ldm_vae.diagnostics.findings import Axis, Chart, Line, Quantity, Section, Verdict, gaps
from ldm_vae.diagnostics.probes import Done, Probes, in_batches, silent
from ldm_vae.interop.export import FLOAT16_SAFE
from ldm_vae.latents.measure import largest_outputs
from ldm_vae.printable import counted

FLOAT16_LARGEST = torch.finfo(torch.float16).max  # 65504
LARGEST = "largest"  # name of what is watched
BINARY16 = "IEEE 754 binary16: largest finite value 65504"


def find_block(model: nn.Module, name: str) -> str | None:
    """The block that holds the module `name` of a network; None for a module that holds blocks itself.

    Lists of modules that have parts of their own, such as the levels of an encoder, are opened, and so is whatever
    holds such a list. What remains are the blocks: residual blocks, attentions, and layers between them. A network
    without such lists has its children as blocks.
    """
    module, path = model, ""
    for part in name.split("."):
        module, path = getattr(module, part), f"{path}.{part}".removeprefix(".")
        if not _holds_blocks(module):
            return path
    return None


def _holds_blocks(module: nn.Module) -> bool:
    lists = (part for part in module.modules() if isinstance(part, nn.ModuleList | nn.Sequential))
    return any(any(member.children()) for part in lists for member in part)


def largest_by_block(model: nn.Module, largest: Mapping[str, float]) -> dict[str, float]:
    """The largest value of each block.

    largest: name of a module -> its largest value, as `largest_outputs` gives them.
    """
    blocks: dict[str, float] = {}
    for name, value in largest.items():
        if (block := find_block(model, name)) is not None:
            blocks[block] = max(blocks.get(block, 0.0), value)
    return blocks


def _watched(codec: LatentCodec, image: Tensor) -> tuple[dict[str, Tensor], list[str]]:
    """The largest |output| of each module that gives one, (N,), and their names."""
    with largest_outputs(codec.model) as outputs:
        codec.decode_raw(codec.draw(codec.moments(image)))
    return {LARGEST: torch.stack([*outputs.values()]) if outputs else image.new_empty(0)}, list(outputs)


def inspect_activations(codec: LatentCodec, probes: Probes, done: Done = silent) -> Section:
    title = "Range of activations"
    largest: dict[str, float] = {}
    for image, tensors, names in in_batches(codec, partial(_watched, codec), probes.image):
        for name, value in zip(names, tensors[LARGEST].tolist(), strict=True):
            largest[name] = max(largest.get(name, 0.0), value)
        done(len(image), len(probes.image))
    if not largest:
        statement = "Not measured, because no module of this network returns a tensor."
        verdict = Verdict(name="fp16_overflow", level="unknown", statement=statement)
        return Section(name="activations", title=title, verdicts=(verdict,))
    blocks = largest_by_block(codec.model, largest) or largest
    layer, value = max(largest.items(), key=lambda pair: pair[1])
    finite = math.isfinite(value)
    dtype = codec.precision
    over = f"over {counted(len(probes.image), 'probe')}, encoder and decoder, in {dtype}"
    numbers = (
        Quantity(
            name="largest_activation", title="Largest activation", value=value if finite else None,
            missing="" if finite else f"{layer} gives infinity in {dtype}",
            definition=f"Largest absolute output of any module, {over}; here that of {layer}.",
        ),
        Quantity(
            name="float16_margin", title="Room below float16's limit", unit="times", source=BINARY16,
            value=FLOAT16_LARGEST / value if value and finite else None,
            missing="" if value and finite else "the largest activation is zero or infinite",
            definition=f"{FLOAT16_LARGEST:.0f} divided by the largest activation.",
        ),
    )  # fmt: skip
    values = np.array(list(blocks.values()))
    chart = Chart(
        name="largest_by_block", title="Largest activation of each block", source=BINARY16, kind="bar",
        definition=f"Largest absolute output of any module of the block, {over}; float16 ends at "
        f"{FLOAT16_LARGEST:.0f}.",
        x=Axis(title="block"), y=Axis(title="largest |output|", scale="log" if values.min() > 0 else "linear"),
        lines=(Line(label="", x=tuple(blocks), y=gaps(values)),),
    )  # fmt: skip
    return Section(
        name="activations", title=title, numbers=numbers, charts=(chart,),
        verdicts=(_verdict(layer, value),),
    )  # fmt: skip


def _verdict(layer: str, value: float) -> Verdict:
    statement = f"The largest activation is {value:.4g} ({layer}); float16 ends at {FLOAT16_LARGEST:.0f}."
    if value <= FLOAT16_SAFE:
        return Verdict(name="fp16_overflow", level="good", statement=statement)
    return Verdict(
        name="fp16_overflow",
        level="bad" if value > FLOAT16_LARGEST else "warning",
        statement=f"{statement} Above {FLOAT16_SAFE:.0f}, other images and sums inside of kernels may exceed that.",
        advice="Run the codec in float32 or bfloat16. `ldm-vae export` writes force_upcast, so that diffusers runs it "
        "in float32. To mend the weights, finetune (model.init_from) with optimizer.kind: adamw and "
        "optimizer.weight_decay.",
    )
