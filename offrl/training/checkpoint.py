"""Checkpoints: everything a run needs to go on bit for bit; the last two are kept.

``checkpoint.pt`` and ``checkpoint-previous.pt`` each have their SHA-256 beside them. The order of writes below
leaves at least one valid pair on disk whenever the process dies.
"""

import os
import random
from pathlib import Path
from typing import Any

import torch

from offrl.errors import CheckpointError
from offrl.files import atomic_write, atomic_write_text, sha256_file

FORMAT = 1
NEWEST, PREVIOUS = "checkpoint.pt", "checkpoint-previous.pt"


def save_checkpoint(directory: Path, state: dict[str, Any]) -> None:
    """Write ``state`` (tensors, numbers, strings, lists, dicts) as the newest checkpoint of ``directory``."""
    newest, previous = directory / NEWEST, directory / PREVIOUS
    with atomic_write(directory / "checkpoint-next.pt") as temporary:
        torch.save({"format": FORMAT, **state}, temporary)
    following = directory / "checkpoint-next.pt"
    digest = sha256_file(following)
    if newest.exists() and _sha_path(newest).exists():
        atomic_write_text(_sha_path(previous), _sha_path(newest).read_text())
        os.replace(newest, previous)
    atomic_write_text(_sha_path(newest), digest + "\n")
    os.replace(following, newest)


def load_checkpoint(directory: Path, device: torch.device | str = "cpu") -> tuple[dict[str, Any] | None, str]:
    """The newest valid checkpoint and a note (empty, or why the newest was passed over).

    Returns ``(None, "")`` for a run that was stopped before its first checkpoint.

    Raises:
        CheckpointError: checkpoints exist but none is intact, or the format is of a newer version.
    """
    problems = []
    for name in (NEWEST, PREVIOUS):
        path = directory / name
        if not path.exists():
            continue
        if not _sha_path(path).exists() or sha256_file(path) != _sha_path(path).read_text().strip():
            problems.append(f"{name} is damaged (its SHA-256 does not match {_sha_path(path).name})")
            continue
        return _read(path, device), "; ".join(problems) + "; going on from the one before" if problems else ""
    if problems:
        raise CheckpointError(f"no intact checkpoint in {directory}: {'; '.join(problems)}; start the run again")
    return None, ""


def rng_state() -> dict[str, Any]:
    """State of the global random streams that a method of one's own may use (torch, CUDA, Python)."""
    version, words, gauss = random.getstate()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"torch": torch.get_rng_state(), "cuda": cuda, "python": [version, list(words), gauss]}


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore what ``rng_state`` returned."""
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"]:
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))


def _sha_path(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _read(path: Path, device: torch.device | str) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises many types for a file that it did not write
        raise CheckpointError(f"{path} is not a checkpoint: {str(error).splitlines()[0]}") from None
    if not isinstance(state, dict) or "format" not in state:
        raise CheckpointError(f"{path} is not a checkpoint of this program")
    if state["format"] != FORMAT:
        raise CheckpointError(
            f"{path} has format {state['format']}, this version reads format {FORMAT}; upgrade offrl to resume it"
        )
    return state
