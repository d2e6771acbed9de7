"""Checkpoints: everything a run needs to go on bit for bit; the last two are kept.

``checkpoint.pt`` and ``checkpoint-previous.pt`` each have their SHA-256 beside them. The order of writes
below leaves at least one intact pair on disk whenever the process dies.
"""

import hashlib
import io
import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from offrl.errors import CheckpointError
from offrl.files import atomic_write_bytes, atomic_write_text, sha256_file

FORMAT = 1
NEWEST, PREVIOUS, NEXT = "checkpoint.pt", "checkpoint-previous.pt", "checkpoint-next.pt"


def require_own(directory: Path, state: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of another run than ``own``, what config.json says now (CheckpointError)."""
    for key, value in own.items():
        if state.get(key) != value:
            raise CheckpointError(
                f"the checkpoint in {directory} is of another run: its {key} is {state.get(key)}, "
                f"config.json says {value}; restore the files, or train anew"
            )


def save_checkpoint(directory: Path, state: dict[str, Any]) -> None:
    """Write ``state`` (tensors, numbers, strings, lists, dicts) as the newest checkpoint of ``directory``.

    Raises:
        OSError: the disk is full or not writable; the checkpoints that were there are still valid.
    """
    newest, previous, following = (directory / name for name in (NEWEST, PREVIOUS, NEXT))
    buffer = (
        io.BytesIO()
    )  # serialized in memory: a failing disk then raises OSError, and the hash costs no reading
    torch.save({"format": FORMAT, **state}, buffer)
    digest = hashlib.sha256(buffer.getbuffer()).hexdigest()
    atomic_write_bytes(following, buffer.getbuffer())
    if _intact(newest):  # a damaged one must not push out the intact one before it
        atomic_write_text(_sha_path(previous), _sha_path(newest).read_text())
        os.replace(newest, previous)
    atomic_write_text(_sha_path(newest), digest + "\n")
    os.replace(following, newest)


def load_checkpoint(directory: Path, device: torch.device | str = "cpu") -> tuple[dict[str, Any] | None, str]:
    """The newest intact checkpoint and a note (empty, or why the newest was passed over).

    Returns ``(None, "")`` for a run that was stopped before its first checkpoint.

    Raises:
        CheckpointError: checkpoints exist but none is intact, or the format is of a newer version.
    """
    problems = []
    for name in (NEWEST, PREVIOUS):
        path = directory / name
        if not path.exists():
            continue
        if not _intact(path):
            problems.append(f"{name} is damaged (its SHA-256 does not match {_sha_path(path).name})")
            continue
        return _read(path, device), "; ".join(problems) + "; going on from the one before" if problems else ""
    if problems:
        raise CheckpointError(
            f"no intact checkpoint in {directory}: {'; '.join(problems)}; start the run again"
        )
    return None, ""


def rng_state() -> dict[str, Any]:
    """State of the global random streams that a method of one's own may use (torch, CUDA, NumPy, Python)."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002 - the global stream itself
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [
            str(kind),
            torch.from_numpy(np.asarray(keys, np.int64)),
            int(position),
            int(has_gauss),
            float(cached),
        ],
        "python": [version, list(words), gauss],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore what ``rng_state`` returned."""
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.cpu().numpy().astype(np.uint32), *rest))  # noqa: NPY002
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))


def _sha_path(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _intact(path: Path) -> bool:
    """Whether a checkpoint and its hash are there and agree."""
    recorded = _sha_path(path)
    return (
        path.is_file() and recorded.is_file() and recorded.read_bytes().strip() == sha256_file(path).encode()
    )


def _read(path: Path, device: torch.device | str) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch raises many types for a file that it did not write
        raise CheckpointError(f"{path} is not a checkpoint: {str(error).splitlines()[0]}") from None
    if not isinstance(state, dict) or "format" not in state:
        raise CheckpointError(f"{path} is not a checkpoint of this program")
    if state["format"] != FORMAT:
        raise CheckpointError(
            f"{path} has format {state['format']}, this version reads {FORMAT}; upgrade offrl to resume it"
        )
    return state
