"""``offrl policy convert``: other people's policies as policies of this package."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from offrl.commands.arguments import parse
from offrl.data.environments import named_environment
from offrl.errors import ConfigError
from offrl.evaluation.environments import make_env
from offrl.evaluation.sources import check_folder, env_facts
from offrl.nn.policy import save_policy
from offrl.policies.chunk import ChunkPolicy
from offrl.policies.lerobot import is_lerobot_policy
from offrl.policies.lerobot_model import load_lerobot_policy
from offrl.policies.original import load_checkpoint


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """Read a policy that other code made, and write it as one of this package; nothing of the file is run.

    FILE is a LeRobot pretrained directory ('diffusion', of either layout), a checkpoint of the original Diffusion
    Policy code (U-Net or transformer, with images or without), or one of robomimic's diffusion policy. Example:

      offrl policy convert ~/pretrained_model --env pusht-state --out theirs
      offrl eval theirs --env pusht-state --episodes 100 --expect 0.65

    The parts of its observations keep the names that they had there; 'offrl compose' wires them by a file.
    """

    file: tyro.conf.Positional[Path]
    """Directory or file to read."""
    out: Path
    """Folder for the policy."""
    env: str | None = None
    """Environment whose action box it acts in; default: the range of the actions that it was trained on."""


def main(argv: list[str]) -> int:
    """``offrl policy convert ...``."""
    options = parse(ConvertOptions, "offrl policy convert", argv)
    check_folder(options.out, "--out")
    policy, kind = read(options.file, options.env)
    acts_in = env_facts(named_environment(options.env)) if options.env else {}
    save_policy(policy, options.out, {"converted_from": kind, **acts_in})
    parts = ", ".join(f"{name} {list(shape)}" for name, shape in policy.inputs)
    print(
        f"{kind}: {policy.settings['kind']}, sees {policy.n_obs} of {parts}; chunks of {policy.horizon}, "
        f"{policy.n_act} carried out, {policy.denoising_steps} denoising steps; saved {options.out}"
    )
    return 0


def read(file: Path, env: str | None) -> tuple[ChunkPolicy, str]:
    """A policy and what it was.

    Raises:
        FileNotFoundError, PolicyError: as the readers.
        ConfigError: a folder that holds no policy.
    """
    low, high = box(env)
    if file.is_dir():
        if not is_lerobot_policy(file):
            raise ConfigError(f"{file} is no LeRobot policy: it needs config.json and model.safetensors")
        return load_lerobot_policy(file, low, high), "LeRobot policy"
    return load_checkpoint(file, low, high)


def box(env: str | None) -> tuple[Any, Any]:
    """The action box of an environment, or nothing."""
    if env is None:
        return None, None
    made = make_env(named_environment(env))
    try:
        space: Any = made.action_space
        return space.low.tolist(), space.high.tolist()
    finally:
        made.close()
