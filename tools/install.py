"""Installs with pip, and shows what takes long: python tools/install.py ARGUMENTS of `pip install`

pip alone prints hundreds of lines, or with --quiet nothing for minutes. Here is a line for each large download, and one
while the packages are unpacked; the rest lies in install.log beside the environment's programs. What pip says on stderr
is shown as it is, and its exit code is that of this command. It runs before anything is installed.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

LARGE = 20.0  # MB; a second or more of most lines
FETCHED = re.compile(r"(Downloading|Using cached) (\S+) \(([\d.]+) ([kMG]B)\)")
MEGABYTES = {"kB": 1e-3, "MB": 1.0, "GB": 1e3}


def main(arguments: list[str]) -> int:
    """Installs, and returns pip's exit code."""
    log = Path(sys.prefix) / "install.log"
    # Unbuffered, or the lines would come when it is all over.
    command = [sys.executable, "-u", "-m", "pip", "install", "--progress-bar", "off", *arguments]
    with (
        log.open("w", encoding="utf-8") as file,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8", errors="replace") as pip,
    ):
        assert pip.stdout is not None
        start = time.monotonic()
        for line in pip.stdout:
            file.write(line)
            for told in tell(line):
                print(f"  {time.monotonic() - start:4.0f} s  {told}", flush=True)
    if pip.returncode:
        print(f"pip ended with {pip.returncode}; what it did before is in {log}", file=sys.stderr)
    return pip.returncode


def tell(line: str) -> Iterable[str]:
    """What a line of pip's means, for whoever waits; nothing for most lines."""
    if line.startswith("Processing ") and (local := Path(line.split()[1])).is_file():
        line = f"Using cached {local.name} ({local.stat().st_size / 1e6:.1f} MB)"  # of a folder that serves as an index
    if found := FETCHED.search(line):
        verb, name, size, unit = found.groups()
        if float(size) * MEGABYTES[unit] >= LARGE:
            package = "-".join(Path(name).name.split("-")[:2])
            yield f"{package} ({size} {unit}){'' if verb == 'Downloading' else ', from the cache'}"
    elif line.startswith("Installing collected packages:"):
        count = line.count(",") + 1
        yield f"unpacking {count} package{'s' if count > 1 else ''}, which takes a minute or two"
    elif line.startswith("Successfully installed"):
        yield "done"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
