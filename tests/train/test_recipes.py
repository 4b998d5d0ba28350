"""Every recipe that ships: it resolves, dry-runs at full size, and takes a real step at a reduced one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ldm_vae.bottlenecks.gaussian import GaussianConfig
from ldm_vae.interop.checkpoint import Checkpoint
from ldm_vae.losses.objective import build_objective
from ldm_vae.networks.kl import Autoencoder, AutoencoderConfig
from ldm_vae.networks.network import Network
from ldm_vae.noise import SlotNoise
from ldm_vae.quantities import binary_size
from ldm_vae.recipe import changes, dump, load_recipe, resolve
from tests.conftest import ROOT
from tests.train.runs import rows, run_in_process
from train.build import build_autoencoder, train_only
from train.cost import count_step
from train.dry_run import describe_recipe
from train.recipe import Recipe

RECIPES = sorted(path for path in (ROOT / "configs").glob("*.yaml"))
FINETUNES = ("finetune", "finetune_decoder")
PARAMETERS = {"kl_f4_c3": "55,312,063", "kl_f8_c4": "83,653,863", "kl_f8_c16": "83,819,683", "kl_f16_c32": "69,836,067"}
# One output a latent channel instead of two: 4 * (512 * 9 + 1) fewer in the last convolution, 8 * 9 - 4 * 5 in the 1x1.
PARAMETERS["deterministic"] = f"{83_653_863 - 4 * (512 * 9 + 1) - (8 * 9 - 4 * 5):,}"


@pytest.fixture
def codec(tmp_path: Path) -> Path:
    """A small codec to start from."""
    model = Autoencoder(AutoencoderConfig(block_out_channels=(8, 8, 16), norm_groups=4, layers_per_block=1))
    folder = tmp_path / "codec"
    Checkpoint.write(folder, {"ema": model.state_dict()}, {"step": 1, "model": model.config.model_dump(mode="json")})
    return folder


def overrides(path: Path, shards: Path, codec: Path) -> list[str]:
    given = [f"data.train={shards / 'train'}", f"data.validation={shards / 'validation'}", "data.workers=0"]
    given += [f"output={codec.parent / 'run'}"]  # not one that stands in the checkout
    given += ["data.image.resize=256", "validation.resize=null", "validation.crop=null"]  # the pictures are small
    return [*given, f"model.init_from={codec}"] if path.stem in FINETUNES else given


def test_all_recipes_are_there() -> None:
    wanted = {
        "demo_cpu",
        "try_f8",
        "deterministic",
        "kl_f4_c3",
        "kl_f8_c4",
        "kl_f8_c16",
        "kl_f16_c16",
        "kl_f16_c32",
        *FINETUNES,
    }
    assert wanted <= {path.stem for path in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_dry_run_at_full_size(path: Path, shards: Path, codec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed = overrides(path, shards, codec)
    recipe = load_recipe(Recipe, path, changed)
    assert path.read_text().startswith("# ")  # headed by the question it answers
    describe_recipe(recipe, changes(path, changed, Recipe))
    said = capsys.readouterr().out
    assert f"f = {recipe.model.factor}" in said or path.stem in FINETUNES
    assert f"autoencoder: {PARAMETERS.get(path.stem, '')}" in said
    assert "23 images in 3 shards" in said


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_one_real_step_at_reduced_size(path: Path, tmp_path: Path, shards: Path, codec: Path) -> None:
    levels = len(resolve(path).get("model", {}).get("block_out_channels", [0, 0, 0, 0]))
    given = [
        *overrides(path, shards, codec),
        f"output={tmp_path / 'run'}",
        "steps=1",
        "data.batch=2",
        "optimizer.accumulation=1",
        "log.trackers=[]",
    ]
    given += ["data.image.resize=32", "data.image.crop=32", "discriminator.channels=4", "validation.metrics=[psnr]"]
    given += ["validation.resize=32", "validation.crop=32"]
    if path.stem not in FINETUNES:
        given += [f"model.block_out_channels={[16] * levels}", "model.norm_groups=4"]
    run_in_process(path, *given)
    (step, validation) = rows(tmp_path / "run")
    assert step["pixel"] > 0 and step["perceptual"] > 0
    assert validation["validation/psnr"] > 0
    assert json.loads((tmp_path / "run" / "status.json").read_text())["status"] == "done"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_head_of_a_recipe_says_what_a_step_costs_and_how_long_it_takes(path: Path) -> None:
    recipe = load_recipe(Recipe, path, ["data.train=shards"])
    if path.stem in FINETUNES:  # the codec that they start from has this architecture
        architecture = load_recipe(Recipe, ROOT / "configs" / "kl_f8_c4.yaml").model
        assert recipe.model.init_from == "stabilityai/sd-vae-ft-mse"
        autoencoder, recipe = build_autoencoder(recipe.model_copy(update={"model": architecture}), device="meta")
        if path.stem == "finetune_decoder":
            train_only(autoencoder, [*autoencoder.parts("decoder"), autoencoder.heads])
    else:
        autoencoder, recipe = build_autoencoder(recipe, device="meta")
    head = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    assert f"{costs_in_words(recipe, autoencoder)}# Time: " in head


def costs_in_words(recipe: Recipe, autoencoder: Network) -> str:
    """The lines of a head that say what a step takes in each precision."""
    side = recipe.data.image.crop
    assert side is not None
    exact, half, norms = (
        count_step(
            recipe.model_copy(update=changes),
            autoencoder,
            (side, side),
            recipe.data.batch // recipe.optimizer.accumulation,
        )
        for changes in (
            {"precision": "float32"},
            {"precision": "bfloat16"},
            {"precision": "bfloat16", "norms": "bfloat16"},
        )
    )
    in_half = f"{binary_size(half.per_image)} an image, {binary_size(half.peak)} at once"
    in_norms = f"{binary_size(norms.per_image)}, {binary_size(norms.peak)}"
    return f"# Counted in float32: {exact.in_words()}.\n# In bfloat16: {in_half}; with norms: bfloat16 {in_norms}.\n"


@pytest.mark.parametrize("name", ["try_f8", *FINETUNES])
def test_recipes_that_need_their_data_alone(name: str, shards: Path, codec: Path, tmp_path: Path) -> None:
    given = [f"data.train={shards / 'train'}", f"output={tmp_path / 'run'}"]
    if name in FINETUNES:  # the codec is on the Hub, and a local one takes its place
        given += [f"data.validation={shards / 'validation'}", f"model.init_from={codec}"]
    describe_recipe(load_recipe(Recipe, ROOT / "configs" / f"{name}.yaml", given))


def test_the_deterministic_recipe_has_no_noise_and_no_rate() -> None:
    recipe = load_recipe(Recipe, ROOT / "configs" / "deterministic.yaml")
    image, noise = torch.rand(2, 3, 32, 32), SlotNoise(0, 0, [0, 1])
    for bottleneck, same in ((recipe.model.bottleneck, True), (GaussianConfig(), False)):
        torch.manual_seed(0)
        config = AutoencoderConfig(block_out_channels=(8, 8, 16, 16), norm_groups=4, bottleneck=bottleneck)
        model = Autoencoder(config).requires_grad_(False)
        output, mode = model(image, noise=noise), model(image)
        assert torch.equal(output.reconstruction, mode.reconstruction) == same
        assert (output.posterior.rate == 0).all() == same
    objective = build_objective(recipe.loss, [], {}, model.anchors, lambda value: value)
    assert objective.regularizers == []


def test_the_resolved_recipe_reads_back(tmp_path: Path, recipe: Path) -> None:
    config = load_recipe(Recipe, recipe)
    (tmp_path / "resolved.yaml").write_text(dump(config))
    assert load_recipe(Recipe, tmp_path / "resolved.yaml") == config


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("precision=fp16", "fp16 is refused"),
        ("model.train=decoder", "needs model.init_from"),
        ("model.init_from=x model.train=decoder loss.rate.free_nats=1", "steer the encoder"),
        ("model.in_channels=4", "must be equal"),
        ("data.image.channels=1", "make them equal"),
        ("data.image.crop=31", "multiple of f = 2"),
        ("discriminator.norm=batch optimizer.accumulation=2", "use group"),
        ("discriminator.generator_start=0", "must not be before start"),
        ("optimiser.lr=1", "did you mean 'optimizer'"),
        ("optimizer.lr=fast", "optimizer.lr: input should be a valid number"),
        ("model.norm_groups=3", "must divide every width"),
        ("loss.pixel.weight=0 loss.perceptual.channels=off", "nothing asks for a reconstruction"),
        ("optimizer.weight_decay=0.1", "is for kind: adamw"),
        ("optimizer.betas=[1.5,0.9]", "less than 1"),
        ("model.init_from=x model.initialisation=average", "exclude each other"),
        ("data.image.crop=22", "images of 22 pixels are too small for LPIPS: use at least 31"),
        ("discriminator.layers=4", "images of 32 pixels are too small for the discriminator: use at least 48"),
        (
            "data.image.crop=null data.image.resize=40 discriminator.layers=4",
            "images of 40 pixels",
        ),
        ("checkpoint.best=psnr", "checkpoint.best 'psnr' is not measured: known are validation/psnr, validation/rate"),
        ("checkpoint.best=validation/psnr data.validation=null", "is not measured: there is no data.validation"),
        ("checkpoint.best=validation/psnr", "mode min would keep the worst validation/psnr: write max"),
        ("checkpoint.best=validation/rate checkpoint.every=4 validation.every=6", "a multiple of the other"),
    ],
)
def test_impossible_recipes_are_refused_in_one_line(recipe: Path, change: str, said: str) -> None:
    from ldm_vae.errors import UserError

    with pytest.raises(UserError) as error:
        load_recipe(Recipe, recipe, change.split())
    assert said in str(error.value)
    assert "\n" not in str(error.value)
