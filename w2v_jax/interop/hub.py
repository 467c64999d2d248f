"""A folder with a model to the Hub of Hugging Face, by its own library (extra `hub`).

Nothing is sent unless one asks for it by name. The library's variables hold: HF_TOKEN, HF_ENDPOINT.
"""

from __future__ import annotations

import pathlib
from typing import Any

from w2v_jax.core.cli import UserError, needing


def check_push(repo: str) -> None:
    """Raises UserError, before anything is made, where the package or a token is missing, or the name is none."""
    hub = import_hub()
    try:
        hub.utils.validate_repo_id(repo)
    except hub.errors.HFValidationError as error:
        raise UserError(f"--push {repo}: must be NAME or ORGANISATION/NAME ({error})") from None
    if hub.get_token() is None:
        raise UserError(
            f"--push {repo} needs a token that may write: `hf auth login`, or HF_TOKEN. Without --push the folder is "
            "written all the same"
        )


def push_folder(folder: pathlib.Path, repo: str, *, message: str) -> str:
    """Sends all files of a folder to a repository, which is made, private, where there is none; its address.

    Raises UserError where the Hub refuses. The folder stays as it is.
    """
    hub = import_hub()
    try:
        address = hub.create_repo(repo, private=True, exist_ok=True)
        hub.upload_folder(repo_id=address.repo_id, folder_path=folder, commit_message=message)
    except Exception as error:  # of the library, and of those that it speaks HTTP with
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(
            f"--push {repo}: the Hub did not take it ({reason}). {folder} is whole; to try again: "
            f"`hf upload {repo} {folder}`"
        ) from None
    return str(address)


def import_hub() -> Any:
    """The package huggingface_hub. Raises UserError where it is not installed."""
    with needing("--push needs the package huggingface_hub: pip install 'w2v-jax[hub]'"):
        import huggingface_hub
        import huggingface_hub.errors
        import huggingface_hub.utils
    return huggingface_hub
