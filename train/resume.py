"""How a run continues where it stopped: from which checkpoint, and whether the recipe is still the same experiment."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast

from ldm_vae.atomic import atomic_file, refuse_url
from ldm_vae.data.shards.index import Index
from ldm_vae.documents import read_yaml
from ldm_vae.errors import UserError
from ldm_vae.interop.checkpoint import Checkpoint
from ldm_vae.recipe import dump, leaves, validate
from train.recipe import Recipe

# Fields that may change when a run continues; any other change would make it another experiment under the same name.
# data.train says where the shards lie: they may move, and `check_same_data` checks that they are the same.
DATA_MAY_CHANGE = ("data.train", "data.validation", "data.workers", "data.broken_budget", "data.broken_share")
MAY_CHANGE = ("output", "steps", "compile", "checkpoint", "validation", "log", *DATA_MAY_CHANGE)


def latest_checkpoint(folder: Path, accelerator: Accelerator) -> Checkpoint | None:
    """The newest whole checkpoint. The main process chooses it, so that all ranks start from the same one."""
    found = Checkpoint.latest(folder) if accelerator.is_main_process else None
    step = torch.tensor([-1 if found is None else found.step], device=accelerator.device)
    agreed = int(broadcast(step))
    return None if agreed < 0 else Checkpoint.at(folder, agreed)


def refuse_other_files(folder: Path) -> None:
    """Raises UserError where the folder is no run, and holds files that a run writes under the same name; for a URL."""
    refuse_url(folder)
    if (folder / "recipe.yaml").exists() or (folder / "checkpoints").exists():
        return
    for name in ("metrics.jsonl", "warnings.jsonl", "broken.jsonl", "samples"):
        if (folder / name).exists():
            raise UserError(f"{folder} holds {name} and is no run", "give output the name of a new folder")


def check_same_experiment(folder: Path, recipe: Recipe) -> None:
    """Raises UserError where the run's recipe.yaml differs from `recipe` in a field that may not change."""
    path = folder / "recipe.yaml"
    if not path.exists():
        return
    before = validate(Recipe, read_yaml(path), str(path))  # with the defaults of fields that it does not know yet
    old, new = dict(leaves(before.model_dump(mode="json"))), dict(leaves(recipe.model_dump(mode="json")))
    changed = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    changed = [name for name in changed if not _may_change(name)]
    # Runs of earlier versions name no hash: the present weights count as theirs. A dry run has not read the weights.
    hashes = {name for name in changed if name.endswith("weights_sha256")}
    changed = [name for name in changed if name not in hashes or None not in (old.get(name), new.get(name))]
    if changed:
        name = changed[0]
        raise UserError(
            f"{folder} was started with {name}: {old.get(name)}, not {new.get(name)}",
            f"put it back, or go on with its weights in another run: another output, model.init_from={folder} and no "
            f"architecture (in the same run may change: {', '.join(MAY_CHANGE)})",
        )


def check_steps(folder: Path, recipe: Recipe, checkpoint: Checkpoint | None) -> None:
    """Raises UserError where the run has taken more steps than the recipe asks for. As many are no error: it is done.

    checkpoint: the newest one.
    """
    if checkpoint is not None and checkpoint.step > recipe.steps:
        raise UserError(
            f"{folder} has taken {checkpoint.step} steps, and steps is {recipe.steps}",
            f"nothing was done; give more than {checkpoint.step} to go on, or another output to start anew",
        )


def check_same_data(checkpoint: Checkpoint, index: Index) -> None:
    """Raises UserError where the shards have changed: the checkpoint's position in the data would then be wrong."""
    if checkpoint.meta.get("data") != index.fingerprint:
        raise UserError(
            f"the training data changed since {checkpoint.folder}",
            "put the shards back, or start a new run with the old one as model.init_from",
        )


def write_recipe(folder: Path, recipe: Recipe) -> None:
    """Writes the resolved recipe into the run folder."""
    with atomic_file(folder / "recipe.yaml") as path:
        path.write_text(dump(recipe))


def _may_change(name: str) -> bool:
    return any(name == section or name.startswith(f"{section}.") for section in MAY_CHANGE)
