"""offrl: offline and continuous-control reinforcement learning.

The names below load what they need on first use; ``import offrl`` alone does not load torch.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "OfflineDataset",
    "evaluate",
    "export_policy",
    "load_dataset",
    "load_policy",
    "resume",
    "sweep",
    "train",
]

if TYPE_CHECKING:
    from offrl.api import evaluate, export_policy, load_dataset, load_policy, resume, sweep, train
    from offrl.data.dataset import OfflineDataset


def __getattr__(name: str) -> Any:
    if name == "OfflineDataset":
        from offrl.data.dataset import OfflineDataset

        return OfflineDataset
    if name in __all__:
        from offrl import api

        return getattr(api, name)
    raise AttributeError(f"module 'offrl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
