"""Mirrors of a run's scalars on request: TensorBoard, Weights & Biases; the CSV files never need them."""

import importlib.util
from pathlib import Path
from typing import Any

from offrl.errors import MissingExtraError


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
        require_sinks(config)
        if config["tensorboard"]:
            from torch.utils.tensorboard import SummaryWriter

            self._tensorboard = SummaryWriter(str(directory / "tensorboard"))
        if config["wandb"]:
            import wandb

            self._wandb = wandb.init(project="offrl", name="/".join(directory.parts[-3:]), config=config)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Log values at a step."""
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
