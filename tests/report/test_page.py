"""The whole page: small, closed, well-formed, escaped; every gap a sentence; two runs side by side."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from ldm_vae.codec import LatentCodec
from ldm_vae.diagnostics.findings import Inspection, Verdict
from ldm_vae.errors import UserError
from ldm_vae.evaluation.compare import PairedDifference, differences_to_json
from ldm_vae.evaluation.store import keep
from ldm_vae.interop import load
from ldm_vae.interop.checkpoint import Checkpoint
from ldm_vae.report import page as module
from ldm_vae.report import weights
from ldm_vae.report.page import REPORT_BYTES, collect_contents, write_report
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
    assert f"ldm-vae evaluate '{run}' 'my shards'" in text and "--json" not in text
    assert f"python -m train '{run}'/recipe.yaml" in text
    for name in ("evaluate", "inspect", "stats"):
        assert f"ldm-vae {name} '" in text and f"ldm-vae {name} {run}" not in text


def test_a_run_without_checkpoint_keeps_its_curves(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    found = report(run)
    assert "Held-out images cannot be shown" in found.text
    assert "Total loss" in found.text


def test_a_checkpoint_is_read_once_and_only_where_it_is_needed(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may take long. Of other runs than the first it is compared with what they hold, and nothing is shown."""
    other = Path(shutil.copytree(run, tmp_path / "other"))
    read: list[Path] = []

    def network_in(checkpoint: Checkpoint) -> Any:
        read.append(checkpoint.folder.parent.parent)
        return load.network_in(checkpoint)

    monkeypatch.setattr(weights, "network_in", network_in)
    contents = collect_contents([str(run), str(other)], None, "ldm-vae report")
    assert sorted(read) == sorted([run, other])
    assert contents.album is not None and contents.album.images
    assert [one.weights for one in contents.runs] == [contents.run.weights] * 2 != [None, None]
    assert [one.codec is None for one in contents.runs] == [False, True]
    for folder in (run, other):
        for name in ("results.json", "latent_statistics.json", "inspection/inspection.json"):
            (folder / name).unlink()
    read.clear()
    contents = collect_contents([str(run), str(other)], None, "ldm-vae report")
    assert read == [run] and contents.album is not None and contents.album.images
    assert contents.facts["weights sha256"] == LatentCodec.load(run, device="cpu").weights_hash


def test_pictures_do_without_the_scale(run: Path) -> None:
    """They are of raw latents, and damaged statistics are told where the scale would stand."""
    (run / "latent_statistics.json").write_text("{")
    contents = collect_contents([str(run)], None, "ldm-vae report")
    assert contents.album is not None and contents.album.images
    assert [gap.section for gap in contents.gaps] == ["latents"]


def test_shards_that_cannot_be_read_are_told(run: Path) -> None:
    found = report(run, shards=str(run / "nowhere"))
    assert "Held-out images cannot be shown" in found.text and "nowhere" in found.text


def test_numbers_of_another_codec_are_never_shown(run: Path, tmp_path: Path) -> None:
    """`evaluate A B --json B/results.json` of 0.1.0 left A's numbers at the top of B's file, and its own below."""
    shards = Path(json.loads((run / "results.json").read_text())["protocol"]["shards"])
    other = make_run(tmp_path / "other", shards, seed=1)
    ours, theirs = (json.loads((one / "results.json").read_text()) for one in (run, other))
    ours["metrics"]["psnr"], theirs["metrics"]["psnr"] = 77.25, 11.75
    (other / "results.json").write_text(json.dumps(ours))  # nothing of this run
    text = report(other).text
    assert "77.25" not in text and "results.json is about other weights (step 200 of" in text
    assert f"ldm-vae evaluate {other} {shards}" in text
    assert "last validation while training, at step 200" in text.casefold()  # what the summary shows instead
    ours["others"] = [{"name": "b", "kind": "model", **theirs}]
    (other / "results.json").write_text(json.dumps(ours))
    text = report(other).text
    assert "77.25" not in text and "11.75" in text and "about other weights" not in text
    ours["protocol"]["step"] = 100  # of the other run; that file is an entry once this run is measured again
    (other / "results.json").write_text(json.dumps(ours))
    keep(other / "results.json", theirs)
    text = report(other).text
    assert "77.25" not in text and "11.75" in text and "At other steps of this run" not in text


def test_numbers_of_an_earlier_step_are_told_as_such(run: Path) -> None:
    """The run has trained on: its numbers then stand with their step, and never as those of now."""
    then = json.loads((run / "results.json").read_text())
    now = json.loads(json.dumps(then))
    for content, step, psnr in ((then, 100, 13.25), (now, 200, 14.75)):
        content["protocol"]["step"] = step
        content["metrics"]["psnr"] = psnr
        content["others"] = content["comparisons"] = []
        content["measured"] = "2026-01-02T03:04:05+00:00"
    then["protocol"]["weights_sha256"] = "0" * 64
    ours = {"format": "ldm_vae.results", "version": 1, "entries": []}
    (run / "results.json").write_text(json.dumps(then | ours))
    text = report(run).text
    assert "The run was measured at step 100, and is at step 200 now: evaluate it again." in text
    assert "At other steps of this run" in text and "this codec" not in text
    assert "13.25" not in text[: text.index("At other steps")]  # neither in the summary nor as the result
    (run / "results.json").write_text(json.dumps(now | ours | {"entries": [then]}))
    text = report(run).text
    assert "is at step" not in text
    steps = text[text.index("At other steps of this run") :]
    assert steps.index("step 200") < steps.index("step 100") and "14.75" in steps and "13.25" in steps
    assert "13.25" not in text[: text.index("At other steps")]
    then["protocol"]["crop"] = "center 64"  # of other images: not side by side
    (run / "results.json").write_text(json.dumps(now | ours | {"entries": [then]}))
    assert "13.25" not in report(run).text


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
        "validation: PSNR dB ↑",
        "PSNR",
    ):
        assert words in comparison
    for same in ("model.latent_channels", "data.batch", "output", "different protocols"):
        assert same not in comparison
    assert f"pixel · {run}" in text and f"pixel · {other}" in text  # overlaid
    assert not (other / "report.html").exists() and (run / "report.html").exists()
    assert "Image by image" in text and "tells." in comparison  # no command has measured both
    results = json.loads((other / "results.json").read_text())
    results["metrics"]["psnr"] = 77.25
    changed = results["protocol"] | {"resize": "short side 256"}
    (other / "results.json").write_text(json.dumps(results | {"protocol": changed}))
    text = report(run, other).text
    assert f"different protocols than the others, so that the metrics cannot be compared: {run}, {other}." in text
    assert "77.25" not in text and "Without a measurement" not in text
    third = Path(shutil.copytree(run, tmp_path / "third"))
    text = report(run, third, other).text  # two may be compared, and the other one is named
    assert f"so that the metrics cannot be compared: {other}." in text and "short side 256" in text
    (other / "results.json").unlink()
    for runs in ((run, other), (run, third, other)):
        text = report(*runs).text
        assert f"Without a measurement of the present weights: {other}." in text
        assert "different images or under different protocols" not in text


def test_runs_that_one_command_has_measured_say_which_is_better(run: Path, tmp_path: Path) -> None:
    """From the file of either of them; codecs are known by their weights, whatever they were called."""
    shards = Path(json.loads((run / "results.json").read_text())["protocol"]["shards"])
    other = make_run(tmp_path / "other", shards, seed=1)
    results = json.loads((run / "results.json").read_text())
    theirs = json.loads((other / "results.json").read_text())
    results["others"] = [{"name": "x", "kind": "model", "protocol": theirs["protocol"]}]
    found = {"psnr": PairedDifference(-1.25, -1.5, -1.0, 60), "ssim": PairedDifference(0.01, -0.02, 0.04, 60)}
    results["comparisons"] = [{"name": "x", "metrics": differences_to_json(found)}]
    (run / "results.json").write_text(json.dumps(results))
    for pair in ((run, other), (other, run)):
        text = report(*pair).text
        assert f"{other} better by 1.25 dB 1 to 1.5" in text
        assert f"within chance: {run} ahead by 0.01" in text
    results["others"][0]["protocol"]["weights_sha256"] = "0" * 64  # x was another codec then
    (run / "results.json").write_text(json.dumps(results))
    comparison = report(run, other).text
    comparison = comparison[comparison.index("Comparison of runs", 600) : comparison.index("Curves of all runs lie")]
    assert "better by" not in comparison


def test_validations_that_differ_are_marked(run: Path, tmp_path: Path) -> None:
    shards = Path(json.loads((run / "results.json").read_text())["protocol"]["shards"])
    other = make_run(tmp_path / "other", shards, seed=1)
    assert "validate differently" not in report(run, other).text
    for folder, crop in ((run, 128), (other, 256)):
        with (folder / "recipe.yaml").open("a") as file:
            file.write(f"validation: {{crop: {crop}}}\n")
    text = report(run, other).text
    assert text.count("validate differently") == 2  # beside the table and beside the curves
    assert "22 (crop 128)" in text and "22 (crop 256)" in text
    assert f"{run} (crop 128)" in text and f"{other} (crop 256)" in text  # in the legend of the curves


def test_broken_images_are_counted_over_all_starts_of_the_trainer(run: Path) -> None:
    """The log counts anew after a resume: its last row says 0."""
    assert "no image was broken" in report(run).text
    rows = [{"url": "a.tar", "key": key, "reason": "cut"} for key in ("1", "2", "1")] + [{"url": "b.tar", "key": "1"}]
    lines = "".join(json.dumps(row) + "\n" for row in rows) + '{"url": "c.t'  # half a line, as a killed run leaves it
    (run / "broken.jsonl").write_text(lines)
    text = report(run).text
    assert "3 broken training images were replaced by another one." in text and "no image was broken" not in text


def test_a_page_that_grows_too_large_is_refused_and_the_old_one_stays(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run / "report.html").write_text("old")
    monkeypatch.setattr(module, "REPORT_BYTES", 10_000)
    with pytest.raises(UserError, match="more than 0"):
        report(run)
    assert (run / "report.html").read_text() == "old"
