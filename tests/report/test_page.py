"""The whole page: small, closed, well-formed, escaped; every gap a sentence; two runs side by side."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from ldm_vae.diagnostics.findings import Inspection, Verdict
from ldm_vae.errors import UserError
from ldm_vae.report import page as module
from ldm_vae.report.page import REPORT_BYTES, write_report
from tests.report.conftest import ATTACK, make_run

VOID = {"meta", "link", "img", "input", "br"}


class Page(HTMLParser):
    """Tags as a browser meets them, and the text between them."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attributes}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attributes}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> out of place"

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def report(*runs: Path, shards: str | None = None) -> Page:
    names = [str(run) for run in runs]
    return Page(write_report(names, None, shards, "ldm-vae report " + " ".join(names)))


@pytest.fixture(scope="session")
def parsed(page: Path) -> Page:
    return Page(page)


def test_it_is_small_and_whole(page: Path, parsed: Page) -> None:
    assert page.stat().st_size < REPORT_BYTES
    assert parsed.open == []  # every element is closed, in order
    ids = Counter(attributes["id"] for _, attributes in parsed.tags if "id" in attributes)
    assert [name for name, count in ids.items() if count > 1] == []
    for _, attributes in parsed.tags:
        for name in ("href", "for", "aria-labelledby", "aria-describedby"):
            for target in attributes.get(name, "").split():
                assert target == "data:," or target.removeprefix("#") in ids, target


def test_nothing_leads_out_of_the_file(parsed: Page) -> None:
    assert parsed.all("img") and all(image["src"].startswith("data:image/webp;base64,") for image in parsed.all("img"))
    assert all(link["href"].startswith("#") for link in parsed.all("a"))
    (script,) = parsed.all("script")
    assert script == {}
    policy = next(meta["content"] for meta in parsed.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'; img-src data:" in policy and "script-src 'sha256-" in policy


def test_every_picture_says_what_it_shows_and_headings_are_in_order(parsed: Page) -> None:
    assert all(image["alt"].strip() for image in parsed.all("img"))
    levels = [int(tag[1]) for tag, _ in parsed.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert parsed.all("html")[0]["lang"] == "en"


def test_foreign_names_are_text(page: Path, parsed: Page) -> None:
    assert ATTACK in parsed.text  # a key, and names in the inspection
    assert "<script>alert" not in page.read_text(encoding="utf-8")
    assert "quote\"'&amp;" in parsed.text  # not unescaped twice


def test_it_tells_what_was_measured_and_found(parsed: Page) -> None:
    for words in (
        *("PSNR", "this codec", "PCA", "better", "needs 161 pixels along the shorter side", "sha256 of the weights"),
        *("12 % of the power is left.", "✕ Bad", "Kingma 2013", "needs 100 images", "node-3", "step 200 of 200"),
        *("Scaling factor", "difference × ", "lossless WebP", "optimizer", "torch"),
    ):
        assert words in parsed.text, words
    verdicts = parsed.text[parsed.text.index("Verdicts") :]
    places = [verdicts.index(words) for words in ("12 % of", "The prior does", "Not measured.", "Both channels")]
    assert places == sorted(places)  # the worst verdict first


@pytest.mark.parametrize("command", ["ldm-vae evaluate", "ldm-vae inspect", "python -m train", "--shards SHARDS"])
def test_a_bare_run_says_what_makes_the_rest(tmp_path: Path, command: str) -> None:
    run = tmp_path / "bare"
    run.mkdir()
    (run / "recipe.yaml").write_text("steps: 3\n")
    assert command in report(run).text


def test_commands_can_be_copied_where_names_hold_spaces(tmp_path: Path) -> None:
    run = tmp_path / "my run"
    run.mkdir()
    (run / "recipe.yaml").write_text("data: {validation: my shards}\n")
    text = report(run).text
    assert f"ldm-vae evaluate '{run}' 'my shards' --json '{run}'/results.json" in text
    assert f"python -m train '{run}'/recipe.yaml" in text
    for name in ("evaluate", "inspect", "stats"):
        assert f"ldm-vae {name} '" in text and f"ldm-vae {name} {run}" not in text


def test_a_run_without_checkpoint_keeps_its_curves(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    found = report(run)
    assert "Held-out images cannot be shown" in found.text
    assert "Total loss" in found.text


def test_shards_that_cannot_be_read_are_told(run: Path) -> None:
    found = report(run, shards=str(run / "nowhere"))
    assert "Held-out images cannot be shown" in found.text and "nowhere" in found.text


def test_numbers_about_other_weights_are_told(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    results["protocol"]["weights_sha256"] = "0" * 64
    (run / "results.json").write_text(json.dumps(results))
    text = report(run).text
    assert "results.json is about other weights" in text and "inspection.json is about" not in text


def test_failure_counters_and_warnings_are_told(run: Path) -> None:
    (run / "status.json").write_text('{"status": "failed", "reason": "disk <full>"}')
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 210, "skipped_steps": 3, "pixel": 0.1}\n')
    (run / "warnings.jsonl").write_text('{"step": 5, "warning": "logits run away"}\n')
    text = report(run).text
    assert "failed: disk <full>" in text
    assert "3 optimizer steps were skipped" in text and "Step 5: logits run away" in text


def test_the_summary_says_how_many_verdicts_it_leaves_out(run: Path) -> None:
    folder = run / "inspection"
    found = Inspection.read(folder)
    bad = tuple(Verdict(name=f"v{i}", level="bad", statement=f"Number {i}.", advice="Wait.") for i in range(5))
    first = found.sections[0].model_copy(update={"verdicts": bad})
    rest = tuple(section.model_copy(update={"verdicts": ()}) for section in found.sections[1:])
    found.model_copy(update={"sections": (first, *rest)}).write(folder)
    assert "And 2 more under Diagnostics ." in report(run).text


def test_runs_are_compared(run: Path, tmp_path: Path) -> None:
    shards = Path(json.loads((run / "results.json").read_text())["protocol"]["shards"])
    other = make_run(tmp_path / "other", shards, seed=1, lr=2e-3)
    found = report(run, other)
    text = found.text
    comparison = text[
        text.index("Metrics", text.index("Comparison of runs", 600)) : text.index("Curves of all runs lie")
    ]
    for words in (
        "1 bad, 1 warning, 1 unknown, 1 good",
        "optimizer.lr",
        "0.001",
        "0.002",
        "seed",
        str(run),
        str(other),
        "validation: psnr",
        "PSNR",
    ):
        assert words in comparison
    for same in ("model.latent_channels", "data.batch", "output", "different protocols"):
        assert same not in comparison
    assert f"pixel · {run}" in text and f"pixel · {other}" in text  # overlaid
    assert not (other / "report.html").exists() and (run / "report.html").exists()
    results = json.loads((other / "results.json").read_text())
    results["protocol"]["resize"] = "short side 256"
    (other / "results.json").write_text(json.dumps(results))
    assert "different protocols" in report(run, other).text


def test_a_page_that_grows_too_large_is_refused_and_the_old_one_stays(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run / "report.html").write_text("old")
    monkeypatch.setattr(module, "REPORT_BYTES", 10_000)
    with pytest.raises(UserError, match="more than 0"):
        report(run)
    assert (run / "report.html").read_text() == "old"
