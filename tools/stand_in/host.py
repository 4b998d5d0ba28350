"""What else a program asks of a GPU: pinned memory, streams, events, free memory; modules that move, and threads."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor, nn

from tools.stand_in.record import RECORD
from tools.stand_in.tensor import NAME, DeviceTensor, Mode, Settings, is_pinned, on_device, pin


class Event:
    """A mark in a stream. All is done at once here, so that there is nothing to wait for: the wait is counted."""

    def __init__(self, device: Any = None, **_: Any) -> None:
        pass

    def record(self, stream: Stream | None = None) -> None:
        pass

    def wait(self, stream: Stream | None = None) -> None:
        """Makes a stream wait, and no host."""

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        RECORD.wait("event")


class Stream:
    """A queue of work beside the usual one."""

    def __init__(self, device: Any = None, **_: Any) -> None:
        pass

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def wait_stream(self, other: Stream) -> None:
        """Makes this stream wait, and no host."""

    def wait_event(self, event: Event) -> None:
        """Makes this stream wait, and no host."""

    def record_event(self, event: Event | None = None) -> Event:
        return event or Event()

    def synchronize(self) -> None:
        RECORD.wait("stream")


def install() -> None:
    """Puts these in torch's place, for the rest of the process."""
    Tensor.pin_memory = lambda self, *_: self if is_pinned(self) else pin(self.clone())  # type: ignore[method-assign]
    Tensor.is_pinned = lambda self, *_: is_pinned(self)  # type: ignore[method-assign]
    Tensor.record_stream = lambda self, stream: None  # type: ignore[method-assign,assignment]
    torch.Event, torch.Stream = Event, Stream  # type: ignore[misc,assignment]
    torch.accelerator.current_stream = lambda *_: Stream()  # type: ignore[assignment]
    torch.accelerator.synchronize = lambda *_: RECORD.wait("synchronize")
    module: Any = torch.get_device_module(NAME)
    module.synchronize = lambda *_: RECORD.wait("synchronize")
    module.mem_get_info = lambda *_: (RECORD.capacity - RECORD.now, RECORD.capacity)
    module.empty_cache = lambda: None
    module.max_memory_allocated = lambda *_: RECORD.peak
    module.reset_peak_memory_stats = lambda *_: RECORD.reset()
    module.set_per_process_memory_fraction = _limit
    module.memory_allocated = module.memory_reserved = lambda *_: RECORD.now
    module.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]
    torch.inference_mode = torch.no_grad  # type: ignore[misc,assignment]  # its tensors know no subclass
    _move_modules()
    _follow_threads()


def _limit(fraction: float, *_: Any) -> None:
    """Lets this process take a share of the memory; `mem_get_info` goes on telling of all, as CUDA's does."""
    RECORD.limit = int(fraction * RECORD.capacity)


def _move_modules() -> None:
    """Lets modules move and change type: torch refuses to put a tensor of another class into a parameter."""
    plain = nn.Module.to

    def to(self: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        device, *_ = torch._C._nn._parse_to(*args, **kwargs)
        if device is not None and device.type == NAME:
            for module in self.modules():
                _move(module)
        return plain(self, *args, **kwargs)

    nn.Module.to = to  # type: ignore[method-assign,assignment]
    plain_apply: Any = nn.Module._apply

    def apply(self: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        result = plain_apply(self, *args, **kwargs)
        for parameter in self._parameters.values():
            if isinstance(parameter, DeviceTensor) and parameter.contents.dtype != parameter.dtype:
                # torch has set the data of the parameter, but does not know of its contents.
                parameter.contents = parameter.contents.to(parameter.dtype)
                RECORD.allocate(parameter.contents)
        return result

    nn.Module._apply = apply  # type: ignore[method-assign]


def _move(module: nn.Module) -> None:
    for name, parameter in module._parameters.items():
        if parameter is not None and not isinstance(parameter, DeviceTensor):
            moved = on_device(_copy(parameter))
            module._parameters[name] = nn.Parameter(moved, parameter.requires_grad)
    for name, buffer in module._buffers.items():
        if buffer is not None and not isinstance(buffer, DeviceTensor):
            module._buffers[name] = on_device(_copy(buffer))


def _copy(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.to("meta") if Settings.contents == "meta" else tensor.clone()


def _follow_threads() -> None:
    """Turns the device on in threads that are started from now on: a mode of torch holds for one thread."""
    plain = threading.Thread.run

    def run(self: threading.Thread) -> None:
        with Mode():  # type: ignore[no-untyped-call]
            plain(self)

    threading.Thread.run = run  # type: ignore[method-assign]
