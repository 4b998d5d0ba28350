"""What a launcher was told beside the recipe. accelerate's own launcher says what it hands on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils.launch import prepare_simple_launcher_cmd_env

import ldm_vae.launch
import train.launch
from ldm_vae.errors import UserError
from ldm_vae.launch import Launch
from ldm_vae.recipe import load_recipe
from tests.conftest import ROOT
from train.build import build_accelerator
from train.dry_run import describe_recipe
from train.recipe import Recipe

Launched = Callable[..., None]
LAUNCHER = [sys.executable, "-m", "accelerate.commands.launch"]


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Launched:
    """launched(*options, NAME=value): puts this process where `accelerate launch OPTIONS -m train` would start it.

    NAME=value: what a person has exported.
    """

    def launch(*options: str, **exported: str) -> None:
        for name in [name for name in os.environ if name.startswith(("ACCELERATE_", "MASTER_", "KMP_"))]:
            monkeypatch.delenv(name)
        for name, value in exported.items():
            monkeypatch.setenv(name, value)
        words = [*options, "-m", "train", "recipe.yaml"]
        given = Launch(launch_command_parser().parse_args(words), dict(os.environ))
        arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
        _, handed_on = prepare_simple_launcher_cmd_env(arguments)
        for name, value in handed_on.items():
            monkeypatch.setenv(name, value)
        for module in (train.launch, ldm_vae.launch):
            monkeypatch.setattr(module, "find_launch", lambda process: given)
        AcceleratorState._reset_state(reset_partial_state=True)
        PartialState._reset_state()

    return launch


def build(recipe: Path, *overrides: str) -> str:
    """The precision in which accelerate would train."""
    return str(build_accelerator(load_recipe(Recipe, recipe, overrides)).mixed_precision)


CPU = "--cpu"
CONTRADICTIONS = [  # what is typed, what is exported, what the recipe says, and the refusal
    (
        ["--mixed_precision", "bf16"],
        {},
        [],
        "bf16 by --mixed_precision, and the recipe says precision auto, which is float32",
    ),
    (
        ["--mixed-precision=fp16"],
        {},
        ["precision=float32"],
        "fp16 by --mixed_precision, and the recipe says precision float32",
    ),
    (
        ["--mixed_precision", "no"],
        {},
        ["precision=bfloat16"],
        "no by --mixed_precision, and the recipe says precision bfloat16",
    ),
    (["--mixed_precision", "bf16"], {}, ["precision=float64"], "out, or set precision=bfloat16$"),
    ([], {"ACCELERATE_MIXED_PRECISION": "bf16"}, [], "bf16 by ACCELERATE_MIXED_PRECISION, and .* precision auto"),
    (
        [],
        {"ACCELERATE_MIXED_PRECISION": "no"},
        ["precision=bfloat16"],
        "no by ACCELERATE_MIXED_PRECISION, and .* bfloat16",
    ),
    (
        ["--gradient_accumulation_steps", "4"],
        {},
        [],
        "4 by --gradient_accumulation_steps, .* optimizer.accumulation 1:",
    ),
    (["--gradient_accumulation_steps", "1"], {}, ["optimizer.accumulation=2"], "or set optimizer.accumulation=1$"),
    ([], {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "x"}, [], "leave ACCELERATE_GRADIENT_ACCUMULATION_STEPS out$"),
    (["--gradient_clipping", "1"], {}, [], "1.0 by --gradient_clipping, and the recipe says optimizer.clip null"),
    ([], {"ACCELERATE_GRADIENT_CLIPPING": "2"}, ["optimizer.clip=1"], "and the recipe says optimizer.clip 1.0"),
    (["--dynamo_backend", "eager"], {}, [], "eager by --dynamo_backend: leave it out"),
    ([], {"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, [], "INDUCTOR by ACCELERATE_DYNAMO_BACKEND"),
]
AGREEMENTS = [
    ([], {}, [], "no"),
    (
        [],
        {},
        ["precision=bfloat16", "optimizer.accumulation=2", "optimizer.clip=1"],
        "bf16",
    ),  # of defaults nobody spoke
    (["--mixed_precision", "bf16"], {}, ["precision=bfloat16"], "bf16"),
    (["--mixed_precision", "no"], {"ACCELERATE_MIXED_PRECISION": "bf16"}, ["precision=float32"], "no"),
    (["--mixed_precision", "no"], {}, ["precision=float64"], "no"),
    (["--gradient_accumulation_steps", "2"], {}, ["optimizer.accumulation=2"], "no"),
    (["--gradient_clipping", "1"], {}, ["optimizer.clip=1.0"], "no"),
    ([], {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "2"}, ["optimizer.accumulation=2"], "no"),
    (["--dynamo_backend", "no", "--num_processes", "1"], {}, [], "no"),
]


@pytest.mark.parametrize(("typed", "exported", "overrides", "refusal"), CONTRADICTIONS)
def test_what_contradicts_the_recipe_is_refused(
    launched: Launched, recipe: Path, typed: list[str], exported: dict[str, str], overrides: list[str], refusal: str
) -> None:
    launched(CPU, *typed, **exported)
    with pytest.raises(UserError, match=f"accelerate is told .*{refusal}"):
        build(recipe, *overrides)
    with pytest.raises(UserError, match=refusal):  # by a dry run, too
        describe_recipe(load_recipe(Recipe, recipe, overrides))


@pytest.mark.parametrize(("typed", "exported", "overrides", "precision"), AGREEMENTS)
def test_what_agrees_with_the_recipe_is_taken(
    launched: Launched, recipe: Path, typed: list[str], exported: dict[str, str], overrides: list[str], precision: str
) -> None:
    launched(CPU, *typed, **exported)
    assert os.environ["ACCELERATE_MIXED_PRECISION"] in ("no", "bf16")  # the launcher always says one
    assert build(recipe, *overrides) == precision


def test_auto_that_is_bfloat16_contradicts_no(
    launched: Launched, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched(CPU, "--mixed_precision", "no")
    monkeypatch.setattr(
        train.launch, "resolve_precision", lambda recipe: recipe.model_copy(update={"precision": "bfloat16"})
    )
    with pytest.raises(
        UserError, match=r"told no by .* precision auto, which is bfloat16 here: .*, or set precision=float32$"
    ):
        build(recipe)


@pytest.mark.parametrize("exported", [{"ACCELERATE_MIXED_PRECISION": "no"}, {"ACCELERATE_DYNAMO_BACKEND": "eager"}])
def test_without_a_launcher_what_is_exported_counts(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, exported: dict[str, str]
) -> None:
    for name, value in exported.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"by {name}"):
        build(recipe, "precision=bfloat16")


def test_a_launcher_that_cannot_be_seen_has_chosen_nothing_by_default(
    launched: Launched, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched(CPU)
    monkeypatch.setattr(train.launch, "find_launch", lambda process: None)
    assert build(recipe, "precision=bfloat16") == "bf16"


CONFIGURATION = """\
compute_environment: LOCAL_MACHINE
distributed_type: {kind}
num_machines: 1
num_processes: {processes}
use_cpu: true
mixed_precision: '{precision}'
"""


def test_a_configuration_file_counts_where_it_says_something(launched: Launched, recipe: Path, tmp_path: Path) -> None:
    file = tmp_path / "accelerate.yaml"
    file.write_text(CONFIGURATION.format(kind="'NO'", processes=1, precision="bf16"))
    launched("--config_file", str(file))
    with pytest.raises(
        UserError, match=f"told bf16 by mixed_precision of {file}, and the recipe says precision float32"
    ):
        build(recipe, "precision=float32")
    assert build(recipe, "precision=bfloat16") == "bf16"
    file.write_text(CONFIGURATION.format(kind="'NO'", processes=1, precision="no"))  # `accelerate config` writes it
    launched("--config_file", str(file))
    assert build(recipe, "precision=bfloat16") == "bf16"


def test_one_process_for_several_is_refused(launched: Launched, recipe: Path, tmp_path: Path) -> None:
    right = "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes"
    launched(CPU, "--num_processes", "2")
    with pytest.raises(UserError, match=f"told --num_processes 2 and has started one: .* {right} 2 -m train"):
        build(recipe)
    file = tmp_path / "accelerate.yaml"
    file.write_text(CONFIGURATION.format(kind="MULTI_CPU", processes=4, precision="no"))
    launched("--config_file", str(file))
    with pytest.raises(UserError, match=f"told several processes and has started one: .* {right} N -m train"):
        build(recipe)
    launched(CPU, MASTER_ADDR="127.0.0.1", MASTER_PORT="29501")  # of the cluster, for whoever needs it
    assert build(recipe) == "no"


@pytest.mark.parametrize("variable", ["FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG"])
@pytest.mark.parametrize("value", ["true", "1"])
def test_parallelism_that_divides_a_model_is_refused(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{variable}", value)
    with pytest.raises(UserError, match="is not supported: it shards one model and this trains two"):
        build(recipe)


def launch(*options: str, **exported: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*LAUNCHER, *options], cwd=ROOT, env={**os.environ, **exported}, capture_output=True, text=True, timeout=300
    )


def test_a_real_launch_of_two_that_are_one_writes_nothing(recipe: Path, tmp_path: Path) -> None:
    done = launch("--cpu", "--num_processes", "2", "-m", "train", str(recipe))
    assert done.stderr.count("train: accelerate launch is told --num_processes 2 and has started one: ") == 1
    assert "returned non-zero exit status 2" in done.stderr  # the trainer's; the launcher has a code of its own
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_real_launch_of_two_processes_says_a_contradiction_once(recipe: Path, tmp_path: Path) -> None:
    options = ["--multi_gpu", "--num_processes", "2", "--main_process_port", "0", "--gradient-accumulation-steps", "3"]
    done = launch(*options, "-m", "train", str(recipe), ACCELERATE_USE_CPU="true")
    assert done.stderr.count("train: accelerate is told 3 by --gradient_accumulation_steps, and the recipe says") == 1
    assert done.returncode != 0
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_command_that_makes_two_does_so_under_a_configuration_that_would_make_one(
    recipe: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home" / "accelerate"
    home.mkdir(parents=True)
    (home / "default_config.yaml").write_text(CONFIGURATION.format(kind="MULTI_CPU", processes=4, precision="no"))
    exported = {"ACCELERATE_USE_CPU": "true", "HF_HOME": str(home.parent)}
    assert "told several processes and has started one" in launch("-m", "train", str(recipe), **exported).stderr
    options = ["--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    done = launch(*options, "-m", "train", str(recipe), "steps=1", **exported)
    assert "2 processes" in done.stderr
    assert done.returncode == 0
