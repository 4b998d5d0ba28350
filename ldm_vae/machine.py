"""Tells faults of the machine (too little memory, too many open files, a disk that fails) from all other errors.

They say nothing about the data: no sample is left out, and no file is replaced or recommended for removal because of
them.
"""

from __future__ import annotations

import ctypes
import errno
import os

from ldm_vae.errors import UserError, in_one_line

# What a disk, a file server or the kernel answers when it fails, whatever is asked for.
FAULTS = tuple(
    getattr(errno, name)
    for name in (
        *("EIO", "ESTALE", "EMFILE", "ENFILE", "ENOMEM", "EAGAIN", "ETIMEDOUT", "EBUSY", "EINTR", "ENOLCK", "ENOBUFS"),
        *("EREMOTEIO", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH", "ENETRESET", "ENODEV", "ENXIO"),
        *("ECONNRESET", "ECONNABORTED", "ECONNREFUSED", "ENOTCONN", "ESHUTDOWN", "ECOMM", "EPROTO", "EBADMSG"),
    )
    if hasattr(errno, name)
)
# What torch, imagecodecs and the loader of libraries say in errors that are no MemoryError.
NO_MEMORY = (
    *("out of memory", "can't allocate memory", "cannot allocate memory", "insufficient memory", "bad_alloc"),
    *("failed to map segment", "can't start new thread", "unable to allocate", "could not create a primitive"),
    "_status_alloc_failed",  # of cuBLAS and cuDNN
)
REMEDY = "this machine fails, or a disk or server of it, not the data: see to it, then run this again"


def out_of_memory(error: BaseException) -> bool:
    """Whether an error, or what it was raised from, says that there is too little memory."""
    text = str(error).lower()
    by_name = type(error).__name__ == "OutOfMemoryError"  # torch's, which is not imported for this
    by_text = isinstance(error, RuntimeError | ImportError) and any(words in text for words in NO_MEMORY)
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM or by_name or by_text:
        return True
    return error.__cause__ is not None and out_of_memory(error.__cause__)


def fault_of_machine(error: BaseException) -> UserError | None:
    """What a person is told of an error that is a fault of the machine; None of any other error."""
    if out_of_memory(error):
        remedy = "use a machine or a limit (ulimit -v) with more, smaller batches or fewer workers, then run it again"
        return UserError("too little memory", remedy)
    if isinstance(error, OSError) and error.errno in FAULTS:
        return UserError(in_one_line(error), REMEDY)
    if isinstance(error, ImportError) and any(os.strerror(fault) in str(error) for fault in FAULTS):
        return UserError(in_one_line(error), REMEDY)
    return None


def forget_failed_allocations() -> None:
    """Call it before a decoder, so that `allocation_failed` tells of this decoder."""
    place = _errno_of_thread()
    if place is not None:
        place[0] = 0


def allocation_failed() -> bool:
    """Whether the last call of this thread that failed was one for memory.

    Decoders such as libjpeg and libwebp report that as they report damaged bytes. Only the C library's errno knows.
    """
    place = _errno_of_thread()
    return place is not None and place[0] == errno.ENOMEM


def _errno_of_thread() -> ctypes._Pointer[ctypes.c_int] | None:
    return None if _ERRNO is None else _ERRNO()


def _find_errno() -> ctypes._NamedFuncPointer | None:
    library = ctypes.CDLL(None)
    for name in ("__errno_location", "__error"):  # of Linux, and of macOS
        if hasattr(library, name):
            function = getattr(library, name)
            function.restype = ctypes.POINTER(ctypes.c_int)
            return function
    return None


_ERRNO = _find_errno()
