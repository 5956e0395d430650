"""Folders of models to and from the Hugging Face Hub, with huggingface_hub where it is installed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vssn.errors import CheckpointError, TargetError
from vssn.utils.packages import needing


def downloaded(repository: str, revision: str | None, files: Sequence[str]) -> Path:
    """A folder with these files of a repository, in the cache of huggingface_hub.

    Raises:
        CheckpointError: the Hub does not give them.
        PackageError: huggingface_hub is not installed.
    """
    with needing("hub"):
        from huggingface_hub import snapshot_download
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(files)))
    except Exception as error:  # of the network, of the Hub, of the name
        raise CheckpointError(
            f"{repository}: no such folder is here, and the Hub gives none ({_first_line(error)}); check its name"
        ) from None


def upload(
    folder: Path, repository: str, private: bool | None, message: str, token: str | None, keep: Sequence[str]
) -> str:
    """The address of the commit; files of `keep` that the repository has already stay as they are there.

    Raises:
        TargetError: the Hub does not take them.
        PackageError: huggingface_hub is not installed.
    """
    with needing("hub"):
        from huggingface_hub import HfApi
    api = HfApi(token=token)
    try:
        name = api.create_repo(repository, private=private, exist_ok=True).repo_id
        there = [file for file in keep if api.file_exists(name, file)]
        commit = api.upload_folder(repo_id=name, folder_path=folder, commit_message=message, ignore_patterns=there)
        return str(commit.commit_url)
    except Exception as error:  # of the network, of the Hub, of the name or the token
        raise TargetError(
            f"repository: the Hub does not take {repository} ({_first_line(error)}); check its name and your token"
        ) from None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
