"""Errors of the system about a file, whoever raises them: OSErrors that name the file, and a line for each.

Nobody takes a file that cannot be read just now for one that is missing or damaged. Such errors pass, up to the
outermost layer of a command, which puts them into a line (`ending.py`). NO_FILE are those that do say something about
the file.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb

from ldm_vae.errors import in_one_line
from ldm_vae.machine import REMEDY, fault_of_machine, out_of_memory

NO_FILE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)  # there is no file of this name
_PLACE = "change its rights, or name another place"
_ROOM = "make room there, then run it again"
_REMEDIES = {
    errno.ENOENT: "something removes files there meanwhile: see to it, then run it again",
    errno.EMFILE: "allow more open files (ulimit -n), then run it again",
    errno.ENFILE: "too many files are open on this machine: end other programs, then run it again",
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EACCES: _PLACE,
    errno.EPERM: _PLACE,
    errno.EROFS: "name another place",
}
# How libraries that are not written in Python say it: the number of the system's error is only in the text.
_NUMBER = re.compile(
    r"os error (\d+)"  # safetensors
    r"|code: (\d+)"  # safetensors 0.5: Os { code: 28, ...
    r"|\((\d+)\)$"  # torch: unable to stat the file <x>: Input/output error (5)
)


def system_error(error: BaseException, path: Path | None = None) -> OSError | MemoryError | None:
    """The fault of the machine that an error is about; None where it is about something else.

    path: the file that was read or written, for errors that don't know it.
    """
    if isinstance(error, MemoryError):
        return error
    if isinstance(error, OSError) and error.errno is not None:
        if error.filename is None and path is not None:
            error.filename = str(path)
        return error
    if out_of_memory(error):
        return MemoryError(in_one_line(error))
    text = str(error)
    if not isinstance(error, OSError | RuntimeError) and type(error).__name__ != "SafetensorError":
        return None
    if match := _NUMBER.search(text):
        number = int(next(filter(None, match.groups())))
        if isinstance(error, RuntimeError) and os.strerror(number) not in text:
            return None  # a number at the end that is no error of the system
        return OSError(number, os.strerror(number), *([] if path is None else [str(path)]))
    return None


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Around what reads or writes a file: errors of the system become OSErrors that name it, whoever raised them."""
    try:
        yield
    except Exception as error:
        fault = system_error(error, path)
        if fault is None and isinstance(error, FileNotFoundError):  # safetensors says so of all that it cannot open
            path.stat()  # where the file is lost after all, this says so
            fault = OSError(errno.EIO, "cannot be opened now", str(path))
        if fault is None or fault is error:
            raise
        raise fault from error


def describe_fault(error: BaseException) -> str | None:
    """An error of the system in a line: the file, what the system says, and the remedy. None for any other error."""
    fault = system_error(error)
    if fault is None or isinstance(fault, MemoryError):
        told = fault_of_machine(error)  # memory, and libraries that cannot be loaded
        return None if told is None else f"{told.what} {_place(error)}: {told.remedy}"
    if isinstance(fault, NO_FILE) and fault.filename is None:
        return None  # a mistake of ours
    what = _place(error) if fault.filename is None else str(fault.filename)
    return " ".join(f"{what}: {fault.strerror}: {_REMEDIES.get(fault.errno or 0, REMEDY)}".split())


def _place(error: BaseException) -> str:
    """The innermost function of ours that an error came through."""
    names = [
        (str(frame.f_globals.get("__name__", "")), frame.f_code.co_name) for frame, _ in walk_tb(error.__traceback__)
    ]
    ours = [f"{module}.{name}" for module, name in names if module.startswith(("ldm_vae.", "train.", "tools."))]
    return f"(in {ours[-1]})" if ours else "(at the start)"
