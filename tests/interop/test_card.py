"""What a model card says, read as the Hub reads it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image

from ldm_vae import LatentCodec, UserError
from ldm_vae.bottlenecks.scale import LatentScale
from ldm_vae.interop.card_licence import licence_in, licence_metadata
from ldm_vae.interop.checkpoint import Checkpoint
from ldm_vae.interop.export import export_model
from ldm_vae.interop.load import LoadedModel, ModelSource, load_model
from ldm_vae.networks.kl import Autoencoder, AutoencoderConfig
from tests.conftest import picture

CONFIG = AutoencoderConfig(block_out_channels=(8, 16), norm_groups=4, layers_per_block=1)


@pytest.fixture
def loaded() -> LoadedModel:
    return LoadedModel(Autoencoder(CONFIG).eval(), LatentScale(0.3611, 0.1159), ModelSource("x", "diffusers"))


def card_of(loaded: LoadedModel, folder: Path, licence: str | None = None, hub_id: str | None = None) -> ModelCard:
    export_model(loaded, folder, None, licence=licence, command="ldm-vae export", hub_id=hub_id)
    return ModelCard.load(folder / "README.md")


@pytest.mark.parametrize(
    ("licence", "stated"),
    [(None, {"license": "unknown"}), ("MIT", {"license": "mit"}), ("cc-by-4.0", {"license": "cc-by-4.0"}),
     ("etalab-2.0", {"license": "etalab-2.0"}),
     ("My-Licence-1", {"license": "other", "license_name": "my-licence-1"})],
)  # fmt: skip
def test_metadata_is_what_the_hub_reads(
    loaded: LoadedModel, tmp_path: Path, licence: str | None, stated: dict[str, str]
) -> None:
    card = card_of(loaded, tmp_path / "out", licence)
    values = card.data.to_dict()
    assert values == {"library_name": "diffusers", **stated, "tags": ["autoencoder", "vae", "latent-diffusion"]}
    header = (tmp_path / "out" / "README.md").read_text().split("---\n")[1]
    assert yaml.safe_load(header) == values
    assert licence_in((tmp_path / "out" / "README.md").read_text()) == (licence and licence.lower())


@pytest.mark.parametrize("licence", ["a b", "mit\nlicense: gpl", "", "ü"])
def test_licence_is_a_word(loaded: LoadedModel, tmp_path: Path, licence: str) -> None:
    if licence == "":
        assert licence_metadata(None) == "license: unknown\n"
        return
    with pytest.raises(UserError, match="give an SPDX id"):
        card_of(loaded, tmp_path / "out", licence)
    assert not (tmp_path / "out").exists()


def test_licence_that_a_card_states_stays(loaded: LoadedModel, tmp_path: Path) -> None:
    card_of(loaded, tmp_path / "out", "my-licence")
    again = card_of(loaded, tmp_path / "out")
    assert again.data.to_dict()["license"] == "other" and again.data.to_dict()["license_name"] == "my-licence"
    assert "## Licence\n\nmy-licence\n" in again.text
    changed = card_of(loaded, tmp_path / "out", "mit")
    assert changed.data.to_dict()["license"] == "mit" and "license_name" not in changed.data.to_dict()
    # What is made of that export has its licence, until another one is named.
    assert card_of(load_model(tmp_path / "out"), tmp_path / "copy").data.to_dict()["license"] == "mit"
    # A person's own line in an export that states none stays, too.
    path = tmp_path / "out" / "README.md"
    path.write_text(path.read_text().replace("license: mit", "license: cc0-1.0"))
    assert card_of(loaded, tmp_path / "out").data.to_dict()["license"] == "cc0-1.0"


@pytest.mark.parametrize(
    "header", ["date: 2024-13-45", "n: !!int x", "a: &a [*a]", "a: " + "[" * 5000, "- mit", "license: mit", "a: ["]
)
def test_a_header_that_cannot_be_read_states_no_licence(loaded: LoadedModel, tmp_path: Path, header: str) -> None:
    """Anybody may have written the card of the model; the export does without."""
    source = tmp_path / "source"
    card_of(loaded, source)
    (source / "README.md").write_text(f"---\nlicense: mit\n{header}\n---\n")
    assert card_of(load_model(source), tmp_path / "out").data.to_dict()["license"] == "unknown"


def test_a_card_that_cannot_be_read_states_no_licence(loaded: LoadedModel, tmp_path: Path) -> None:
    source = tmp_path / "source"
    card_of(loaded, source)
    (source / "README.md").unlink()
    (source / "README.md").symlink_to("/proc/self/mem")  # a file whose start no process can read, not even root's
    with pytest.raises(OSError, match="Input/output error"):
        (source / "README.md").read_text()
    assert card_of(load_model(source), tmp_path / "out").data.to_dict()["license"] == "unknown"


@pytest.mark.parametrize("scale", [LatentScale(0.25), LatentScale(0.5, 0.125), LatentScale(0.5, -0.125)])
def test_formulas_of_the_card_are_what_the_codec_does(loaded: LoadedModel, tmp_path: Path, scale: LatentScale) -> None:
    text = card_of(LoadedModel(loaded.model, scale, loaded.source), tmp_path / "out").text
    there, back = re.search(r"    latent = (.*)\n", text), re.search(r"    z = (.*)\n", text)
    assert there is not None and back is not None
    z = torch.randn(1, 4, 2, 2, dtype=torch.float64)
    latent = eval(there[1], {"z": z})
    assert torch.equal(latent, scale.apply(z))
    assert torch.equal(eval(back[1], {"latent": latent}), scale.remove(latent))


def test_formula_of_each_channel(loaded: LoadedModel, tmp_path: Path) -> None:
    scale = LatentScale(0.5, None, (0.0, 1.0, -2.0, 3.0), (1.0, 2.0, 4.0, 8.0))
    text = card_of(LoadedModel(loaded.model, scale, loaded.source), tmp_path / "out").text
    assert "    latent = (z - [0, 1, -2, 3]) * 0.5 / [1, 2, 4, 8]\n" in text
    assert "    z = latent * [1, 2, 4, 8] / 0.5 + [0, 1, -2, 3]\n" in text


def test_command_names_the_model_on_the_hub_or_the_folder(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 'AutoencoderKL.from_pretrained("team/codec")' in card_of(loaded, tmp_path / "a", hub_id="team/codec").text
    assert 'AutoencoderKL.from_pretrained("a")' in card_of(loaded, tmp_path / "a").text  # no path of this machine
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", card_of(loaded, Path("a")).text, re.DOTALL)
    assert code is not None
    names: dict[str, object] = {}
    exec(code[1], names)  # it runs as it stands
    assert type(names["vae"]).__name__ == "AutoencoderKL"


def run_with_samples(folder: Path, steps: tuple[int, ...]) -> LoadedModel:
    state = {"model": Autoencoder(CONFIG).state_dict()}
    Checkpoint.write(
        folder / "checkpoints" / "step_00000020", state, {"step": 20, "model": CONFIG.model_dump(mode="json")}
    )
    (folder / "samples").mkdir()
    for step in steps:
        picture(step).resize((2400, 1200)).save(folder / "samples" / f"step_{step:08d}.png")
    model = load_model(folder)
    return LoadedModel(model.model, LatentScale(0.5), model.source)


def test_picture_is_the_newest_that_the_weights_have_seen(tmp_path: Path) -> None:
    loaded = run_with_samples(tmp_path / "run", (10, 20, 30))  # a trainer has gone on
    text = card_of(loaded, tmp_path / "out").text
    assert "](reconstructions.jpg)" in text and "at step 20." in text
    with Image.open(tmp_path / "out" / "reconstructions.jpg") as image:
        assert image.format == "JPEG" and image.size == (1024, 512)
    assert (tmp_path / "out" / "reconstructions.jpg").stat().st_size < 500_000
    assert LatentCodec.load(tmp_path / "out", device="cpu").scale == LatentScale(0.5)
    card_of(loaded, tmp_path / "out")  # the picture is part of an export, which another one may replace


def test_card_does_without_a_picture(tmp_path: Path) -> None:
    loaded = run_with_samples(tmp_path / "run", ())
    (tmp_path / "run" / "samples" / "step_00000010.png").write_bytes(b"no picture")
    assert "reconstructions" not in card_of(loaded, tmp_path / "out").text
    assert not (tmp_path / "out" / "reconstructions.jpg").exists()
