"""The Hugging Face Hub: a model on it -> its folder in the Hub's cache, and an export -> a model on it."""

from __future__ import annotations

from pathlib import Path

from ldm_vae.errors import UserError
from ldm_vae.interop.diffusers import CONFIG, WEIGHT_FILES


def fetch(hub_id: str) -> Path:
    """The folder of the Hub's AutoencoderKL, in the Hub's cache: of a model, or under vae/ of a pipeline.

    Raises UserError where there is none, and where the Hub is out of reach and the cache does not hold it.
    """
    from huggingface_hub import snapshot_download

    for prefix in ("", "vae/"):
        for weights in WEIGHT_FILES:  # one of them, not all that are there
            try:
                folder = Path(snapshot_download(hub_id, allow_patterns=[f"{prefix}{CONFIG}", f"{prefix}{weights}"]))
            except Exception as error:  # of HTTP, of the cache, of the id: the library changes which ones they are
                what = f"model {hub_id} is no folder here, and the Hub does not give it ({_first_line(error)})"
                remedy = "give a run, a checkpoint or a diffusers folder that is there, or the id of a model on the Hub"
                raise UserError(what, remedy) from error
            if (folder / prefix / CONFIG).is_file() and (folder / prefix / weights).is_file():
                return folder / prefix
    raise UserError(f"{hub_id} holds no AutoencoderKL", "give a model, or a pipeline with one under vae/")


def push(folder: Path, hub_id: str, *, private: bool | None = None, token: str | None = None) -> str:
    """Uploads an export, its card as the page of the model; a model of that id gets the files as one new commit.

    private: of a new model; None is what the account does.   token: None is HF_TOKEN, or that of `hf auth login`.
    Returns the address of the commit. Raises UserError for whatever the Hub refuses; `folder` is only read.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    try:
        model = api.create_repo(hub_id, private=private, exist_ok=True)
        return str(api.upload_folder(folder_path=folder, repo_id=model.repo_id).commit_url)
    except Exception as error:  # of HTTP, of the id, of the card, of the storage behind: no common class
        what = f"{hub_id} could not be uploaded ({_first_line(error)})"
        remedy = "give NAME/MODEL, a network, and a token that may write there (HF_TOKEN or `hf auth login`)"
        raise UserError(what, remedy) from error


def _first_line(error: Exception) -> str:
    """An error in a line."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
