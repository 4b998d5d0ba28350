"""How float32 is computed: PyTorch's flags for it, set around our own networks and put back.

A GPU can round the factors of float32 convolutions and matrix products to TF32, which keeps 10 bits of 23, and oneDNN
can round them to TF32 or bfloat16 on a CPU. PyTorch lets cuDNN's convolutions do so unless told otherwise.

The flags are the process's, not the thread's: while one thread needs exact float32, all others get it, too. Requests of
all threads are counted. The first one notes the flags, the last one to end puts them back, and exact wins meanwhile.

PyTorch has the flags twice: `allow_tf32` with `set_float32_matmul_precision`, and, from 2.9 on, `fp32_precision` for
each operation. It refuses to read the former where the two disagree. So both are set, here and when they are put back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any, Literal

import torch

EXACT = "exact"  # what records say of float32 that nothing rounds
INHERITED = "none"  # PyTorch's word for a flag that has no value of its own


@contextmanager
def exact_float32() -> Iterator[None]:
    """A context, or a decorator, in which float32 is computed as such on every device, whatever else was asked for."""
    with _REQUESTS.made("exact"):
        yield


@contextmanager
def tf32_convolutions() -> Iterator[None]:
    """A context in which a GPU may round the factors of convolutions to TF32, as PyTorch has it where nobody asks.

    Matrix products, a CPU, and everything within `exact_float32` are exact.
    """
    with _REQUESTS.made("tf32"):
        yield


def float32_in_words(device: str) -> str:
    """How a device computes float32 at this moment: "exact", or what it rounds, such as "conv tf32, rnn tf32".

    device: its type, such as cuda.
    """
    library = "cuda" if device == "cuda" else "onednn"
    rounded = [
        f"{operation.removeprefix(library).strip()} {flag}"
        for operation, flag in sorted(_present_flags().items())
        if operation.startswith(library) and flag not in (INHERITED, "ieee")
    ]
    return ", ".join(rounded) or EXACT


Way = Literal["exact", "tf32"]


@dataclass(frozen=True)
class _Found:
    """The flags as a caller has set them.

    matmul: of `set_float32_matmul_precision`.
    cudnn, onednn: of `allow_tf32`; the one of oneDNN is for Intel's GPUs.
    own: of `fp32_precision`, by operation.
    """

    matmul: str
    cudnn: bool
    onednn: bool
    own: dict[str, str]


class _Requests:
    """What the threads of this process have asked for and not yet given back."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._open: Counter[Way] = Counter()
        self._found: _Found | None = None
        self._present: Way | None = None

    @contextmanager
    def made(self, way: Way) -> Iterator[None]:
        with self._lock:
            self._open[way] += 1
            self._follow()
        try:
            yield
        finally:
            with self._lock:
                self._open[way] -= 1
                self._follow()

    def _follow(self) -> None:
        """Sets the flags that the open requests ask for."""
        wanted: Way | None = "exact" if self._open["exact"] else "tf32" if self._open["tf32"] else None
        if wanted == self._present:
            return
        if self._found is None:
            self._found = _take_flags()
        if wanted is None:
            _put_back(self._found)
            self._found = None
        else:
            _set_flags(wanted)
        self._present = wanted


_REQUESTS = _Requests()


def _operations() -> dict[str, tuple[Any, Any]]:
    """Operation -> what holds its `fp32_precision`, and what holds the one that it inherits. Empty before PyTorch 2.9.

    `torch.backends.cudnn` holds what all operations of CUDA inherit, those of cuBLAS, too.
    """
    backends: Any = torch.backends
    if not hasattr(backends, "fp32_precision"):
        return {}
    libraries = {"cuda": (backends.cuda.matmul, backends.cudnn), "onednn": (backends.mkldnn.matmul, backends.mkldnn)}
    return {
        f"{name} {operation}": (holder, library)
        for name, (matmul, library) in libraries.items()
        for operation, holder in (("matmul", matmul), ("conv", library.conv), ("rnn", library.rnn))
    }


def _present_flags() -> dict[str, str]:
    """Operation -> how it computes float32, such as ieee or tf32."""
    if operations := _operations():
        return {name: holder.fp32_precision for name, (holder, _) in operations.items()}
    convolutions = "tf32" if torch.backends.cudnn.allow_tf32 else INHERITED
    products = {"highest": INHERITED, "high": "tf32", "medium": "tf32"}[torch.get_float32_matmul_precision()]
    on_cpu = "bf16" if torch.get_float32_matmul_precision() == "medium" else INHERITED
    return {"cuda matmul": products, "cuda conv": convolutions, "cuda rnn": convolutions, "onednn matmul": on_cpu}


def _take_flags() -> _Found:
    """Reads all flags, and leaves float32 exact.

    Whether an operation has a flag of its own cannot be read. Where it is that of its library, it counts as inherited.
    From PyTorch 2.14 on, the flags of cuDNN that nobody has set come back as set, with the same value.
    """
    operations, own = _operations(), {}
    for name, (holder, library) in operations.items():
        flag = holder.fp32_precision
        own[name] = INHERITED if flag == library.fp32_precision else flag
    for holder, _ in operations.values():
        holder.fp32_precision = "ieee"
    try:
        cudnn = torch.backends.cudnn.allow_tf32
    except RuntimeError:  # it disagrees with ieee, and so it is True
        cudnn = True
    return _Found(torch.get_float32_matmul_precision(), cudnn, _onednn_on_gpu(), own)


def _onednn_on_gpu() -> bool:
    return bool(getattr(torch.backends.mkldnn, "allow_tf32", False))  # None without an Intel GPU


def _set_flags(way: Way) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = way == "tf32"
    _allow_onednn_on_gpu(False)
    rounded = ("cuda conv", "cuda rnn") if way == "tf32" else ()  # cuDNN's former flag is for both
    for name, (holder, _) in _operations().items():
        holder.fp32_precision = "tf32" if name in rounded else "ieee"


def _allow_onednn_on_gpu(allowed: bool) -> None:
    backend: Any = torch.backends.mkldnn
    if allowed != _onednn_on_gpu():
        backend.allow_tf32 = allowed


def _put_back(found: _Found) -> None:
    torch.set_float32_matmul_precision(found.matmul)
    torch.backends.cudnn.allow_tf32 = found.cudnn
    _allow_onednn_on_gpu(found.onednn)
    for name, (holder, _) in _operations().items():
        holder.fp32_precision = found.own[name]
