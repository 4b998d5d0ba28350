"""The picture of a terminal: what stands on the screen, in its colours, at the width that was asked for."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from ldm_vae.errors import UserError

tool = pytest.importorskip("tools.terminal", reason="needs pexpect and pyte")
WIDE = "import shutil; print(shutil.get_terminal_size().columns)"
BAR = "import time; print('half', end='', flush=True); time.sleep(600)"
OVERWRITTEN = r"print('first\rafter', flush=True); print('\033[1;31mred\033[0m')"


def words(picture: Path) -> str:
    return " ".join(re.findall(r"<text[^>]*>([^<]*)<", picture.read_text()))


def python(program: str) -> str:
    return f'{sys.executable} -c "{program}"'


@pytest.mark.parametrize("columns", [80, 120])
def test_the_command_sees_the_width(columns: int, tmp_path: Path) -> None:
    tool.terminal(tmp_path / "a.svg", python(WIDE), columns=columns)
    assert f">{columns}<" in (tmp_path / "a.svg").read_text()


def test_it_shows_what_a_screen_shows(tmp_path: Path) -> None:
    tool.terminal(tmp_path / "a.svg", python(OVERWRITTEN))
    picture = (tmp_path / "a.svg").read_text()
    shown = re.findall(r'<text class="(\S+)"[^>]*>([^<]*)<', picture)
    assert "after" in [text for _, text in shown] and "first" not in [text for _, text in shown]
    red = next(look for look, text in shown if text == "red")
    assert re.search(rf"\.{red} {{[^}}]*font-weight: bold", picture)


def test_it_stops_when_a_text_stands_there(tmp_path: Path) -> None:
    tool.terminal(tmp_path / "a.svg", python(BAR), until="half")
    assert "half" in words(tmp_path / "a.svg")


def test_a_text_that_never_comes_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'done' never stood on the screen"):
        tool.terminal(tmp_path / "a.svg", python(WIDE), until="done")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_fetched_by_the_picture(tmp_path: Path) -> None:
    tool.terminal(tmp_path / "a.svg", python(WIDE))
    assert re.findall(r"(?:url|src|href)[(=]\"?http", (tmp_path / "a.svg").read_text()) == []
