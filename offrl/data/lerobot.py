"""LeRobotDataset v3: a folder of Parquet files, and MP4 files for cameras.

    meta/info.json            features {NAME: {dtype, shape, names}}, fps, robot_type, codebase_version
    meta/stats.json           min, max, mean, std, count (and quantiles) of every feature
    meta/episodes/*/*.parquet one row an episode: where its frames lie in the videos
    data/*/*.parquet          one row a frame: observation.*, action, next.*, episode_index, frame_index, index
    videos/NAME/*/*.mp4       the frames of features whose dtype is video

Source: huggingface/lerobot, src/lerobot/datasets (v3.0).
"""

import io
import json
import math
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from offrl.data import validate
from offrl.data.arrays import check_rows
from offrl.data.dataset import OfflineDataset
from offrl.errors import DatasetError, MissingExtraError

INFO = "meta/info.json"
MAX_JSON_BYTES = 16 << 20
BOOKKEEPING = ("timestamp", "frame_index", "episode_index", "index", "task_index")
FIRST = ("state", "environment_state")  # of the flat view; other vectors follow by name


def read_lerobot(
    path: Path | str, *, video: bool = False, metadata: Mapping[str, Any] | None = None
) -> OfflineDataset:
    """Read a LeRobotDataset v3 folder.

    ``observation.KEY`` becomes the observation KEY, ``next.reward`` the rewards (0 without), other ``next.NAME`` infos.
    An episode whose last ``next.success`` is set ends terminated, any other one truncated: ``next.done`` only says
    that the recording ended. Images in the Parquet files are decoded.

    Args:
        path: the folder.
        video: also decode the videos (all frames, as bytes, in memory); else they are left out and listed in
            ``metadata["left_out"]``.
        metadata: values that win over the folder's.

    Raises:
        FileNotFoundError: no such folder.
        DatasetError: another layout or version, damaged files, or its arrays break a rule.
        MissingExtraError: pyarrow, or for videos imageio-ffmpeg, is not installed.
    """
    root = Path(path).expanduser().absolute()
    info = read_info(root)
    table = _Table(root, "data")
    order = np.argsort(table.column("index"), kind="stable")
    episode = table.column("episode_index")[order].astype(np.int64)
    if not len(episode):
        raise DatasetError(f"{root} holds no frames")
    starts = np.concatenate([[0], np.flatnonzero(np.diff(episode)) + 1, [len(episode)]])
    if len(np.unique(episode)) != len(starts) - 1:
        raise DatasetError(f"{root}: the frames of an episode are not together in the order of 'index'")
    fields, left_out = {}, []
    for name, feature in info["features"].items():
        if name in BOOKKEEPING:
            continue
        if feature["dtype"] == "video":
            if video:
                fields[_our_name(name)] = _decode(
                    root, name, feature, info, episode[starts[:-1]], np.diff(starts)
                )
            else:
                left_out.append(name)
        elif feature["dtype"] == "string":
            left_out.append(name)
        else:
            fields[_our_name(name)] = table.feature(name, feature)[order]
    fields |= _ends(fields, starts)
    facts = {k: info[k] for k in ("robot_type", "fps", "codebase_version") if info.get(k) is not None}
    facts |= {"left_out": left_out} if left_out else {}
    facts["flatten"] = _flatten(fields)
    try:
        return OfflineDataset(fields, starts, facts | dict(metadata or {}))
    except DatasetError as error:
        raise DatasetError(f"{root}: {error}") from None


def read_info(root: Path) -> dict[str, Any]:
    """``meta/info.json``, its features checked.

    Raises:
        FileNotFoundError: not there.
        DatasetError: not JSON, another version, or features without dtype and shape.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"no such folder: {root}")
    info = _json(root / INFO)
    version = str(info.get("codebase_version", ""))
    if not version.startswith("v3"):
        raise DatasetError(
            f"{root} is a LeRobotDataset {version or 'of unknown version'}; only v3 can be read: convert it with "
            "lerobot's convert_dataset_v21_to_v30"
        )
    features = info.get("features")
    good = isinstance(features, dict) and all(
        isinstance(f, dict)
        and isinstance(f.get("dtype"), str)
        and isinstance(f.get("shape"), list)
        and all(isinstance(n, int) and 0 < n < 1 << 24 for n in f["shape"])
        for f in features.values()
    )
    if not good or "action" not in info["features"]:
        raise DatasetError(f"{root / INFO}: 'features' must give dtype and shape of 'action' and the others")
    if slashed := [name for name in info["features"] if "/" in name or "\\" in name]:
        raise DatasetError(
            f"{root / INFO}: the feature {slashed[0]!r} has a slash, which LeRobot's names have not"
        )
    return info


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise FileNotFoundError(f"no such file: {file}")
    if file.stat().st_size > MAX_JSON_BYTES:
        raise DatasetError(f"{file} is larger than {MAX_JSON_BYTES} bytes; not believed")
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise DatasetError(f"{file} is not a JSON object")
    return content


class _Table:
    """The rows of all Parquet files of a folder ``root/name/CHUNK/FILE.parquet``."""

    def __init__(self, root: Path, name: str) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise MissingExtraError("pyarrow", "policies") from None
        self.folder = root / name
        files = sorted(self.folder.glob("*/*.parquet"))
        if not files:
            raise DatasetError(f"{self.folder} holds no Parquet files (CHUNK/FILE.parquet)")
        try:
            sources = [pyarrow.parquet.ParquetFile(file) for file in files]
            for file, source in zip(files, sources, strict=True):
                check_rows(file, source.metadata.num_rows)
            tables = [source.read() for source in sources]
            self.table = pyarrow.concat_tables(tables)
        except DatasetError:
            raise
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            reason = next(iter(str(error).splitlines()), "")[:160]
            raise DatasetError(f"{self.folder}: cannot read the Parquet files: {reason}") from None

    def cells(self, name: str) -> list[Any]:
        """A column as Python values."""
        if name not in self.table.column_names:
            have = ", ".join(self.table.column_names[:20])
            raise DatasetError(f"{self.folder} has no column {name!r}; it has {have}")
        values: list[Any] = self.table.column(name).to_pylist()
        return values

    def numbers(self, name: str) -> np.ndarray:
        """A column of numbers or lists of numbers, (N,) or (N, ...)."""
        cells = self.cells(name)
        try:
            array = np.asarray(cells)
        except ValueError:
            array = np.empty(0, dtype=object)
        if array.dtype.kind not in "biuf" or not np.isfinite(array).all():
            raise DatasetError(
                f"{self.folder}: column {name!r} has cells that are empty, ragged or no numbers"
            )
        return array

    def column(self, name: str) -> np.ndarray:
        """A column of single numbers, (N,)."""
        try:
            return validate.column(name, self.numbers(name))
        except DatasetError as error:
            raise DatasetError(f"{self.folder}: {str(error).removeprefix(f'{self.folder}: ')}") from None

    def feature(self, name: str, feature: Mapping[str, Any]) -> np.ndarray:
        """A column in the shape that ``meta/info.json`` gives, (N, ...); images as bytes."""
        if feature["dtype"] == "image":
            images = [_image(cell, f"{self.folder}: {name!r}") for cell in self.cells(name)]
            if len(sizes := {image.shape for image in images}) > 1:
                raise DatasetError(
                    f"{self.folder}: the images of {name!r} have several shapes: {sorted(sizes)}"
                )
            return np.stack(images)
        array = self.numbers(name)
        if array.size != len(array) * int(np.prod(feature["shape"])):
            raise DatasetError(
                f"{self.folder}: cells of {name!r} have shape {array.shape[1:]}, info.json says {feature['shape']}"
            )
        return array.reshape(len(array), *feature["shape"])


def _image(cell: Any, what: str) -> np.ndarray:
    """One PNG or JPEG, as (H, W, C) bytes."""
    from PIL import Image, UnidentifiedImageError  # comes with matplotlib

    content = cell.get("bytes") if isinstance(cell, dict) else None
    if not isinstance(content, bytes):
        raise DatasetError(f"{what} holds no image bytes")
    try:
        return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        raise DatasetError(f"{what} holds a damaged image: {str(error)[:120]}") from None


def _our_name(name: str) -> str:
    head, _, tail = name.partition(".")
    if head == "observation":
        return f"observations.{tail}"
    return {"action": "actions", "next.reward": "rewards"}.get(name, f"infos.{tail or head}")


def _ends(fields: Mapping[str, Any], starts: np.ndarray) -> dict[str, np.ndarray]:
    last = np.zeros(starts[-1], dtype=bool)
    last[starts[1:] - 1] = True
    success = np.asarray(fields.get("infos.success", np.zeros(len(last)))).reshape(len(last), -1)[:, 0] > 0
    made: dict[str, np.ndarray] = {"terminated": last & success, "truncated": last & ~success}
    return made if "rewards" in fields else made | {"rewards": np.zeros(len(last), np.float32)}


def _flatten(fields: Mapping[str, np.ndarray]) -> list[str]:
    keys = [
        k.removeprefix("observations.")
        for k, a in fields.items()
        if k.startswith("observations.") and a.ndim == 2
    ]
    return [key for key in FIRST if key in keys] + sorted(key for key in keys if key not in FIRST)


def _decode(
    root: Path,
    name: str,
    feature: Mapping[str, Any],
    info: Mapping[str, Any],
    episodes: np.ndarray,
    lengths: np.ndarray,
) -> np.ndarray:
    """All frames of a video feature, (N, H, W, 3) bytes, in the order of the episodes."""
    height, width = _frame_size(name, feature, root)
    rows = _Table(root, "meta/episodes")
    keys = [f"videos/{name}/{what}" for what in ("chunk_index", "file_index", "from_timestamp")]
    place = {int(e): i for i, e in enumerate(rows.column("episode_index").tolist())}
    if missing := [int(e) for e in episodes if int(e) not in place]:
        raise DatasetError(f"{root}: meta/episodes does not list episode {missing[0]}")
    chunk, file, begin = (rows.column(key)[[place[int(e)] for e in episodes]] for key in keys)
    if not isinstance(fps := info.get("fps"), int | float) or not 0 < fps < math.inf:
        raise DatasetError(
            f"{root / INFO}: 'fps' must be frames a second, to find frames in videos, got {fps!r}"
        )
    first = np.round(begin * fps).astype(np.int64)
    out = np.empty((int(lengths.sum()), height, width, 3), np.uint8)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    for pair in sorted(set(zip(chunk.tolist(), file.tolist(), strict=True))):
        video = root / "videos" / name / f"chunk-{int(pair[0]):03d}" / f"file-{int(pair[1]):03d}.mp4"
        chosen = np.flatnonzero((chunk == pair[0]) & (file == pair[1]))
        target = {int(first[i]) + t: int(offsets[i]) + t for i in chosen for t in range(int(lengths[i]))}
        _read_frames(video, target, out)
    return out


def _frame_size(name: str, feature: Mapping[str, Any], root: Path) -> tuple[int, int]:
    shape, names = feature["shape"], feature.get("names")
    if isinstance(names, list) and "height" in names and "width" in names and len(names) == len(shape) == 3:
        return int(shape[names.index("height")]), int(shape[names.index("width")])
    if len(shape) == 3 and shape[2] == 3:
        return int(shape[0]), int(shape[1])
    raise DatasetError(f"{root}: the video {name!r} has the shape {shape}; which axis is its height?")


def _read_frames(video: Path, target: Mapping[int, int], out: np.ndarray) -> None:
    """Write frame ``k`` of a video to row ``target[k]``."""
    try:
        import imageio_ffmpeg
    except ImportError:
        raise MissingExtraError("imageio-ffmpeg", "policies") from None
    if not video.is_file():
        raise FileNotFoundError(f"no such video: {video}")
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "quiet", "-nostdin"]
    # as MP4 and nothing else: else a list of other files or addresses under this name would be followed
    command += ["-f", "mov", "-protocol_whitelist", "file", "-i", str(video)]
    command += ["-fps_mode", "passthrough", "-f", "image2pipe", "-c:v", "ppm", "-"]
    found, last = 0, max(target)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        for number in range(last + 1):
            header = process.stdout.readline() + process.stdout.readline() + process.stdout.readline()
            if not header:
                break
            width, height = (int(n) for n in header.split()[1:3])
            if (height, width) != out.shape[1:3]:
                process.kill()
                raise DatasetError(
                    f"{video} has frames of {height} x {width}, info.json says {out.shape[1:3]}"
                )
            frame = process.stdout.read(height * width * 3)
            if number in target and len(frame) == height * width * 3:
                out[target[number]] = np.frombuffer(frame, np.uint8).reshape(height, width, 3)
                found += 1
        process.kill()
    if found != len(target):
        raise DatasetError(
            f"{video} is damaged or ends early: {found} of {len(target)} frames can be decoded"
        )
