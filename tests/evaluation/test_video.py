import os
import subprocess
import sys

import gymnasium
import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from offrl.data.environments import EnvSpec
from offrl.errors import ConfigError, MissingExtraError
from offrl.evaluation import video
from offrl.evaluation.sources import load_source
from offrl.evaluation.video import choose_backend, encode, record
from offrl.nn.random_policy import RandomPolicy

PENDULUM = "InvertedPendulum-v5"


def stripes(count, shape=(64, 96)):
    """Frames with a white column that moves to the right by 8 pixels a frame."""
    for i in range(count):
        frame = np.zeros((*shape, 3), np.uint8)
        frame[:, 8 * i : 8 * i + 8] = 255
        yield frame


class Clock:
    """An environment whose picture shows its age; it ends after ``horizon`` steps."""

    metadata = {"render_fps": 60}

    def __init__(self, horizon):
        from gymnasium import spaces

        self.horizon, self.age, self.closed = horizon, 0, False
        self.observation_space = spaces.Box(-1.0, 1.0, (2,))
        self.action_space = spaces.Box(-1.0, 1.0, (1,))

    def reset(self, seed=None):
        self.age = 0
        return np.zeros(2), {}

    def step(self, action):
        assert action.shape == (1,)
        self.age += 1
        return np.zeros(2), 0.0, self.age == self.horizon, False, {}

    def render(self):
        return np.full((16, 16, 3), (self.age // 256, self.age % 256, 0), np.uint8)

    def close(self):
        self.closed = True


@pytest.fixture
def clock(monkeypatch):
    """``run(horizon, ...)`` films a clock and returns the ages on its frames, and the frames a second."""

    def run(horizon, **options):
        simulator, seen = Clock(horizon), {}

        def fake(frames, path, *, fps):
            seen.update(ages=[256 * int(f[0, 0, 0]) + int(f[0, 0, 1]) for f in frames], fps=fps)
            return len(seen["ages"])

        monkeypatch.setattr(video, "_make", lambda env, size: simulator)
        monkeypatch.setattr(video, "encode", fake)
        assert record(RandomPolicy(2, 1), "Clock-v0", "film.gif", **options) == len(seen["ages"])
        assert simulator.closed
        return seen["ages"], seen["fps"]

    return run


def test_mp4_holds_the_frames_in_order(tmp_path):
    assert encode(stripes(6), tmp_path / "film.mp4", fps=10) == 6
    ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(tmp_path / "film.mp4")]
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    done = subprocess.run([*ffmpeg, *raw], capture_output=True, check=True)
    frames = np.frombuffer(done.stdout, np.uint8).reshape(-1, 64, 96, 3)
    assert [int(frame[:, :, 0].mean(axis=0).argmax()) // 8 for frame in frames] == list(range(6))
    assert b"10 fps" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["film.mp4"]


def test_encoder_that_fails_is_quoted(tmp_path):
    with pytest.raises(OSError, match="ffmpeg could not write the film: "):
        encode(stripes(3, shape=(64, 0)), tmp_path / "film.mp4", fps=10)
    assert list(tmp_path.iterdir()) == []


def test_gif_holds_the_frames_in_order(tmp_path):
    assert encode(stripes(5), tmp_path / "film.gif", fps=25) == 5
    with Image.open(tmp_path / "film.gif") as film:
        assert (film.n_frames, film.size, film.info["duration"]) == (5, (96, 64), 40)
        film.seek(3)
        assert np.array(film.convert("L")).mean(axis=0).argmax() // 8 == 3


@pytest.mark.parametrize("name", ["film.mp4", "film.gif"])
def test_odd_sizes_lose_their_last_row_and_column(tmp_path, name):
    encode(stripes(2, shape=(65, 97)), tmp_path / name, fps=10)
    assert (tmp_path / name).stat().st_size > 0


def test_failing_rendering_leaves_nothing_behind_and_the_old_film_alone(tmp_path):
    def frames():
        yield from stripes(1)
        raise ConfigError("stop")

    for name in ("film.mp4", "film.gif"):
        (tmp_path / name).write_bytes(b"old")
        with pytest.raises(ConfigError, match="stop"):
            encode(frames(), tmp_path / name, fps=10)
        assert (tmp_path / name).read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 2


def test_frame_is_rendered_without_a_display(tmp_path):
    path = tmp_path / "film.gif"
    assert record(load_source("random", PENDULUM), PENDULUM, path, max_steps=1, size=(64, 48)) == 1
    with Image.open(path) as film:
        assert film.size == (64, 48)
        assert np.array(film.convert("RGB")).std() > 5


def test_film_is_in_real_time_at_about_30_frames_a_second(clock):
    """60 steps a second: every second step, 30 frames a second; the last step is always shown."""
    ages, fps = clock(horizon=7)
    assert ages == [0, 2, 4, 6, 7]
    assert fps == 30.0


def test_film_ends_at_150_frames(clock):
    ages, _ = clock(horizon=1000)
    assert ages == list(range(0, 300, 2))


def test_stride_grows_with_max_steps_to_stay_within_150_frames(clock):
    ages, fps = clock(horizon=10_000, max_steps=900)
    assert len(ages) == 150
    assert ages[:3] == [0, 6, 12]
    assert fps == 10.0


def test_stride_and_max_steps_are_followed(clock):
    assert clock(horizon=1000, max_steps=10, stride=3)[0] == [0, 3, 6, 9]


def test_environment_without_width_and_height_keeps_its_own_size(monkeypatch):
    calls = []

    def make(spec, render_mode):
        calls.append(spec.kwargs)
        if "width" in spec.kwargs:
            raise ConfigError("Own-v0 does not take the arguments")
        return "made"

    monkeypatch.setattr(video, "make_env", make)
    assert video._make(EnvSpec("Own-v0", kwargs={"a": 1}), (64, 48)) == "made"
    assert calls == [{"a": 1, "width": 64, "height": 48}, {"a": 1}]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "film.avi"}, r"a film ends in \.mp4 or \.gif, got 'film\.avi'"),
        ({"size": (63, 64)}, "two even numbers from 16 to 4096"),
        ({"size": (8, 64)}, "two even numbers"),
        ({"stride": 0}, "stride must be 1 or more, got 0"),
        ({"max_steps": 0}, "max_steps must be 1 or more, got 0"),
    ],
)
def test_impossible_films_are_refused_before_anything_is_made(options, message):
    with pytest.raises(ConfigError, match=message):
        record(RandomPolicy(4, 1), "No-Such-Env", **{"path": "film.gif"} | options)


def test_missing_encoder_names_its_extra(monkeypatch):
    monkeypatch.setattr(video.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"imageio-ffmpeg.*offrl\[mujoco\]"):
        record(RandomPolicy(4, 1), PENDULUM, "film.mp4")


def test_a_missing_renderer_says_what_to_install(monkeypatch):
    simulator = Clock(3)

    def render():
        raise gymnasium.error.DependencyNotInstalled('pygame is not installed, run `pip install "x"`')

    simulator.render = render
    monkeypatch.setattr(video, "_make", lambda env, size: simulator)
    with pytest.raises(ConfigError, match="^pygame is not installed, run"):
        record(RandomPolicy(2, 1), PENDULUM, "film.gif")


@pytest.mark.parametrize(
    "error", [ImportError("no libEGL.so"), AttributeError("no eglQueryString"), RuntimeError("")]
)
def test_missing_driver_says_what_to_install(monkeypatch, error):
    def render():
        raise error

    simulator = Clock(3)
    simulator.render = render
    monkeypatch.setattr(video, "_make", lambda env, size: simulator)
    with pytest.raises(ConfigError, match=r"rendering without a display failed with MUJOCO_GL=\w+ .*libegl1"):
        record(RandomPolicy(2, 1), PENDULUM, "film.gif")
    assert simulator.closed


def test_backend_is_egl_on_linux_unless_chosen(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("PYOPENGL_PLATFORM", raising=False)
    monkeypatch.setenv("MUJOCO_GL", "x")  # so that the test's own setting is undone
    monkeypatch.delenv("MUJOCO_GL")
    assert choose_backend() == os.environ["MUJOCO_GL"] == "egl"
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    assert choose_backend() == "osmesa"


def test_backend_that_cannot_be_changed_any_more_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.setenv("PYOPENGL_PLATFORM", "egl")
    with pytest.raises(ConfigError, match="MUJOCO_GL is osmesa but PYOPENGL_PLATFORM is egl"):
        choose_backend()
