"""Saves and loads tensors so that a file is either whole or absent, and never runs code on load."""

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch


class CheckpointError(ValueError):
    """A checkpoint cannot be read; the message names the file."""


def save(state: dict[str, Any], path: Path) -> None:
    """Write tensors and plain values under a temporary name, then rename.

    Raises:
        OSError: It cannot be written, the disk is full; what was there before is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    buffer = io.BytesIO()  # of a full disk torch itself says only that it failed
    torch.save(state, buffer)
    try:
        temporary.write_bytes(buffer.getbuffer())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def load(path: Path) -> dict[str, Any]:
    """Read what `save` wrote, onto the CPU, where no device can fail.

    Raises:
        CheckpointError: The file is missing, cut short or not a checkpoint.
        OSError: It cannot be read for another reason, and may be whole.
    """
    try:
        content = io.BytesIO(path.read_bytes())  # zipfile takes a file that it cannot read for none
        if not zipfile.is_zipfile(content):  # else torch tries a format of old, without a check
            raise ValueError("no zip archive")
        content.seek(0)
        state: dict[str, Any] = torch.load(content, map_location="cpu", weights_only=True)
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise  # which are RuntimeErrors too
    except (
        FileNotFoundError,
        RuntimeError,
        ValueError,
        TypeError,
        LookupError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
    ) as error:
        # torch's own message runs over many lines and advises to load without this safety
        raise CheckpointError(
            f"{path} is no readable checkpoint: missing, cut short or of another kind "
            f"({type(error).__name__})"
        ) from error
    return state
