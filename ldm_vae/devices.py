"""The device that a command computes on: which one it is, why it is no other, and what it lacks."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from ldm_vae.errors import UserError
from ldm_vae.launch import is_set
from ldm_vae.printable import counted

if TYPE_CHECKING:  # commands ask for a device by name, and answer --help without waiting for torch
    import torch
    from torch import Tensor

SHARING = ("cpu", "mps", "meta")  # types of devices that share the host's memory, or have none
HIDING = {  # type of device -> variables that hide devices of it from torch
    "cuda": ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"),
    "xpu": ("ZE_AFFINITY_MASK", "ONEAPI_DEVICE_SELECTOR"),
}


@dataclass(frozen=True)
class Choice:
    """The device of this process.

    device: its name, such as cuda:0, as torch reads it.
    reason: what it is, or why it was taken.
    """

    device: str
    reason: str

    def in_words(self) -> str:
        """Such as "cuda:1 (NVIDIA H100, one of 8)" or "cpu (ACCELERATE_USE_CPU is set)"."""
        return f"{self.device} ({self.reason})"


def local_device() -> str:
    """The GPU of this process, or the CPU. Raises UserError as `choose_device` does."""
    return choose_device().device


def choose_device() -> Choice:
    """The device of this process: what accelerate is told by its variables, else a GPU of torch's, else the CPU.

    Raises UserError where this machine has fewer GPUs than processes, and for a device that torch does not know.
    """
    import torch

    processes, place = _processes_here()
    if named := os.environ.get("ACCELERATE_TORCH_DEVICE"):
        return _named(named, processes)
    if is_set("ACCELERATE_USE_CPU"):
        return Choice("cpu", "ACCELERATE_USE_CPU is set")
    found = torch.accelerator.current_accelerator(check_available=True)
    if found is None:
        return Choice("cpu", _why_no_gpu())
    count = torch.accelerator.device_count()
    if processes > count:
        hidden = f", with {' and '.join(said)}" if (said := _hiding(found.type)) else ""
        raise UserError(
            f"{counted(processes, 'process')} on this machine and {counted(count, f'{found.type} device')}{hidden}",
            "start at most one process for each, or set ACCELERATE_USE_CPU=true",
        )
    device = torch.device(found.type, place)
    return Choice(str(device), name_of_device(device) + (f", one of {count}" if count > 1 else ""))


def name_of_device(device: torch.device) -> str:
    """What the maker calls it, such as "NVIDIA H100"; the type where torch does not know."""
    import torch

    describe = getattr(torch.get_device_module(device.type), "get_device_name", None)
    return device.type if describe is None else str(describe(device))


def names_of_devices() -> list[str]:
    """The names of all GPUs that torch sees on this machine."""
    import torch

    found = torch.accelerator.current_accelerator(check_available=True)
    if found is None:
        return []
    return [name_of_device(torch.device(found.type, place)) for place in range(torch.accelerator.device_count())]


def has_bfloat16(device: torch.device) -> bool:
    """Whether a GPU computes in bfloat16 by itself, and so faster than in float32; false where nobody has asked yet."""
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "xpu" and torch.xpu.is_bf16_supported()


def has_float64(device: torch.device) -> bool:
    """Whether a device computes in float64. Those of Apple and some of Intel's do not: it is tried, once."""
    return device.type in ("cpu", "cuda", "meta") or _computes_float64(str(device))


def home_of_float64(device: torch.device) -> torch.device:
    """Where the float64 of a device lives: on the device itself, or on the CPU if the device has none."""
    import torch

    return device if has_float64(device) else torch.device("cpu")


def in_float64(value: Tensor) -> Tensor:
    """The values in float64, on their device; or on the CPU, which waits for the device, if the device has none."""
    return value.to(home_of_float64(value.device)).double()  # in two steps, since copies may convert at their source


def total_memory(device: torch.device) -> int | None:
    """Bytes of a GPU's memory; None for a device that tells none, or whose memory is the host's."""
    module = _teller(device)
    return None if module is None else module.mem_get_info(device)[1]


def free_memory(device: torch.device) -> int | None:
    """Bytes that torch can still have of a GPU's memory, with what its allocator keeps; None as in `total_memory`."""
    module = _teller(device)
    if module is None:
        return None
    kept = module.memory_reserved(device) - module.memory_allocated(device)
    return module.mem_get_info(device)[0] + kept


def peak_memory(device: torch.device) -> int | None:
    """The most bytes of a GPU's memory that tensors have taken at once; None as in `total_memory`."""
    module = _teller(device)
    return None if module is None else module.max_memory_allocated(device)


def _teller(device: torch.device) -> Any:
    """The module of torch that tells of a device's memory; None where there is none."""
    import torch

    module = None if device.type in SHARING else torch.get_device_module(device)
    return module if hasattr(module, "mem_get_info") else None


@cache
def _computes_float64(device: str) -> bool:
    import torch

    try:
        return float(torch.ones((), device=device, dtype=torch.float64) + 1) == 2
    except (RuntimeError, TypeError):  # Intel's, Apple's
        return False


def _processes_here() -> tuple[int, int]:
    """(number of processes of this launch on this machine, number of this one among them)."""
    place = int(os.environ.get("LOCAL_RANK", "0"))
    return max(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), place + 1), place


def _named(named: str, processes: int) -> Choice:
    """The device that ACCELERATE_TORCH_DEVICE names; accelerate gives it to every process."""
    import torch

    said = f"ACCELERATE_TORCH_DEVICE={named}"
    try:
        device = torch.device(named)
    except RuntimeError as error:
        raise UserError(said, f"name a device of torch ({str(error).splitlines()[0][:100]})") from None
    if device.type in HIDING and processes > 1:
        raise UserError(f"{said} gives {counted(processes, 'process')} one device", "leave it out")
    return Choice(str(device), said)


def _hiding(kind: str) -> list[str]:
    """The variables that hide devices of a type from torch, as they are set."""
    return [f"{name}={os.environ[name]}" for name in HIDING.get(kind, ()) if name in os.environ]


def _why_no_gpu() -> str:
    """Why torch computes on the CPU, in its own words where it has some."""
    import torch

    built = torch.accelerator.current_accelerator()
    if built is None:
        return "this torch is built for the CPU alone"
    if said := _hiding(built.type):
        return f"torch sees no {built.type} device with {' and '.join(said)}"
    if built.type == "cuda":
        try:
            torch.cuda.init()  # type: ignore[no-untyped-call]  # of torch's own
        except RuntimeError as error:
            return str(error).split(". ")[0].rstrip(".")
    return f"torch sees no {built.type} device"
