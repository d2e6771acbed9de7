"""LeRobotDataset v3 folders, written by the test in exactly their layout."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from offrl.data.lerobot import read_lerobot
from offrl.data.load import load_dataset
from offrl.errors import DatasetError

LENGTHS = [3, 4]
TWO_REWARDS = {
    "action": {"dtype": "float32", "shape": [2]},
    "observation.state": {"dtype": "float32", "shape": [2]},
    "next.reward": {"dtype": "float32", "shape": [2]},
}
SIZE = 32


def png(value, side=8):
    buffer = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), value, np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def frames():
    """Columns of the two episodes."""
    n = sum(LENGTHS)
    episode = np.repeat([0, 1], LENGTHS)
    last = np.append(np.diff(episode) > 0, True)
    return {
        "observation.state": [[float(i), 1.0] for i in range(n)],
        "observation.environment_state": [[0.5 * i] * 4 for i in range(n)],
        "action": [[float(-i), 2.0] for i in range(n)],
        "observation.images.wrist": [{"bytes": png(i), "path": f"frame-{i:06d}.png"} for i in range(n)],
        "next.reward": np.linspace(0, 1, n).astype(np.float32),
        "next.done": last,
        "next.success": last & (episode == 1),
        "episode_index": episode,
        "frame_index": np.concatenate([np.arange(k) for k in LENGTHS]),
        "timestamp": (np.arange(n) / 10).astype(np.float32),
        "index": np.arange(n),
        "task_index": np.zeros(n, np.int64),
    }


def write(folder, columns=None, *, video=False, **info):
    columns = frames() if columns is None else columns
    features = {
        "observation.state": {"dtype": "float32", "shape": [2], "names": None},
        "observation.environment_state": {"dtype": "float32", "shape": [4], "names": None},
        "action": {"dtype": "float32", "shape": [2], "names": None},
        "observation.images.wrist": {"dtype": "image", "shape": [8, 8, 3], "names": ["height", "width", "channel"]},
        "next.reward": {"dtype": "float32", "shape": [1], "names": None},
        "next.done": {"dtype": "bool", "shape": [1], "names": None},
        "next.success": {"dtype": "bool", "shape": [1], "names": None},
        **{k: {"dtype": "int64", "shape": [1], "names": None} for k in ("frame_index", "episode_index", "index", "task_index")},
        "timestamp": {"dtype": "float32", "shape": [1], "names": None},
    }  # fmt: skip
    if video:
        features["observation.images.top"] = {
            "dtype": "video", "shape": [3, SIZE, SIZE], "names": ["channels", "height", "width"], "info": {},
        }  # fmt: skip
    (folder / "meta/episodes/chunk-000").mkdir(parents=True)
    (folder / "data/chunk-000").mkdir(parents=True)
    content = {
        "codebase_version": "v3.0",
        "robot_type": "2d",
        "fps": 10,
        "features": features,
        "total_episodes": 2,
    }
    (folder / "meta/info.json").write_text(json.dumps(content | info))
    starts = [0, LENGTHS[0]]
    episodes = {
        "episode_index": [0, 1],
        "length": LENGTHS,
        "data/chunk_index": [0, 0],
        "data/file_index": [0, 0],
    }
    name = "videos/observation.images.top"
    episodes |= {f"{name}/chunk_index": [0, 0], f"{name}/file_index": [0, 0]}
    episodes |= {f"{name}/from_timestamp": [s / 10 for s in starts]}
    pq.write_table(pa.table(episodes), folder / "meta/episodes/chunk-000/file-000.parquet")
    for file, rows in (("file-000", slice(0, 5)), ("file-001", slice(5, None))):
        part = {k: list(v)[rows] for k, v in columns.items()}
        pq.write_table(pa.table(part), folder / f"data/chunk-000/{file}.parquet")
    return folder


def write_video(folder, levels):
    import imageio_ffmpeg

    path = folder / "videos/observation.images.top/chunk-000/file-000.mp4"
    path.parent.mkdir(parents=True)
    writer = imageio_ffmpeg.write_frames(
        str(path), (SIZE, SIZE), fps=10, macro_block_size=1, output_params=["-g", "2"]
    )
    writer.send(None)
    for level in levels:
        writer.send(np.full((SIZE, SIZE, 3), level, np.uint8).tobytes())
    writer.close()


def test_columns_become_fields_and_success_terminates(tmp_path):
    """next.done says only that the recording ended; next.success of the last step ends the task."""
    data = load_dataset(f"lerobot:{write(tmp_path / 'd')}")
    assert data.episode_lengths.tolist() == LENGTHS
    assert data.metadata["flatten"] == ["state", "environment_state"]
    assert data.flat_observations()[2].tolist() == [2.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert data.fields["actions"][:, 0].tolist() == [0, -1, -2, -3, -4, -5, -6]
    assert data.fields["truncated"].nonzero()[0].tolist() == [2]
    assert data.fields["terminated"].nonzero()[0].tolist() == [6]
    np.testing.assert_allclose(data.fields["rewards"], np.linspace(0, 1, 7), atol=1e-7)
    assert data.fields["observations.images.wrist"][:, 0, 0, 0].tolist() == list(range(7))
    assert data.metadata["fps"] == 10


def test_rows_follow_the_index_whatever_the_order_of_the_files(tmp_path):
    columns = {k: list(v)[::-1] for k, v in frames().items()}
    assert read_lerobot(write(tmp_path / "r", columns)).sha256 == read_lerobot(write(tmp_path / "d")).sha256


def test_videos_are_left_out_unless_asked_for(tmp_path):
    """Frame k of an episode is frame from_timestamp * fps + k of its file."""
    folder = write(tmp_path / "d", video=True)
    assert load_dataset(f"lerobot:{folder}").metadata["left_out"] == ["observation.images.top"]
    levels = [20, 60, 100, 140, 180, 220, 250]
    write_video(folder, levels)
    video = load_dataset(f"lerobot:{folder}#video").fields["observations.images.top"]
    assert video.shape == (7, SIZE, SIZE, 3)
    np.testing.assert_allclose(video.mean(axis=(1, 2, 3)), levels, atol=6)  # a lossy codec
    with pytest.raises(DatasetError, match="only 'video'"):
        load_dataset(f"lerobot:{folder}#pixels")


def test_broken_videos_give_one_clear_line(tmp_path):
    folder = write(tmp_path / "d", video=True)
    with pytest.raises(FileNotFoundError, match=r"no such video: .*file-000\.mp4"):
        read_lerobot(folder, video=True)
    write_video(folder, [20, 60])
    with pytest.raises(DatasetError, match="ends early: 2 of 7 frames can be decoded"):
        read_lerobot(folder, video=True)
    (folder / "videos/observation.images.top/chunk-000/file-000.mp4").write_bytes(b"no film")
    with pytest.raises(DatasetError, match="0 of 7 frames can be decoded") as caught:
        read_lerobot(folder, video=True)
    assert "\n" not in str(caught.value)


def test_a_list_of_files_in_place_of_a_video_is_not_followed(tmp_path):
    folder = write(tmp_path / "d", video=True)
    write_video(folder, [20, 60, 100, 140, 180, 220, 250])
    video = folder / "videos/observation.images.top/chunk-000/file-000.mp4"
    video.rename(video.with_name("other.mp4"))
    video.write_text("ffconcat version 1.0\nfile other.mp4\n")
    with pytest.raises(DatasetError, match="0 of 7 frames can be decoded"):
        read_lerobot(folder, video=True)


@pytest.mark.parametrize("fps", [None, "ten", 0, float("nan")])
def test_frames_of_videos_are_not_found_without_their_rate(tmp_path, fps):
    folder = write(tmp_path / "d", video=True, fps=fps)
    with pytest.raises(DatasetError, match=r"info\.json: 'fps' must be frames a second"):
        read_lerobot(folder, video=True)


def changed(**columns):
    return lambda folder: write(folder, frames() | columns)


def without(name):
    return lambda folder: write(folder, {k: v for k, v in frames().items() if k != name})


def after(spoil):
    def make(folder):
        spoil(write(folder))

    return make


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: write(d, codebase_version="v2.1"), r"a LeRobotDataset v2\.1; only v3"),
        (lambda d: write(d, features={"action": {"dtype": "float32"}}), "dtype and shape"),
        (lambda d: write(d, features={}), "dtype and shape of 'action'"),
        (lambda d: write(d, features=TWO_REWARDS | {"observation.../x": {"dtype": "video", "shape": [8, 8, 3]}}),
         r"the feature 'observation\.\.\./x' has a slash"),
        (after(lambda d: (d / "meta/info.json").write_text("{")), "not a JSON object"),
        (after(lambda d: (d / "data/chunk-000/file-001.parquet").write_bytes(b"PAR1 no PAR1")), "cannot read the Parquet"),
        (changed(action=[[0.0]] * 7), r"cells of 'action' have shape \(1,\), info.json says \[2\]"),
        (changed(action=[[0.0, 1.0]] * 6 + [[1.0]]), "empty, ragged or no numbers"),
        (changed(action=[[0.0, 1.0]] * 6 + [None]), "empty, ragged or no numbers"),
        (changed(action=[[0.0, float("nan")]] * 7), "empty, ragged or no numbers"),
        (without("action"), "no column 'action'"),
        (changed(episode_index=np.array([0, 1, 0, 1, 1, 1, 1])), "not together"),
        (changed(index=[[i, i] for i in range(7)]), r"d/data: 'index' has shape \(7, 2\); it needs one number"),
        (changed(**{"next.reward": [[0.0, 1.0]] * 7}), "cells of 'next.reward' have shape"),
        (lambda d: write(d, frames() | {"next.reward": [[0.0, 1.0]] * 7}, features=TWO_REWARDS),
         r"d: 'rewards' has shape \(7, 2\); it needs one number per step"),
        (lambda d: write(d, {k: v[:0] for k, v in frames().items()}), "d holds no frames"),
        (after(lambda d: pq.write_table(pa.table({"index": np.zeros(2_000_000)}), d / "data/chunk-000/file-000.parquet")),
         r"file-000\.parquet claims 2000000 rows, but takes \d+ bytes"),
        (changed(**{"observation.images.wrist": [{"bytes": b"no", "path": ""}] * 7}), "damaged image"),
        (changed(**{"observation.images.wrist": [{"bytes": png(0, 8 + i % 2), "path": ""} for i in range(7)]}),
         r"images of 'observation\.images\.wrist' have several shapes: \[\(8, 8, 3\), \(9, 9, 3\)\]"),
    ],
)  # fmt: skip
def test_malformed_folders_give_one_clear_line(tmp_path, make, message):
    make(tmp_path / "d")
    with pytest.raises(DatasetError, match=message) as caught:
        read_lerobot(tmp_path / "d")
    assert "\n" not in str(caught.value)


def test_missing_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        read_lerobot(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"info\.json"):
        read_lerobot(tmp_path / "empty")
