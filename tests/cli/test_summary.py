"""What several commands say at their end: of reasons, no more than fits."""

from __future__ import annotations

import pytest

from ldm_vae.cli.summary import LONGEST_REASON, say_reasons


@pytest.mark.parametrize("character", ["x", "\x1b"])
def test_a_long_reason_is_cut_where_it_is_shown(character: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Counted as it is printed: of a control character, the four of \\x1b."""
    say_reasons([("name", character * 2 * LONGEST_REASON)])
    shown = capsys.readouterr().out.removeprefix("  1 x ").removesuffix(" (name)\n")
    assert shown == (character.encode("unicode_escape").decode() * LONGEST_REASON)[:LONGEST_REASON] + "…"
