"""Weight files and downloads of other libraries: their readers, with failures as one sentence."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from digpt.artifact import FORMAT, load_document, require_file
from digpt.errors import CheckpointError, SpecError
from digpt.model import first_line


def read_weights(path: Path, read: Callable[[str], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Read a library's weight file by its own reader.

    Raises:
        CheckpointError: missing, half-written, of no known format, or a digpt checkpoint.
    """
    require_file(path)
    try:
        state = read(str(path))
    except Exception as error:  # safetensors and pickle raise their own unrelated types
        raise unreadable(path, error) from None
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise unreadable(path, ValueError("it holds no dictionary of tensors"))
    return state


def unreadable(path: Path, error: BaseException) -> CheckpointError:
    """The error for a file that is no weight file, or not a complete one."""
    if _is_digpt_checkpoint(path):
        return CheckpointError(f"{path} is a digpt checkpoint: give its path alone as the model.")
    return CheckpointError(
        f"{path} cannot be read as weights ({first_line(error)[:200]}). It must be a complete safetensors file "
        "(named .safetensors) or a torch.save of model.state_dict()."
    )


def _is_digpt_checkpoint(path: Path) -> bool:
    try:
        document = load_document(path)
    except CheckpointError:
        return False
    return isinstance(document, dict) and document.get("format") == FORMAT


def misfit(path: Path, name: str, error: BaseException) -> CheckpointError:
    """The error for weights of another architecture, with the library's first complaint."""
    if _is_digpt_checkpoint(path):
        return unreadable(path, error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    detail = (lines[1:] or lines or [type(error).__name__])[0][:200]
    return CheckpointError(f"{path} does not hold the weights of {name}: {detail}")


def downloaded(spec: str, local_form: str, create: Callable[[], Any]) -> Any:
    """Run a library's download; every failure names the local form instead.

    The hub's client logs each of its retries twice over; its progress bar and the final error say enough.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        return create()
    except Exception as error:  # the hub's client raises many unrelated types
        raise SpecError(
            f"{spec}: its weights could not be downloaded. Check the network, or save them to a file elsewhere and "
            f"use {local_form}. ({type(error).__name__}: {first_line(error)[:200]})"
        ) from None
    finally:
        logging.disable(disabled)
