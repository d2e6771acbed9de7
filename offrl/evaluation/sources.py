"""SOURCE: the name of a policy, the same in every command.

    run:DIR, DIR             a run directory, or any folder with policy.json and policy.safetensors
    lerobot:DIR              a LeRobot diffusion policy, of either layout
    sb3:FILE.zip             a stable-baselines3 agent, read without running its code
    py:PACKAGE.MODULE:NAME   your own code: NAME(env_spec) returns a Policy, or a function of observations
    served:PORT              a chunk policy in another process of this machine ('offrl serve policy')
    random                   uniform actions
    waypoint                 the hand-written controller of point mazes
    expert                   the scripted expert of PushT or FetchPickAndPlace

Only ``py:`` runs code; everything else is read as data.
"""

import difflib
import importlib
import inspect
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from offrl.data.environments import EnvSpec, flatten_order
from offrl.data.reference import FETCH_PICK, FETCH_PUSH, PUSHT
from offrl.errors import CheckpointError, ConfigError, PolicyError
from offrl.evaluation.environments import env_spec, make_env
from offrl.messages import served_port
from offrl.nn.policy import JSON_NAME, Policy, load_policy, read_description
from offrl.nn.random_policy import RandomPolicy

FORMS = (
    "run:DIR (or just DIR), sb3:FILE.zip, lerobot:DIR, py:PACKAGE.MODULE:NAME, served:PORT, random, waypoint, "
    "expert"
)
SCHEMES = ("run", "sb3", "py", "lerobot", "served")
NAMES = ("random", "waypoint", "expert")


def load_source(text: str, spec: EnvSpec | str) -> Policy:
    """The policy that ``text`` names.

    Args:
        text: one of the forms above. ``py:`` imports and runs code; name only code that you trust.
        spec: the environment that it will act in; ``random``, ``waypoint`` and ``py:`` are built for it.

    Raises:
        ConfigError: no such form, module or name; the message lists what there is.
        FileNotFoundError: the file or folder does not exist.
        PolicyError: the files hold no policy, or the factory returned none.
    """
    scheme, rest = split_source(text)
    if scheme == "run":
        return _load_directory(Path(rest), spec)
    if scheme == "sb3":
        from offrl.nn.sb3 import load_sb3_actor

        return load_sb3_actor(_existing_file(rest))
    if scheme == "lerobot":
        sizes = _sizes(spec)
        reader = importlib.import_module("offrl.policies.lerobot_model")
        found: Policy = reader.load_lerobot_policy(_existing_directory(Path(rest)), sizes.low, sizes.high)
        return found
    if scheme == "py":
        return _load_python(rest, env_spec(spec))
    if scheme == "served":
        served: Policy = importlib.import_module("offrl.policies.served").ServedPolicy(served_port(text))
        return served
    if rest == "waypoint":
        from offrl.evaluation.waypoint import WaypointPolicy

        return WaypointPolicy.for_env(env_spec(spec))
    if rest == "expert":
        return load_expert(spec)
    box = _sizes(spec)
    return RandomPolicy(box.obs_dim, len(box.low), box.low, box.high)


def load_expert(spec: EnvSpec | str) -> Policy:
    """The scripted expert of an environment.

    Raises:
        ConfigError: it has none.
    """
    spec = env_spec(spec)
    if spec.env_id == PUSHT:
        from offrl.evaluation.pusht import PushTExpert

        return PushTExpert.for_env(spec)
    if spec.env_id in (FETCH_PICK, FETCH_PUSH):
        from offrl.evaluation.fetch import FetchPickExpert, FetchPushExpert

        return (FetchPickExpert if spec.env_id == FETCH_PICK else FetchPushExpert).for_env(spec)
    raise ConfigError(
        f"there is no scripted expert for {spec.env_id}; there are some for pusht-state, fetch-pick-state and "
        "fetch-push-state"
    )


def split_source(text: str) -> tuple[str, str]:
    """``text`` as (scheme, rest); the scheme is ``run``, ``sb3``, ``py``, or empty for a policy's name.

    Raises:
        ConfigError: no such form; the message lists what there is.
    """
    scheme, colon, rest = text.partition(":")
    if colon and scheme in SCHEMES:
        if not rest:
            raise ConfigError(f"nothing after {text!r}; a policy is one of {FORMS}")
        return scheme, rest
    if text in NAMES:
        return "", text
    if text and Path(text).is_dir():
        return "run", text
    if colon and scheme.isidentifier() and not Path(text).exists():
        raise ConfigError(f"unknown kind of policy {scheme + ':'!r}; a policy is one of {FORMS}")
    if text.endswith(".zip"):
        raise ConfigError(f"{text!r} names no kind of policy; did you mean 'sb3:{text}'?")
    near = difflib.get_close_matches(text, NAMES, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; a policy is one of {FORMS}"
    raise ConfigError(f"{text!r} is neither a folder nor a policy's name{hint}")


@dataclass(frozen=True)
class SourceFacts:
    """What a run directory says about itself, besides the policy."""

    env: EnvSpec | None = None
    reference_returns: tuple[float, float] | None = None
    dataset_name: str | None = None
    fine_tuned: bool = False  # the run went on online


def source_facts(text: str) -> SourceFacts:
    """Environment and reference returns recorded with a run; empty for everything but runs.

    Raises:
        ConfigError, FileNotFoundError, PolicyError: as ``load_source``.
        CheckpointError: ``config.json`` is damaged.
    """
    scheme, rest = split_source(text)
    if scheme != "run":
        return SourceFacts()
    path = _existing_directory(Path(rest)) / "config.json"
    if not path.is_file():
        require_policy(path.parent)
        extra = read_description(path.parent).get("extra")
        try:
            return SourceFacts(_recorded_env(extra or {}))
        except (ValueError, TypeError, AttributeError) as error:
            raise PolicyError(
                f"{path.parent}: {JSON_NAME} does not describe an environment: {error}"
            ) from None
    try:
        config = json.loads(path.read_text())
        pair, llm = config.get("reference_returns"), "llm" in config
        facts = SourceFacts(
            _recorded_env(config),
            None if pair is None else (float(pair[0]), float(pair[1])),
            config.get("dataset_name"),
            "fine_tuned_from" in config,
        )
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        raise CheckpointError(f"{path} is not a run's config.json: {error}") from None
    if llm:
        raise ConfigError(f"{rest} is the run of a language model: use offrl llm eval")
    return facts


def env_facts(spec: EnvSpec) -> dict[str, Any]:
    """What a policy's folder says of the environment that it acts in, for ``source_facts``."""
    return {"env_id": spec.env_id, "env_kwargs": spec.kwargs, "env_flatten": list(spec.flatten)}


def check_folder(directory: Path, option: str) -> None:
    """Refuse a folder for a new policy that is no folder, or a run, whose own policy would be lost.

    Args:
        directory: where the policy is to be saved; it need not exist.
        option: what named it, for the message.

    Raises:
        ConfigError: it cannot be used.
    """
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"{option} names a folder, and {directory} is a file")
    if (directory / "config.json").exists():
        raise ConfigError(
            f"{directory} is a run (it has a config.json) and would lose its policy: choose another {option}"
        )


def _recorded_env(facts: dict[str, Any]) -> EnvSpec | None:
    """The environment in ``facts``; older folders of policies have its id alone."""
    if not (env_id := facts.get("env_id")):
        return None
    flatten = facts["env_flatten"] or () if "env_flatten" in facts else flatten_order(str(env_id))
    kwargs = dict(facts.get("env_kwargs") or {})
    return EnvSpec(env_id=str(env_id), kwargs=kwargs, flatten=tuple(str(key) for key in flatten))


class FunctionPolicy(Policy):
    """A function from observations (B, O) to actions (B, A), as a policy; its actions are cut to the box.

    Args:
        function: takes a float32 NumPy array, or a tensor if it is a torch module.
        obs_dim, act_dim, action_low, action_high: as in ``Policy``.
    """

    kind: ClassVar[str] = "function"

    def __init__(
        self, function: Callable[[Any], Any], obs_dim: int, act_dim: int, action_low: Any, action_high: Any
    ) -> None:
        super().__init__(obs_dim, act_dim, action_low, action_high)
        self.function = function

    def forward(self, observations: Tensor) -> Tensor:
        """What the function returns, (B, A).

        Raises:
            PolicyError: it is not an array of B rows and A columns.
        """
        if isinstance(self.function, nn.Module):
            raw = self.function(observations)
        else:
            raw = self.function(observations.cpu().numpy())
        try:
            actions = torch.as_tensor(raw, dtype=torch.float32, device=observations.device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise PolicyError(f"the policy function must return an array of actions: {error}") from error
        expected = (len(observations), self.act_dim)
        if tuple(actions.shape) != expected:
            raise PolicyError(
                f"the policy function returned shape {tuple(actions.shape)} for {len(observations)} "
                f"observations; it must be {expected}, one row of actions an observation"
            )
        return self.clip(actions)


@dataclass(frozen=True)
class _Sizes:
    obs_dim: int
    low: list[float]
    high: list[float]


def _sizes(spec: EnvSpec | str) -> _Sizes:
    env = make_env(spec)
    try:
        shape, box = env.observation_space.shape or (), env.action_space
        return _Sizes(shape[0], box.low.tolist(), box.high.tolist())  # type: ignore[attr-defined]
    finally:
        env.close()


def _existing_directory(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"no such folder: {path.absolute()}")
    if not path.is_dir():
        raise PolicyError(f"{path} is a file; 'run:' takes a run directory or a folder with {JSON_NAME}")
    return path


def require_policy(path: Path) -> None:
    """Refuse a folder without a policy.

    Raises:
        FileNotFoundError: no such folder.
        PolicyError: it is something else, or a run that has no policy yet.
    """
    if (_existing_directory(path) / JSON_NAME).exists():
        return
    if (path / "config.json").exists() and (path / "model").is_dir():
        raise PolicyError(
            f"{path} is the run of a language model, which acts in no environment: use offrl llm eval, or "
            "offrl export --format huggingface"
        )
    if (path / "config.json").exists():
        raise PolicyError(
            f"the run {path} has no policy yet: it is written at the first checkpoint; "
            f"finish it with 'offrl resume {path}'"
        )
    raise PolicyError(f"{path} is neither a run directory nor a policy: it has no {JSON_NAME}")


def _load_directory(path: Path, spec: EnvSpec | str) -> Policy:
    require_policy(path)
    if read_description(path).get("kind") == "inventory":
        env = make_env(spec)
        try:
            acting: Policy = importlib.import_module("offrl.envs.inventory.acting").load_acting(path, env)
            return acting
        finally:
            env.close()
    return load_policy(path)


def _existing_file(name: str) -> Path:
    path = Path(name)
    if path.is_dir():
        raise PolicyError(f"{path} is a folder; 'sb3:' takes the zip file of an agent")
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path.absolute()}")
    return path


def _load_python(text: str, spec: EnvSpec) -> Policy:
    module_name, _, name = text.partition(":")
    if not name or not all(part.isidentifier() for part in f"{module_name}.{name}".split(".")):
        raise ConfigError(f"'py:{text}' must be py:PACKAGE.MODULE:NAME, e.g. py:my_code.policies:make_policy")
    if os.getcwd() not in sys.path:  # an installed command does not see modules in the current folder
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # a library that the user's module needs
        raise ConfigError(
            f"there is no module {module_name!r} (no {error.name!r} in {os.getcwd()} or installed)"
        ) from None
    factory = getattr(module, name, None)
    if not callable(factory):
        public = [n for n in vars(module) if callable(getattr(module, n)) and not n.startswith("_")]
        near = difflib.get_close_matches(name, public, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{module_name} has no function {name!r}{hint}")
    try:
        inspect.signature(factory).bind(spec)
    except TypeError:
        raise PolicyError(f"py:{text} must take one argument, the environment's EnvSpec") from None
    except ValueError:  # a function that does not tell its arguments
        pass
    made = factory(spec)
    if isinstance(made, Policy):
        return made
    if not callable(made):
        raise PolicyError(
            f"py:{text} returned {type(made).__name__}; a factory takes the environment's EnvSpec and gives "
            "a Policy or a function from observations (B, O) to actions (B, A)"
        )
    box = _sizes(spec)
    return FunctionPolicy(made, box.obs_dim, len(box.low), box.low, box.high)
