"""Small datasets in D4RL's layout, compressed: what ships with the package."""

import tempfile
from pathlib import Path

import h5py
import numpy as np

from offrl.data.d4rl import read_d4rl, write_d4rl
from offrl.data.dataset import OfflineDataset
from offrl.errors import DatasetError
from offrl.files import atomic_write


def write_compressed(dataset: OfflineDataset, path: Path, max_bytes: int) -> int:
    """Write ``dataset`` with every array deflated, check that it reads back, and return the file's size.

    Raises:
        DatasetError: the file is larger than ``max_bytes``, or does not read back as it was written.
    """
    with tempfile.TemporaryDirectory() as scratch:
        plain = Path(scratch) / "plain.hdf5"
        write_d4rl(dataset, plain)
        with (
            h5py.File(plain) as source,
            atomic_write(path) as temporary,
            h5py.File(temporary, "w", libver="earliest") as target,
        ):
            target.attrs["offrl"] = source.attrs["offrl"]

            def copy(name: str, node: h5py.HLObject) -> None:
                if isinstance(node, h5py.Dataset):
                    rows = np.asarray(node)
                    options = {"compression": "gzip", "compression_opts": 9, "shuffle": True}
                    target.create_dataset(name, data=rows, chunks=rows.shape, track_times=False, **options)

            source.visititems(copy)
            target.flush()
            if (size := temporary.stat().st_size) > max_bytes:
                raise DatasetError(
                    f"{path} would take {size} bytes, more than {max_bytes}: keep fewer episodes"
                )
    if read_d4rl(path).sha256 != dataset.sha256:
        raise DatasetError(f"{path} does not read back as it was written")
    return size
