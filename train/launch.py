"""What a launcher was told beside the recipe: what contradicts the recipe is refused, since accelerate would ignore it.

`accelerate launch` hands on its options in the environment, together with defaults that nobody chose, and drops those
that it needs for DeepSpeed only. So what a person said is looked for where they said it (`ldm_vae/launch.py`). Where
that cannot be seen, the environment of this process is all there is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from accelerate import Accelerator, DistributedType
from accelerate.commands.config.config_args import default_config_file

from ldm_vae.choices import FORMER_PRECISIONS
from ldm_vae.errors import UserError
from ldm_vae.launch import Launch, find_launch, how_to_launch, is_set, refuse_one_for_several
from ldm_vae.printable import counted
from train.recipe import Recipe, resolve_precision

REFUSED_LAUNCHES = {  # environment variable that accelerate sets -> what was asked for
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism configuration",
}
VARIABLES = {  # option of `accelerate launch` -> the environment variable of the same meaning
    "mixed_precision": "ACCELERATE_MIXED_PRECISION",
    "gradient_accumulation_steps": "ACCELERATE_GRADIENT_ACCUMULATION_STEPS",
    "gradient_clipping": "ACCELERATE_GRADIENT_CLIPPING",
    "dynamo_backend": "ACCELERATE_DYNAMO_BACKEND",
}
LAUNCHED = ("ACCELERATE_DYNAMO_MODE", "FORK_LAUNCHED")  # every launcher of accelerate sets one of them, and no person
DATA_PARALLEL = (
    DistributedType.NO,
    DistributedType.MULTI_GPU,
    DistributedType.MULTI_XPU,
    DistributedType.MULTI_CPU,
)
DEFAULT = "no"  # what the launchers set where nobody chose


@dataclass(frozen=True)
class Said:
    """What a person told accelerate.

    where: the option, the variable, or the file that says it.
    value: what it says.
    """

    where: str
    value: str


def check_launch(recipe: Recipe) -> None:
    """Raises UserError for a launch that would train wrongly, or otherwise than the recipe says."""
    for variable, name in REFUSED_LAUNCHES.items():
        if is_set(variable):
            raise UserError(
                f"{name} is not supported",
                "it shards one model and this trains two: launch with plain data parallelism (DDP)",
            )
    launch = find_launch(os.getppid())
    compiler = said_by_a_person("dynamo_backend", launch, os.environ)
    if compiler is not None and compiler.value.lower() != DEFAULT:
        raise UserError(
            f"accelerate is told {compiler.value} by {compiler.where}",
            "leave it out: `compile=true` in the recipe compiles each network, and keeps the names of weights",
        )
    precision, optimizer = resolve_precision(recipe).precision, recipe.optimizer
    here = f", which is {precision} here" if recipe.precision == "auto" else ""
    clip = "null" if optimizer.clip is None else str(optimizer.clip)
    accumulation = str(optimizer.accumulation)
    for option, field, own, meant in (
        ("mixed_precision", "precision", recipe.precision + here, "bf16" if precision == "bfloat16" else DEFAULT),
        ("gradient_accumulation_steps", "optimizer.accumulation", accumulation, accumulation),
        ("gradient_clipping", "optimizer.clip", clip, clip),
    ):
        said = said_by_a_person(option, launch, os.environ)
        if said is None or _same(said.value, meant):
            continue
        known = said.value.lower() in (DEFAULT, "bf16") or re.fullmatch(r"[\d.]+", said.value)
        value = FORMER_PRECISIONS.get(said.value.lower(), said.value)  # which were accelerate's words
        raise UserError(
            f"accelerate is told {said.value} by {said.where}, and the recipe says {field} {own}",
            f"leave {said.where} out" + (f", or set {field}={value}" if known else ""),
        )


def check_processes(accelerator: Accelerator) -> None:
    """Raises UserError where processes train side by side without each other, or are fewer than asked for."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world != accelerator.num_processes:
        raise UserError(
            f"WORLD_SIZE is {world} and accelerate sees {counted(accelerator.num_processes, 'process')}",
            how_to_launch("cpu", "N"),
        )
    if accelerator.distributed_type not in DATA_PARALLEL:
        raise UserError(f"{accelerator.distributed_type} is not supported", "launch with data parallelism (DDP)")
    refuse_one_for_several(accelerator.num_processes, accelerator.device.type)


def said_by_a_person(option: str, launch: Launch | None, environment: Mapping[str, str]) -> Said | None:
    """What a person told accelerate of an option; None where nobody said anything.

    environment: that of this process.
    """
    typed = None if launch is None else getattr(launch.options, option, None)
    if typed is not None:
        return Said(f"--{option}", str(typed))
    variable = VARIABLES[option]
    exported = {} if launch is None else launch.environment
    if value := _chosen(environment, variable):
        if launch is not None and value != exported.get(variable):
            return Said(f"{option} of {launch.options.config_file or default_config_file}", value)
        return Said(variable, value)
    if value := _chosen(exported, variable):  # and the launcher has overwritten it with its default
        return Said(variable, value)
    return None


def _chosen(environment: Mapping[str, str], variable: str) -> str | None:
    """The value of a variable, unless it is what launchers set by default."""
    value = environment.get(variable)
    default = value is not None and value.lower() == DEFAULT and any(name in environment for name in LAUNCHED)
    return None if default else value


def _same(said: str, meant: str) -> bool:
    """Whether two words are equal, as numbers where they are numbers."""
    try:
        return float(said) == float(meant)
    except ValueError:
        return said.lower() == meant.lower()
