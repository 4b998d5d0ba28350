import re
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import SerializeAsAny, model_validator

from ldm_vae.bottlenecks.base import BottleneckConfig
from ldm_vae.bottlenecks.deterministic import DeterministicConfig
from ldm_vae.bottlenecks.gaussian import GaussianConfig
from ldm_vae.documents import read_yaml
from ldm_vae.errors import UserError
from ldm_vae.networks.kl import AutoencoderConfig
from ldm_vae.parts import BOTTLENECKS
from ldm_vae.recipe import Config, Kind, changes, dump, load_recipe, resolve, validate


class Source(Config):
    url: str = "shards"
    weight: float = 1.0


class Optimizer(Config):
    lr: float = 1e-4
    betas: tuple[float, float] = (0.5, 0.9)
    kind: Literal["adam", "adamw"] = "adam"
    warmup: int = 0

    @model_validator(mode="after")
    def _possible(self) -> "Optimizer":
        if self.kind == "adam" and self.warmup < 0:
            raise ValueError("warmup must not be negative")
        return self


class Recipe(Config):
    output: Path
    steps: int = 10
    note: str = ""
    limit: float = float("inf")
    optimizer: Optimizer = Optimizer()
    sources: tuple[Source, ...] = ()
    validation: Source | None = None


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_recipe(Recipe, path, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    write(tmp_path, "base.yaml", "output: runs/base\nsteps: 5\noptimizer: {lr: 1e-5, betas: [0.5, 0.99]}\n")
    return write(tmp_path, "variants/one.yaml", "base: ../base.yaml\noptimizer: {lr: 2e-5}\nsteps: 7\n")


def test_base_then_file_then_overrides(recipe: Path) -> None:
    loaded = load_recipe(Recipe, recipe, ["optimizer.warmup=3", "steps=9", "validation.url=a/b"])
    assert loaded == Recipe(
        output=Path("runs/base"),
        steps=9,
        optimizer=Optimizer(lr=2e-5, betas=(0.5, 0.99), warmup=3),
        validation=Source(url="a/b"),
    )


def test_lists_replace_and_sections_merge(recipe: Path) -> None:
    assert resolve(recipe, ["optimizer.betas=[0.9, 0.95]"])["optimizer"] == {"lr": 2e-5, "betas": [0.9, 0.95]}


def test_yaml_1_2(tmp_path: Path) -> None:
    path = write(tmp_path, "r.yaml", "output: o\nnote: no\noptimizer: {lr: 1e-5}\nsteps: 20_000\n")
    loaded = load_recipe(Recipe, path, ["limit=1E3"])
    assert (loaded.note, loaded.optimizer.lr, loaded.steps, loaded.limit) == ("no", 1e-5, 20_000, 1000.0)


def test_dump_is_read_back_to_an_equal_recipe(tmp_path: Path) -> None:
    first = Recipe(
        output=Path("runs/x"),
        note="no: 1e-5 # " + "word " * 40,
        optimizer=Optimizer(lr=1e-6),
        sources=(Source(url="a"), Source(weight=1e22)),
    )
    assert load_recipe(Recipe, write(tmp_path, "r.yaml", dump(first))) == first
    model = AutoencoderConfig(attention_levels=(3,))
    assert load_recipe(AutoencoderConfig, write(tmp_path, "m.yaml", dump(model))) == model


def test_circle_of_bases(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", "base: b.yaml\n")
    path = write(tmp_path, "b.yaml", "base: a.yaml\n")
    assert "own base" in refusal(path)
    assert "own base" in refusal(write(tmp_path, "self.yaml", "base: self.yaml\n"))


def test_missing_files_are_named(tmp_path: Path) -> None:
    assert "nowhere.yaml not found" in refusal(tmp_path / "nowhere.yaml")
    message = refusal(write(tmp_path, "r.yaml", "base: gone.yaml\n"))
    assert "'gone.yaml'" in message and "r.yaml" in message


@pytest.mark.parametrize("text", ["- 1\n", "", "a: [1\n", "a: 1\na: 2\n", "x: !!python/object:os.system y\n"], ids=repr)
def test_malformed_yaml(tmp_path: Path, text: str) -> None:
    assert "r.yaml" in refusal(write(tmp_path, "r.yaml", text))


@pytest.mark.parametrize(
    ("text", "reason"), [("[1, 2]: 3\n", "not a tree"), ("steps: &a [*a]\n", "lies within")], ids=repr
)
def test_yaml_that_is_no_tree(tmp_path: Path, text: str, reason: str) -> None:
    assert reason in refusal(write(tmp_path, "r.yaml", text))


def test_binary_file(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(UserError, match="byte 0 is no UTF-8"):
        read_yaml(path)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("stepz=3", "did you mean 'steps'?"),
        ("optimizer.lrr=3", "did you mean 'optimizer.lr'?"),
        ("optimizer.warm_up=3", "did you mean 'optimizer.warmup'?"),
        ("lr=3", "did you mean 'optimizer.lr'?"),  # right key, wrong section
        ("validation.urll=x", "did you mean 'validation.url'?"),  # inside an optional section
        ("sources=[{ulr: x}]", "did you mean 'sources.url'?"),  # inside a list of sections
        ("optimizer.qqqq=3", "known here are betas, kind, lr, warmup"),
    ],
)
def test_unknown_key_names_the_nearest(recipe: Path, override: str, named: str) -> None:
    message = refusal(recipe, override)
    assert "unknown key" in message and message.endswith(named)


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("steps=1.5", ["steps", "integer", "1.5"]),
        ("steps=many", ["steps", "integer", "many"]),
        ("steps=true", ["steps", "integer", "True"]),
        ("optimizer.lr='1e-5'", ["optimizer.lr", "number", "1e-5"]),
        ("optimizer.kind=sgd", ["optimizer.kind", "'adam' or 'adamw'", "sgd"]),
        ("optimizer=3", ["optimizer", "object", "3"]),
        ("optimizer.betas=[0.5]", ["optimizer.betas"]),
        ("optimizer.warmup=-1", ["optimizer", "warmup must not be negative"]),
        ("output=", ["output", "string", "None"]),
    ],
)
def test_wrong_value_names_key_and_value(recipe: Path, override: str, parts: list[str]) -> None:
    message = refusal(recipe, override)
    assert all(part in message for part in parts)


def test_missing_key(tmp_path: Path) -> None:
    assert "output: field required" in refusal(write(tmp_path, "r.yaml", "steps: 3\n"))


@pytest.mark.parametrize("override", ["steps", "=3", "optimizer..lr=3", "steps=[1"])
def test_malformed_override(recipe: Path, override: str) -> None:
    assert repr(override) in refusal(recipe, override)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"norm_groups": 32, "block_out_channels": [48]}, "does not divide 48"),
        ({"attention_levels": [4]}, "attention level 4 is beyond the 4 levels"),
        ({"block_out_channels": []}, "block_out_channels"),
        ({"latent_channels": 0}, "latent_channels"),
        ({"bottleneck": {"logvar_range": [3.0, 3.0]}}, "low < high"),
    ],
)
def test_impossible_models_are_refused(values: dict[str, object], named: str) -> None:
    with pytest.raises(UserError, match=named):
        validate(AutoencoderConfig, values, "model")


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BOTTLENECKS.table, "toy", Kind(__name__, "ToyConfig", "ToyConfig"))


class ToyConfig(BottleneckConfig):
    kind: Literal["toy"] = "toy"
    size: int = 3


BASE = "model: {latent_channels: 4, bottleneck: {kind: gaussian, logvar_range: [-5.0, 5.0]}}\n"


class Holder(Config):
    model: AutoencoderConfig = AutoencoderConfig()


@pytest.mark.usefixtures("toy")
def test_a_section_of_another_kind_is_replaced_and_of_the_same_merged(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(BASE)
    change = tmp_path / "change.yaml"
    change.write_text("base: base.yaml\nmodel: {bottleneck: {kind: toy}}\n")
    found = load_recipe(Holder, change, ["model.bottleneck.size=5"])
    assert found.model.bottleneck == ToyConfig(size=5) and found.model.latent_channels == 4
    change.write_text("base: base.yaml\nmodel: {bottleneck: {kind: gaussian}}\n")
    assert load_recipe(Holder, change).model.bottleneck == GaussianConfig(logvar_range=(-5.0, 5.0))
    found = load_recipe(Holder, tmp_path / "base.yaml", ["model.bottleneck.kind=toy"])
    assert found.model.bottleneck == ToyConfig()
    assert found.model_dump(mode="json")["model"]["bottleneck"] == {"kind": "toy", "size": 3}  # and not the base's


class HolderConfig(BottleneckConfig):
    kind: Literal["holder"] = "holder"
    inner: Annotated[SerializeAsAny[BottleneckConfig], BOTTLENECKS] = GaussianConfig()


def test_the_rule_holds_for_a_section_that_only_one_kind_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BOTTLENECKS.table, "holder", Kind(__name__, "HolderConfig", "HolderConfig"))
    base = tmp_path / "base.yaml"
    base.write_text("model: {bottleneck: {kind: holder, inner: {kind: gaussian, logvar_range: [-5.0, 5.0]}}}\n")
    found = load_recipe(Holder, base, ["model.bottleneck.inner.kind=deterministic"])
    assert found.model.bottleneck == HolderConfig(inner=DeterministicConfig())
    found = load_recipe(Holder, base, ["model.bottleneck.inner.logvar_range=[-3.0, 3.0]"])
    assert found.model.bottleneck == HolderConfig(inner=GaussianConfig(logvar_range=(-3.0, 3.0)))


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.bottleneck.kind=unheard", "a bottleneck of kind 'unheard': known are deterministic, gaussian, toy"),
        ("model.bottleneck={kind: toy, sise: 3}", "unknown key 'model.bottleneck.sise': did you mean"),
        ("model.bottleneck={kind: toy, size: much}", "model.bottleneck.size: input should be a valid integer"),
        ("model.bottleneck={kind: deterministic, logvar_range: [0, 1]}", "unknown key 'model.bottleneck.logvar_range'"),
    ],
)
def test_errors_name_the_field_of_the_kind(tmp_path: Path, override: str, said: str) -> None:
    (tmp_path / "base.yaml").write_text(BASE)
    with pytest.raises(UserError, match=re.escape(said)):
        load_recipe(Holder, tmp_path / "base.yaml", [override])


def test_changes_are_what_differs_from_the_base(tmp_path: Path) -> None:
    (tmp_path / "root.yaml").write_text("a: 1\nb: {c: 2, d: [1, 2]}\n")
    (tmp_path / "base.yaml").write_text("base: root.yaml\nb: {c: 3}\ne: {kind: x, f: 1}\n")
    path = tmp_path / "own.yaml"
    path.write_text("base: base.yaml\na: 1\nb: {d: [1, 2]}\ne: {kind: y}\n")
    assert changes(path) == {"base": str(tmp_path / "base.yaml"), "e": {"kind": "y", "f": 1}}
    assert changes(path, ["b.c=2", "b.g=null", "e.kind=x"]) == {
        "base": str(tmp_path / "base.yaml"),
        "b": {"c": 2, "g": None},
    }
    assert changes(tmp_path / "root.yaml", ["a=5"]) == {"a": 5, "b": {"c": 2, "d": [1, 2]}}
