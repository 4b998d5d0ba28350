"""What a person wrote into a model card stays when it is written anew, and nothing that export wrote stays twice."""

from __future__ import annotations

import pytest

from ldm_vae.errors import UserError
from ldm_vae.interop.card_update import BEGIN, Card, update_card

OLD = Card("library_name: diffusers\n", "", "# Codec\n\npsnr 20\n", "").text()
NEW = Card("library_name: ldm_vae\ntags:\n- vae\n", "", "# Codec\n\npsnr 30\n", "").text()


def test_parts_come_back() -> None:
    card = Card("a: 1\n", "above", "ours\n", "below\n\nmore")
    assert Card.parse(card.text()) == card
    assert Card.parse(card.text()).text() == card.text()
    assert Card.parse("no header") == Card("", "", None, "no header")
    assert Card.parse("") == Card("", "", None, "")


def test_without_a_person_the_new_card_is_written() -> None:
    assert update_card(OLD, NEW) == (NEW, False)


@pytest.mark.parametrize(
    ("above", "below"), [("# Ours\n\nintro", ""), ("", "Cite us."), ("intro", "Cite us.\n\n---\n\nEnd")]
)
def test_text_around_the_marks_stays_where_it_is(above: str, below: str) -> None:
    card = Card.parse(OLD)
    text, kept = update_card(Card(card.header, above, card.part, below).text(), NEW)
    assert Card.parse(text) == Card(Card.parse(NEW).header, above, "# Codec\n\npsnr 30\n", below)
    assert not kept
    assert update_card(text, NEW) == (text, False)  # and once more


def test_text_without_marks_is_kept_below() -> None:
    """0.1.0 wrote no marks, so what a person changed in its cards cannot be told."""
    text, kept = update_card("---\nlicense: mit\n---\n\n# Codec\n\npsnr 10, see our paper\n", NEW)
    assert kept
    assert text.index("psnr 30") < text.index("psnr 10, see our paper")
    assert text.startswith("---\nlicense: mit\nlibrary_name: ldm_vae\n")


def test_a_change_between_the_marks_is_kept_below() -> None:
    text, kept = update_card(OLD.replace("psnr 20", "psnr 20, by our own script"), NEW)
    assert kept and text.count(BEGIN) == 1
    assert text.index("psnr 30") < text.index("psnr 20, by our own script")


def test_metadata_of_a_person_stays() -> None:
    old = OLD.replace("library_name: diffusers\n", "datasets: [a, b]  # ours\ntags: [mine, vae]\nlicense: mit\n")
    header = Card.parse(update_card(old, NEW)[0]).header
    assert header == "datasets: [a, b]  # ours\ntags: [mine, vae]\nlicense: mit\nlibrary_name: ldm_vae\n"


@pytest.mark.parametrize(
    ("theirs", "kept"), [("# only a comment\n", "# only a comment\n"), ("tags: mine\n", "tags:\n- mine\n- vae\n")]
)
def test_metadata_of_another_form_stays(theirs: str, kept: str) -> None:
    text, _ = update_card(f"---\n{theirs}---\n\n# Ours\n", NEW)
    assert Card.parse(text).header.startswith(kept) and "library_name: ldm_vae" in text


@pytest.mark.parametrize(
    "header", ["a: [\n", "- a\n", "text\n", "a: 1\na: 2\n", "date: 2024-13-45\n", "n: !!int x\n", f"a: {'[' * 5000}\n"]
)
def test_metadata_that_cannot_be_read_is_refused(header: str) -> None:
    with pytest.raises(UserError, match="of the model card are no YAML mapping"):
        update_card(f"---\n{header}---\n\n# Ours\n", NEW)


@pytest.mark.parametrize(
    ("theirs", "ours", "kept"),
    [
        ("license: other\nlicense_name: a\nlicense_link: LICENSE\n", "license: mit\n", "license: mit\n"),
        (
            "license: other\nlicense_name: a\nlicense_link: LICENSE\n",
            "license: other\nlicense_name: b\n",
            "license: other\nlicense_name: b\n",
        ),
        (
            "license: other\nlicense_name: A\nlicense_link: LICENSE\n",
            "license: other\nlicense_name: a\n",
            "license: other\nlicense_name: a\nlicense_link: LICENSE\n",
        ),
        (
            "license: mit\nlicense_link: LICENSE\n",
            "license: mit\n",
            "license: mit\nlicense_link: LICENSE\n",
        ),
        ("license: mit\n", "license: unknown\n", "license: mit\n"),
    ],
)
def test_name_and_link_of_a_licence_go_with_it(theirs: str, ours: str, kept: str) -> None:
    text, _ = update_card(Card(theirs, "", "ours\n", "").text(), Card(ours, "", "ours\n", "").text())
    assert Card.parse(text).header == kept


def test_both_by_a_person_is_refused() -> None:
    with pytest.raises(UserError, match="a person wrote into both model cards"):
        update_card(OLD + "\none\n", NEW + "\ntwo\n")
    same = NEW + "\none\n"
    assert update_card(OLD + "\none\n", same)[0] == same
