"""Copy a model to a Hugging Face repository or a folder, complete or not at all.

    python -m export.push runs/onnx ./models/my-encoder
    python -m export.push runs/onnx ME/my-encoder

Of an artifact directory the files of its manifest go, verified first, of a training run ``ckpt.pt``; with either its
card, ``README.md``, and its passport, ``passport.html`` (``python -m export.card``).
Pushing to a real hub has not been tried.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol

import tyro

from digpt.artifact import read_checkpoint
from digpt.cli import Command
from digpt.errors import BackendError, ConfigError
from digpt.manifest import MANIFEST_NAME, verify_artifact
from digpt.model import first_line
from digpt.passport import PASSPORT_NAME, read_passport
from export.pipeline import directory_beside, rename_into_place

COMMAND = Command("export.push", __doc__)
CARD, CHECKPOINT = "README.md", "ckpt.pt"
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
FOLDER = (".", "/", "~", "\\")  # how a path begins that cannot be a repository's name


@dataclass(frozen=True)
class PushOptions:
    """Copy a model to a Hugging Face repository or a folder."""

    directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """An artifact directory, or one that holds ckpt.pt."""
    target: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="REPO_OR_FOLDER")]
    """OWNER/NAME on the hub, made private if it is new, or a folder that does not exist yet: ./PATH, ../PATH, /PATH."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the target and the names of its files as JSON on standard output, and nothing else there."""


class Hub(Protocol):
    """What is needed of ``huggingface_hub.HfApi``."""

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> object: ...

    def upload_folder(
        self, *, repo_id: str, folder_path: Path, allow_patterns: list[str], commit_message: str
    ) -> object: ...


def main(argv: Sequence[str] | None = None) -> int:
    """Push; return the exit code."""
    return COMMAND.run(PushOptions, argv, _push)


def _push(options: PushOptions) -> int:
    files = push(options.directory, options.target)
    if options.json:
        print(json.dumps({"target": options.target, "files": files}, ensure_ascii=False))
    else:
        print(f"{options.target}: {', '.join(files)}")
    if CARD not in files:
        print(
            f"without a card; write one: python -m export.card {options.directory} --output {options.directory}/{CARD}",
            file=sys.stderr if options.json else sys.stdout,
        )
    return 0


def push(directory: Path, target: str, hub: Hub | None = None) -> list[str]:
    """Copy what belongs to the model in ``directory``; return the names of the files.

    Args:
        target: OWNER/NAME, or a folder.
        hub: None for ``huggingface_hub.HfApi()``, which finds the token of ``hf auth login`` or HF_TOKEN itself.

    Raises:
        CheckpointError: ``directory`` holds no model, or a damaged one.
        ConfigError: the target is in the way, or neither a repository's name nor a folder's.
        BackendError: the hub refused or was not reached.
    """
    files, fingerprint = contents(directory)
    if target.startswith(FOLDER) or Path(target).is_absolute():
        _copy(directory, files, Path(target).expanduser())
    elif not REPOSITORY.fullmatch(target):
        raise ConfigError(f"{target!r} is neither OWNER/NAME nor a folder; write a folder as ./{target}.")
    elif Path(target).parent.exists():
        raise ConfigError(
            f"Is {target} the folder or the repository? Write ./{target} for the folder; for the repository start "
            f"where there is no folder {Path(target).parent}."
        )
    else:
        _upload(hub, directory, files, target, f"digpt {fingerprint}")
    return files


def contents(directory: Path) -> tuple[list[str], str]:
    """The files of ``directory`` that make the model, with its card and its passport if there are any; its fingerprint.

    Raises:
        CheckpointError: no model, or not as it was written.
    """
    if (directory / MANIFEST_NAME).is_file() or not (directory / CHECKPOINT).is_file():
        manifest = verify_artifact(directory)
        files, fingerprint = [MANIFEST_NAME, *manifest["files"]], str(manifest["fingerprint"])
    else:
        files, fingerprint = [CHECKPOINT], read_checkpoint(directory / CHECKPOINT).fingerprint
    card = [CARD] if (directory / CARD).is_file() and CARD not in files else []
    page = [PASSPORT_NAME] if read_passport(str(directory), fingerprint) and PASSPORT_NAME not in files else []
    return [*files, *card, *page], fingerprint


def _copy(directory: Path, files: Sequence[str], folder: Path) -> None:
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConfigError(f"{folder} exists already; give another folder, or delete it first.")
    with directory_beside(folder) as partial:
        try:
            for name in files:
                (partial / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(directory / name, partial / name)
            contents(partial)  # what arrived is what was written
            rename_into_place(partial, folder)
        except OSError as error:
            raise ConfigError(f"{folder} cannot be written: {error.strerror}.") from error


def _upload(hub: Hub | None, directory: Path, files: Sequence[str], repository: str, message: str) -> None:
    """All files in one commit: whoever downloads gets the old model or the new one."""
    if hub is None:
        from huggingface_hub import HfApi

        hub = HfApi()
    try:
        hub.create_repo(repository, private=True, exist_ok=True)
        hub.upload_folder(repo_id=repository, folder_path=directory, allow_patterns=list(files), commit_message=message)
    except Exception as error:  # the hub's client raises many unrelated types
        raise BackendError(
            f"The hub did not take {repository} ({first_line(error)}); log in with hf auth login, and check the name."
        ) from error


if __name__ == "__main__":
    sys.exit(main())
