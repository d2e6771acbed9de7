"""A film of a policy, rendered off-screen: ``.mp4`` through imageio-ffmpeg, ``.gif`` through Pillow.

Rendering without a display takes EGL, which is what ``MUJOCO_GL`` is set to where it is unset on Linux.
Software rendering costs 0.1 to 0.2 s a frame, so a film is short: 150 frames at about 30 a second, real time.
"""

import contextlib
import dataclasses
import importlib.util
import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

from offrl.data.environments import EnvSpec
from offrl.errors import ConfigError, MissingExtraError
from offrl.evaluation.environments import env_spec, make_env
from offrl.files import atomic_write
from offrl.nn.policy import Policy

MAX_FRAMES = 150  # about 20 s of software rendering
TARGET_FPS = 30
SUFFIXES = (".mp4", ".gif")
NO_RENDERING = (
    "rendering without a display failed with MUJOCO_GL={backend} ({reason}); on Debian or Ubuntu run "
    "'apt-get install libegl1 libgl1-mesa-dri', or 'apt-get install libosmesa6' and set MUJOCO_GL=osmesa"
)


def record(
    policy: Policy,
    env: str | EnvSpec,
    path: Path | str,
    *,
    seed: int = 0,
    max_steps: int | None = None,
    size: tuple[int, int] = (320, 240),
    stride: int | None = None,
    deterministic: bool = True,
) -> int:
    """Film the first episode of ``policy`` and write it to ``path``, atomically.

    Args:
        policy: what acts.
        env: Gymnasium id or specification.
        path: ends in ``.mp4`` or ``.gif``.
        seed: of the environment and of the policy's samples.
        max_steps: environment steps at most; as many as 150 frames take when None.
        size: width and height in pixels, even numbers.
        stride: environment steps a frame; when None, as many as give about 30 frames a second of simulated
            time, or more if ``max_steps`` would not fit into 150 frames otherwise.
        deterministic: the policy's mode instead of samples.

    Returns:
        The number of frames.

    Raises:
        ConfigError: unknown file type, impossible size or stride, or no off-screen rendering here.
        MissingExtraError: an mp4 without imageio-ffmpeg.
    """
    path = Path(path)
    check_target(path)
    _check_numbers(max_steps, size, stride)
    choose_backend()
    simulator = _make(env, size)
    try:
        steps_per_second = float(simulator.metadata.get("render_fps") or TARGET_FPS)
        if stride is None:
            stride = max(1, round(steps_per_second / TARGET_FPS), -(-(max_steps or 0) // MAX_FRAMES))
        limit = stride * MAX_FRAMES if max_steps is None else max_steps
        frames = _frames(policy, simulator, seed, limit, stride, deterministic)
        return encode(frames, path, fps=steps_per_second / stride)
    finally:
        simulator.close()


def record_side_by_side(
    policies: Sequence[Policy],
    env: str | EnvSpec,
    path: Path | str,
    *,
    seed: int = 0,
    size: tuple[int, int] = (240, 240),
) -> int:
    """Film one episode of several policies from the same start, left to right; one that is over stands still.

    Args:
        policies: what acts.
        env: Gymnasium id or specification.
        path: ends in ``.mp4`` or ``.gif``.
        seed: of the environment and of the policies' samples.
        size: of each picture; environments of a size of their own keep it.

    Returns:
        The number of frames.

    Raises:
        ConfigError, MissingExtraError: as ``record``.
    """
    path = Path(path)
    check_target(path)
    choose_backend()
    films, fps = [], float(TARGET_FPS)
    for policy in policies:
        simulator = _make(env, size)
        try:
            fps = float(simulator.metadata.get("render_fps") or TARGET_FPS)
            stride = max(1, round(fps / TARGET_FPS))
            films.append(list(_frames(policy, simulator, seed, stride * MAX_FRAMES, stride, True)))
        finally:
            simulator.close()
    return encode(beside(films), path, fps=fps / stride)


def beside(films: Sequence[Sequence[np.ndarray]]) -> Iterator[np.ndarray]:
    """Films of one size side by side, with a light line between them; the last frame of a short one stays."""
    for at in range(max(map(len, films))):
        frames = [film[min(at, len(film) - 1)] for film in films]
        gap = np.full((frames[0].shape[0], 4, 3), 255, np.uint8)
        yield np.concatenate([part for frame in frames for part in (frame, gap)][:-1], axis=1)


def check_target(path: Path) -> None:
    """Refuse a film that could not be written.

    Raises:
        ConfigError: another file type.
        MissingExtraError: an mp4 without imageio-ffmpeg.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"a film ends in {' or '.join(SUFFIXES)}, got {path.name!r}")
    if path.suffix.lower() == ".mp4" and importlib.util.find_spec("imageio_ffmpeg") is None:
        raise MissingExtraError("imageio-ffmpeg", "mujoco")


def choose_backend() -> str:
    """Set ``MUJOCO_GL`` to ``egl`` where it is unset on Linux; returns what MuJoCo will use.

    Raises:
        ConfigError: OpenGL was loaded in this process for another backend, which cannot be changed any more.
    """
    if sys.platform != "linux":
        return os.environ.get("MUJOCO_GL", "glfw")
    backend = os.environ.setdefault("MUJOCO_GL", "egl")
    loaded = os.environ.get("PYOPENGL_PLATFORM", backend).lower()
    if backend in ("egl", "osmesa") and loaded != backend:
        raise ConfigError(
            f"MUJOCO_GL is {backend} but PYOPENGL_PLATFORM is {loaded}, set outside or by an earlier film; "
            f"start a new process with MUJOCO_GL={backend} and without PYOPENGL_PLATFORM"
        )
    return backend


def encode(frames: Iterable[np.ndarray], path: Path | str, *, fps: float) -> int:
    """Write frames (H, W, 3) uint8 as a film, atomically; returns how many there were.

    Args:
        frames: at least one, all of one size; an odd last row or column is cut off.
        path: ends in ``.mp4`` or ``.gif``.
        fps: frames a second.
    """
    path = Path(path)
    check_target(path)
    write = _write_gif if path.suffix.lower() == ".gif" else _write_mp4
    even = (frame[: frame.shape[0] & ~1, : frame.shape[1] & ~1] for frame in frames)
    with atomic_write(path) as temporary:
        return write(even, temporary, fps)


def _frames(
    policy: Policy, simulator: Any, seed: int, limit: int, stride: int, deterministic: bool
) -> Iterator[np.ndarray]:
    """Rendered frames of one episode: the first observation, then every ``stride``-th."""
    generator = torch.Generator().manual_seed(seed)
    observation, _ = simulator.reset(seed=seed)
    simulator.action_space.seed(seed)
    yield _render(simulator)
    state, over = None, False
    for step in range(1, limit):
        batch = torch.as_tensor(np.asarray(observation, dtype=np.float32))[None]
        with torch.no_grad():
            actions, state = policy.act(batch, state, deterministic=deterministic, generator=generator)
        observation, reward, terminated, truncated, _ = simulator.step(actions[0].cpu().numpy())
        state = policy.rewarded(state, torch.tensor([float(reward)]))
        over = terminated or truncated
        if step % stride == 0 or over:
            yield _render(simulator)
        if over:
            return


def _render(simulator: Any) -> np.ndarray:
    try:
        return np.asarray(simulator.render(), dtype=np.uint8)
    except gymnasium.error.DependencyNotInstalled as error:  # pygame, for the classic environments
        raise ConfigError(f"{str(error).splitlines()[0]}") from error
    except (ImportError, AttributeError, RuntimeError) as error:  # PyOpenGL and MuJoCo without a driver
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        message = NO_RENDERING.format(backend=os.environ.get("MUJOCO_GL"), reason=reason)
        raise ConfigError(message) from error


def _make(env: str | EnvSpec, size: tuple[int, int]) -> Any:
    """The environment rendering at ``size``, or at its own size if it takes none."""
    spec = env_spec(env)
    sized = dataclasses.replace(spec, kwargs={**spec.kwargs, "width": size[0], "height": size[1]})
    with contextlib.suppress(ConfigError):  # if the size was not the reason, the next line raises it again
        return make_env(sized, render_mode="rgb_array")
    return make_env(spec, render_mode="rgb_array")


def _check_numbers(max_steps: int | None, size: tuple[int, int], stride: int | None) -> None:
    if any(length % 2 or not 16 <= length <= 4096 for length in size):
        raise ConfigError(f"the size of a film must be two even numbers from 16 to 4096, got {size}")
    for name, value in (("max_steps", max_steps), ("stride", stride)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} must be 1 or more, got {value}")


def _write_mp4(frames: Iterable[np.ndarray], path: Path, fps: float) -> int:
    import imageio_ffmpeg

    frames = iter(frames)
    first = next(frames)
    pixels = f"-f rawvideo -pix_fmt rgb24 -s {first.shape[1]}x{first.shape[0]} -r {fps:.4f} -i -"
    quality = "-c:v libx264 -pix_fmt yuv420p -crf 23 -movflags +faststart -f mp4"
    options = f"-y -v error {pixels} {quality}".split()
    command = [imageio_ffmpeg.get_ffmpeg_exe(), *options, str(path)]
    count = 0
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log) as encoder,
    ):
        if encoder.stdin is None:
            raise RuntimeError("ffmpeg was started without a pipe")
        with contextlib.suppress(BrokenPipeError):  # it gave up: its message follows
            for frame in itertools.chain([first], frames):
                encoder.stdin.write(np.ascontiguousarray(frame).data)
                count += 1
            encoder.stdin.close()
        if encoder.wait() != 0:
            log.seek(0)
            said = log.read().decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
            raise OSError(f"ffmpeg could not write the film: {said[0]}")
    return count


def _write_gif(frames: Iterable[np.ndarray], path: Path, fps: float) -> int:
    from PIL import Image

    images = [Image.fromarray(frame).quantize(128) for frame in frames]
    milliseconds = max(20, round(1000 / fps))  # browsers show shorter delays as 100 ms
    images[0].save(path, format="GIF", save_all=True, append_images=images[1:], duration=milliseconds, loop=0)
    return len(images)
