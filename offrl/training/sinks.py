"""Mirrors of a run's scalars on request: TensorBoard, Weights & Biases; the CSV files never need them.

After a resume TensorBoard hides what a killed run wrote beyond its checkpoint. W&B goes on in the same run and takes no
step twice: there the killed run's rows stay.
"""

import importlib.util
from pathlib import Path
from typing import Any

from offrl.errors import MissingExtraError
from offrl.files import atomic_write_text


def require_sinks(config: dict[str, Any]) -> None:
    """Refuse a run whose mirrors are not installed, before it begins (MissingExtraError)."""
    for library, extra in (("tensorboard", "tensorboard"), ("wandb", "wandb")):
        if config[extra] and importlib.util.find_spec(library) is None:
            raise MissingExtraError(library, extra)


class Sinks:
    """Writes scalars to whatever the run asked for."""

    def __init__(self, directory: Path, config: dict[str, Any]) -> None:
        self._tensorboard: Any = None
        self._wandb: Any = None
        self._folder = str(directory / "tensorboard") if config["tensorboard"] else None
        require_sinks(config)
        if config["wandb"]:
            import wandb

            own = directory / "wandb_id.txt"
            known = own.read_text().strip() if own.is_file() else None
            name = "/".join(directory.parts[-3:])
            self._wandb = wandb.init(project="offrl", name=name, config=config, id=known, resume="allow")
            if known is None:
                atomic_write_text(own, f"{self._wandb.id}\n")

    def resume(self, step: int) -> None:
        """Forget what was written after ``step``, all of it for -1; before the first scalars."""
        self._open(step + 1)

    def _open(self, purge_step: int | None = None) -> None:
        if self._folder is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._tensorboard = SummaryWriter(self._folder, purge_step=purge_step)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Log values at a step."""
        if self._tensorboard is None:
            self._open()
        if self._tensorboard is not None:
            for name, value in values.items():
                self._tensorboard.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(values, step=step)

    def close(self) -> None:
        """Flush and close."""
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()
