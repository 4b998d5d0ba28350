"""The Hugging Face Hub: a model on it -> its folder in the Hub's cache, and an export -> a model on it."""

from __future__ import annotations

from pathlib import Path

from ldm_vae.errors import UserError
from ldm_vae.interop.card_update import update_card
from ldm_vae.interop.diffusers import CARD, CONFIG
from ldm_vae.interop.weights import files_with, weight_files


def fetch(
    hub_id: str, variant: str | None = None, *, revision: str | None = None, subfolder: str | None = None
) -> Path:
    """Downloads a model into the Hub's cache, and returns its folder there.

    hub_id: a model, or a pipeline that holds one under vae/.
    variant: as in `weights.weight_files`.
    revision, subfolder: as in `load.load_model`.
    Raises UserError where there is no such model, and where neither Hub nor cache can be reached for it.
    """
    from huggingface_hub import snapshot_download

    for prefix in ("", "vae/") if subfolder is None else (f"{subfolder.strip('/')}/",):
        for weights in weight_files(variant):  # one of them, not all that are there
            wanted = [f"{prefix}{name}" for name in (CONFIG, *files_with(weights))]
            try:
                folder = Path(snapshot_download(hub_id, revision=revision, allow_patterns=wanted))
            except Exception as error:  # errors of HTTP, cache or id; their classes change between versions
                what = f"model {hub_id} is no folder here, and the Hub does not give it ({_first_line(error)})"
                remedy = "give a run, a checkpoint or an exported folder that is there, or the id of a model on the Hub"
                raise UserError(what, remedy) from error
            if (folder / prefix / CONFIG).is_file() and (folder / prefix / weights).is_file():
                return folder / prefix
    raise UserError(
        f"{hub_id} holds no codec", "give one that was exported, or a pipeline with an AutoencoderKL under vae/"
    )


def push(folder: Path, hub_id: str, *, private: bool | None = None, token: str | None = None) -> str:
    """Uploads an export as one commit, and returns the commit's address. The card becomes the page of the model.

    Files that the model holds besides stay, and so does what a person wrote into its card.

    folder: the export; it is only read.
    hub_id: the model; it is created where it does not exist.
    private: whether a new model is private; None follows the account's setting.
    token: None uses HF_TOKEN, or the token of `hf auth login`.
    Raises UserError for whatever the Hub refuses, and where a person wrote into both cards.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(token=token)
    try:
        model = api.create_repo(hub_id, private=private, exist_ok=True).repo_id
        files: dict[str, Path | bytes] = {path.name: path for path in sorted(folder.iterdir())}
        if CARD in files and api.file_exists(model, CARD):
            there, ours = (Path(path) for path in (api.hf_hub_download(model, CARD), folder / CARD))
            files[CARD] = update_card(there.read_text("utf-8"), ours.read_text("utf-8"))[0].encode()
        added = [CommitOperationAdd(name, content) for name, content in files.items()]
        return str(api.create_commit(model, added, commit_message="Export by ldm_vae").commit_url)
    except UserError:
        raise
    except Exception as error:  # errors of HTTP, id, card or storage; they have no common class
        what = f"{hub_id} could not be uploaded ({_first_line(error)})"
        remedy = "give NAME/MODEL, a network, and a token that may write there (HF_TOKEN or `hf auth login`)"
        raise UserError(what, remedy) from error


def _first_line(error: Exception) -> str:
    """The first line of an error's text, or the error's class."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
