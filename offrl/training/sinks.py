"""Optional mirrors of a run's scalars: TensorBoard and Weights & Biases. The CSV files never depend on them."""

from pathlib import Path
from typing import Any

from offrl.errors import MissingExtraError


class Sinks:
    """Writes scalars to whatever the run asked for."""

    def __init__(self, directory: Path, config: dict[str, Any]) -> None:
        self._tensorboard: Any = None
        self._wandb: Any = None
        if config["tensorboard"]:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise MissingExtraError("tensorboard", "tensorboard") from None
            self._tensorboard = SummaryWriter(str(directory / "tensorboard"))
        if config["wandb"]:
            try:
                import wandb
            except ImportError:
                raise MissingExtraError("wandb", "wandb") from None
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
