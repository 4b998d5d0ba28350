"""What is told while pip installs, and that its errors are seen. pip itself runs, on a package that is made here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.conftest import ROOT
from tools.install import tell


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("  Downloading torch-2.14.1-cp311-cp311-manylinux_2_28_x86_64.whl (915.2 MB)", ["torch-2.14.1 (915.2 MB)"]),
        ("Using cached scipy-1.17.1-cp311.whl.metadata (62 kB)", []),
        ("Using cached nvidia_cublas-13.1-py3-none.whl (1.1 GB)", ["nvidia_cublas-13.1 (1.1 GB), from the cache"]),
        ("  Downloading tqdm-4.70.1-py3-none-any.whl (78 kB)", []),
        ("Requirement already satisfied: numpy in /somewhere (2.4.6)", []),
        ("Installing collected packages: a, b, c", ["unpacking 3 packages, which takes a minute or two"]),
        ("Successfully installed a-1 b-2 c-3", ["done"]),
    ],
)
def test_large_downloads_and_unpacking_are_told(line: str, told: list[str]) -> None:
    assert list(tell(f"{line}\n")) == told


def test_a_large_file_of_a_local_index_is_told(tmp_path: Path) -> None:
    large = tmp_path / "torch-9.9-py3-none-any.whl"
    with large.open("wb") as file:
        file.truncate(30_000_000)
    assert list(tell(f"Processing {large} (from ldm-vae)\n")) == ["torch-9.9 (30.0 MB), from the cache"]
    assert list(tell(f"Processing {tmp_path}\n")) == []


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """The python of an empty environment."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    return tmp_path / "env" / "bin" / "python"


def test_what_pip_refuses_is_seen_and_fails(environment: Path, tmp_path: Path) -> None:
    command: list[str | Path] = [environment, ROOT / "tools" / "install.py", "--no-index", "surely-missing-package"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    log = environment.parent.parent / "install.log"
    assert done.returncode == 1
    assert "No matching distribution found for surely-missing-package" in done.stderr
    assert done.stderr.endswith(f"pip ended with 1; what it did before is in {log}\n")
    assert done.stdout == "" and log.exists()


def test_it_installs_without_this_project(environment: Path, tmp_path: Path) -> None:
    """As `make` runs it: in an environment that has nothing but pip."""
    (tmp_path / "wheel").mkdir()
    wheel = tmp_path / "wheel" / "tiny-1-py3-none-any.whl"
    with ZipFile(wheel, "w") as file:
        file.writestr("tiny.py", "")
        file.writestr("tiny-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1\n")
        file.writestr("tiny-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr("tiny-1.dist-info/RECORD", "")
    command: list[str | Path] = [environment, ROOT / "tools" / "install.py", "--no-index", wheel]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert [line.split(" s  ")[1] for line in done.stdout.splitlines()] == [
        "unpacking 1 package, which takes a minute or two",
        "done",
    ]
    subprocess.run([environment, "-c", "import tiny"], cwd=tmp_path, check=True)
