"""Where a dataset is written: D4RL's HDF5 file, or a Minari dataset."""

import os
from pathlib import Path

from offrl.data.d4rl import write_d4rl
from offrl.data.dataset import OfflineDataset
from offrl.errors import ConfigError, MissingExtraError

MINARI = "minari:"
SUFFIXES = (".hdf5", ".h5")


def check_target(out: str, *, overwrite: bool, option: str = "--out") -> None:
    """Refuse an output that cannot be written before any step is made.

    Args:
        out: FILE.hdf5 or ``minari:ID``.
        overwrite: whether it may exist.
        option: what named it, for messages.

    Raises:
        ConfigError: unknown kind of output, or it exists.
        PermissionError: its folder cannot be written.
    """
    if out.startswith(MINARI):
        _check_minari(out.removeprefix(MINARI), overwrite, option)
        return
    path = Path(out)
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"{option} must be FILE.hdf5 or minari:ID, got {out!r}")
    if path.is_dir() or (path.exists() and not overwrite):
        raise ConfigError(f"{out} exists already; choose another name{_or_replace(option)}")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder, so {out} cannot be written")
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"no permission to write in {folder}")


def write_dataset(dataset: OfflineDataset, out: str, *, overwrite: bool) -> None:
    """Write to FILE.hdf5 or ``minari:ID``."""
    if out.startswith(MINARI):
        from offrl.data.minari import write_minari  # loads minari

        write_minari(dataset, out.removeprefix(MINARI), overwrite=overwrite)
    else:
        write_d4rl(dataset, out)


def _check_minari(name: str, overwrite: bool, option: str) -> None:
    try:
        from minari.storage import get_dataset_path
    except ImportError as error:
        raise MissingExtraError("minari", "minari") from error
    from offrl.data.minari import ID

    if not ID.fullmatch(name):
        raise ConfigError(f"a Minari id has the form (namespace/)name-vN, got {name!r}")
    if get_dataset_path(name).exists() and not overwrite:
        raise ConfigError(f"{MINARI}{name} exists already; choose another version{_or_replace(option)}")


def _or_replace(option: str) -> str:
    return ", or pass --overwrite" if option == "--out" else ""
