"""A policy as one file that acts without offrl, compared with the policy before it is put in place.

    onnx    FILE.onnx  ONNX by torch's dynamo exporter: 'observations' (batch, O) -> 'actions' (batch, A)
    torch   FILE.pt2   torch.export: torch.export.load(FILE).module()(observations)
    sb3     FILE.zip   a whole stable-baselines3 agent, TD3 or SAC (see ``offrl.export.sb3``)

The normalizer is inside each. What is exported is ``policy(observations)``, the deterministic action: the mean of a
Gaussian, the squashed mean of a tanh-Gaussian. Only the SAC agent also samples as the policy does.
"""

import contextlib
import copy
import importlib
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from gymnasium.spaces import Box
from torch import Tensor

from offrl.data.environments import EnvSpec
from offrl.errors import ConfigError, MissingExtraError, PolicyError
from offrl.evaluation.critics import remembers
from offrl.evaluation.environments import make_env
from offrl.evaluation.sources import load_source, source_facts, split_source
from offrl.export import sb3
from offrl.files import atomic_write
from offrl.nn.policy import DeterministicPolicy, Policy

Format = Literal["onnx", "torch", "sb3"]
SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "torch": ".pt2", "sb3": ".zip"}
BATCH_SIZES = (1, 7, 256)
TOLERANCE = 1e-5  # largest difference of an action, in units of the box's half-range
TOLERANCE_OF_STEEP = 1e-3  # the same where float32 itself leaves the action uncertain by more

Act = Callable[[Tensor], Tensor]  # observations (B, O) -> actions (B, A)


@dataclass(frozen=True)
class ExportResult:
    """What was written, and how near its actions are to the policy's.

    ``error`` is the largest difference of an action component, in action units. ``agent`` is TD3 or SAC for a
    stable-baselines3 file. ``sampling`` says how the file relates to the noise of a stochastic policy; empty for a
    policy without.
    """

    path: Path
    format: Format
    error: float
    sampling: str
    agent: str | None = None


def export_policy(
    policy: str | Path | Policy, out: str | Path, format: Format, *, env: str | None = None
) -> ExportResult:
    """Write a policy as a file for other programs; see the top of this module.

    Args:
        policy: a ``Policy``, a run directory or policy folder (also as ``run:DIR``), or ``sb3:FILE.zip``.
        out: FILE.onnx, FILE.pt2 or FILE.zip; replaced if it exists, and only once the new file passed its check.
        format: ``onnx``, ``torch`` or ``sb3``.
        env: Gymnasium id whose spaces a stable-baselines3 agent gets; default: the run's own environment. Where
            neither is known the observation space is unbounded float32 and the action space the policy's box.

    Raises:
        ConfigError: an unknown format, a name that does not fit it, or an environment with other spaces.
        PolicyError: the policy cannot be expressed in that format, or the written file acts differently.
        MissingExtraError: an optional library is not installed.
        OSError: the file cannot be written.
    """
    out = Path(out)
    _check_request(out, format, env)
    network = _network(policy)
    spaces = _spaces(policy, network, env) if format == "sb3" else None
    agent = None
    with atomic_write(out) as temporary, torch.random.fork_rng(devices=[]):
        if spaces is not None:
            agent = sb3.write(network, temporary, *spaces)
            acts = sb3.readers(temporary, agent)
        else:
            acts = _write_graph(network, temporary, onnx=format == "onnx")
        error = max(_largest_difference(network, act, out) for act in acts)
    return ExportResult(out, format, error, _sampling(network, agent), agent)


def _check_request(out: Path, format: Format, env: str | None) -> None:
    if format not in get_args(Format):
        raise ConfigError(f"unknown format {format!r}; known are {', '.join(get_args(Format))}")
    if out.suffix != SUFFIXES[format]:
        raise ConfigError(f"a file of format {format} must end in {SUFFIXES[format]}, got {str(out)!r}")
    if out.is_dir():
        raise ConfigError(f"{out} is a folder")
    if env is not None and format != "sb3":
        raise ConfigError(f"env has no effect with format {format}: it says whose spaces an sb3 agent gets")
    if format == "sb3" and (out.parent / "vecnormalize.pkl").exists():
        raise ConfigError(
            f"beside {out} lies a vecnormalize.pkl, with which readers would normalize a second time; "
            "choose another folder"
        )
    if format == "onnx":
        _require_onnx()
    if format == "sb3":
        sb3.require()


def _network(policy: str | Path | Policy) -> Policy:
    """A copy to work on, on the CPU and constant."""
    if not isinstance(policy, Policy):
        scheme, _ = split_source(str(policy))
        if scheme not in ("run", "sb3"):
            raise ConfigError(f"{policy} cannot be exported; name a run, a policy folder or sb3:FILE.zip")
        policy = load_source(str(policy), "")  # these two are read as they are, for no environment
    if next(policy.parameters(), None) is None:
        raise PolicyError(f"a {policy.kind} policy holds no network that could be exported")
    network = copy.deepcopy(policy).cpu().eval().requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        if remembers(network):
            why = "acts on the episode so far, which formats onnx, torch and sb3 cannot hold"
            raise PolicyError(f"a {policy.kind} policy {why}")
    return network


def _spaces(policy: str | Path | Policy, network: Policy, env: str | None) -> tuple[Any, Any]:
    """Observation and action space of the environment, or of the policy where none is known.

    Raises:
        ConfigError: the environment's spaces are not those that the policy was built for.
    """
    spec: str | EnvSpec | None = env
    if env is None and not isinstance(policy, Policy):
        spec = source_facts(str(policy)).env
    if spec is None:
        return sb3.spaces_of(network)
    world = make_env(spec)
    observations, actions = world.observation_space, cast(Box, world.action_space)  # make_env saw to it
    world.close()
    name = spec if isinstance(spec, str) else spec.env_id
    if observations.shape != (network.obs_dim,):
        raise ConfigError(f"{name} has observations {observations}, but the policy takes O={network.obs_dim}")
    box = sb3.spaces_of(network)[1]
    if actions.shape != box.shape or not (
        np.array_equal(np.float32(actions.low), box.low)
        and np.array_equal(np.float32(actions.high), box.high)
    ):
        raise ConfigError(f"{name} has actions {actions}, but the policy was built for {box}")
    return observations, actions


def _write_graph(network: Policy, path: Path, *, onnx: bool) -> list[Act]:
    """Trace the policy for any batch size and write it; how to run the file."""
    example = torch.zeros(2, network.obs_dim)
    batch = {"observations": {0: torch.export.Dim("batch", min=1)}}
    with _quiet_exporter(), torch.no_grad():
        program = torch.export.export(network, (example,), dynamic_shapes=batch, strict=False)
        for node in program.graph.nodes:  # source lines of this machine
            node.meta.pop("stack_trace", None)
        if not onnx:
            torch.export.save(program, path)
            return [torch.export.load(path).module()]
        import onnxruntime

        settings: dict[str, Any] = {"input_names": ["observations"], "output_names": ["actions"]}
        settings |= {"dynamic_shapes": {"observations": {0: "batch"}}}  # the name of the axis in the file
        torch.onnx.export(program, f=path, dynamo=True, external_data=False, verbose=False, **settings)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return [lambda x: torch.from_numpy(session.run(["actions"], {"observations": x.numpy()})[0])]


def _largest_difference(network: Policy, act: Act, out: Path) -> float:
    """Over batches of several sizes, with observations from the normalizer's center to outside the data.

    Raises:
        PolicyError: it is above the tolerance, or an action is not a number.
    """
    generator = torch.Generator().manual_seed(0)
    spread = (network.observation_clip or 3.0) * torch.rand((sum(BATCH_SIZES), 1), generator=generator)
    noise = spread * torch.randn((len(spread), network.obs_dim), generator=generator)
    observations = network.mean + network.std * noise
    least, most = TOLERANCE * network.half_range, TOLERANCE_OF_STEEP * network.half_range
    allowed = (4 * _uncertainty(network, observations)).clamp(least, most)
    largest = 0.0
    for batch in observations.split(BATCH_SIZES):
        with torch.no_grad():
            difference = (act(batch) - network(batch)).abs()
        if not bool((difference <= allowed).all()):
            raise PolicyError(
                f"{out} is not written: at batch size {len(batch)} its actions differ from the policy's by up to "
                f"{float(difference.max()):.2g}, more than float32 rounding explains{_cause(network, out)}"
            )
        largest = max(largest, float(difference.max()))
    return largest


def _uncertainty(network: Policy, observations: Tensor) -> Tensor:
    """What float32 leaves open, (A,): the policy's own rounding, and the last digit of the observations."""
    exact = copy.deepcopy(network).double()
    eps = torch.finfo(torch.float32).eps
    with torch.no_grad():
        actions = exact(observations.double())
        neighbours = exact(observations.double() * (1.0 + eps))
        rounding = (network(observations) - actions).abs().amax(0)
        return torch.add(rounding, (neighbours - actions).abs().amax(0)).float()


def _cause(network: Policy, out: Path) -> str:
    """Where a normalizer in the first layer loses digits: W o - W mean cancels when the mean is many std from 0."""
    column = int((network.mean.abs() / network.std).argmax())
    mean, std = float(network.mean[column]), float(network.std[column])
    if out.suffix != SUFFIXES["sb3"] or abs(mean) < 100 * std:
        return ""
    return (
        f"; column {column} of the observations has mean {mean:g} and std {std:g}: use format onnx or torch"
    )


def _sampling(network: Policy, agent: str | None) -> str:
    if isinstance(network, DeterministicPolicy):
        return ""
    if agent == "SAC":
        return "it also samples as the policy does"
    return "only the deterministic action is in it, not the policy's noise"


def _require_onnx() -> None:
    for library in ("onnx", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(library)
        except ImportError as error:
            raise MissingExtraError(library, "export") from error


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Without torch's notes on libraries that are not needed here and on its own deprecated calls."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
