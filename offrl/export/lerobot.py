"""A policy as a plug-in that LeRobot's own evaluation loads.

    OUT/pretrained_model/   config.json (type offrl), the two pipelines, and the policy itself in the folder offrl
    OUT/plugin/             a small package, lerobot_policy_offrl, which registers the type 'offrl' with LeRobot

The package is installed beside LeRobot and needs offrl there too: the policy acts in LeRobot's evaluation with the code
that it acts with here. Normalizers are inside the policy, so LeRobot's are the identity.

Source: huggingface/lerobot 0.4.4, policies/factory.py (policies of other packages), scripts/lerobot_eval.py.
"""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from offrl import __version__
from offrl.errors import ConfigError, PolicyError
from offrl.evaluation.environments import env_spec, make_env, shown_parts
from offrl.evaluation.sources import load_source, source_facts
from offrl.files import atomic_write_text
from offrl.nn.policy import Policy, save_policy

KEYS = {  # part of an observation -> LeRobot's key and kind
    "agent_pos": ("observation.state", "STATE"),
    "environment_state": ("observation.environment_state", "ENV"),
    "pixels": ("observation.image", "VISUAL"),
}
MODULES = ("configuration", "modeling", "processor")
INIT = '''"""Registers the policies that offrl trained with LeRobot."""

from .configuration_offrl import OffrlConfig as OffrlConfig
'''
Parts = list[tuple[str, tuple[int, ...]]]


def export_lerobot(source: str, out: Path, env: str | None = None) -> list[str]:
    """Write the two folders; returns lines that say how to use them.

    Args:
        source: a run, a policy folder, lerobot:DIR or sb3:FILE.zip.
        out: a new folder.
        env: environment whose parts the policy sees, where it does not name them itself; default: the run's own.

    Raises:
        ConfigError: the folder exists, or no environment is known.
        PolicyError: the policy sees something that LeRobot's environments do not show.
    """
    if out.exists():
        raise ConfigError(f"{out} exists; name a new folder")
    facts = source_facts(source).env
    spec = facts if env is None else env_spec(env)
    policy = load_source(source, spec or "")
    keys = {name: key_of(name, shape) for name, shape in parts_of(policy, spec)}
    if len({key for key, _ in keys.values()}) < len(keys):
        raise PolicyError(f"two parts of the observation would have one key in LeRobot: {keys}")
    model, plugin = out / "pretrained_model", out / "plugin"
    save_policy(policy, model / "offrl", {"env_id": None if spec is None else spec.env_id})
    for name, value in describing(policy, parts_of(policy, spec), keys).items():
        atomic_write_text(model / name, json.dumps(value, indent=2) + "\n")
    write_plugin(plugin)
    shows = "pixels" if any(kind == "VISUAL" for _, kind in keys.values()) else "environment_state"
    return [
        f"written to {out}: {', '.join(f'{name} as {key}' for name, (key, _) in keys.items())}",
        f"in LeRobot's environment, once: pip install offrl '{plugin}'",
        f"then e.g.: lerobot-eval --policy.path={model} --env.type=pusht --env.obs_type={shows}_agent_pos",
    ]


def parts_of(policy: Policy, spec: Any) -> Parts:
    """Names and shapes of what a policy sees, in order.

    Raises:
        ConfigError: it does not say, and no environment is known.
    """
    declared = getattr(policy, "inputs", None)
    if declared:
        return [(name, tuple(shape)) for name, shape in declared]
    if spec is None:
        raise ConfigError("the policy does not say what it sees; pass --env ID")
    made = make_env(spec)
    try:
        return shown_parts(made, spec)
    finally:
        made.close()


def key_of(name: str, shape: tuple[int, ...]) -> tuple[str, str]:
    """LeRobot's key and kind of a part of an observation (PolicyError where it has none)."""
    if name in KEYS:
        return KEYS[name]
    if name == "observation":
        return "observation.state", "STATE"
    if name.startswith("observation."):
        return name, "VISUAL" if len(shape) == 3 else "ENV" if name.endswith("environment_state") else "STATE"
    raise PolicyError(
        f"the policy sees {name!r}, which LeRobot's environments do not show; they show {', '.join(KEYS)}"
    )


def describing(policy: Policy, parts: Parts, keys: dict[str, tuple[str, str]]) -> dict[str, Any]:
    """The three JSON files, by name."""
    inputs = {}
    for name, shape in parts:
        key, kind = keys[name]
        inputs[key] = {"type": kind, "shape": [shape[2], *shape[:2]] if len(shape) == 3 else list(shape)}
    device = {"registry_name": "device_processor", "config": {"device": "cpu", "float_dtype": None}}
    rename = {"registry_name": "rename_observations_processor", "config": {"rename_map": {}}}
    config = {
        "type": "offrl",
        "n_obs_steps": getattr(policy, "n_obs", 1),
        "horizon": getattr(policy, "horizon", getattr(policy, "n_act", 1)),
        "n_action_steps": getattr(policy, "n_act", 1),
        "inputs": {name: key for name, (key, _) in keys.items()},
        "input_features": inputs,
        "output_features": {"action": {"type": "ACTION", "shape": [policy.act_dim]}},
        "normalization_mapping": dict.fromkeys(("STATE", "ENV", "VISUAL", "ACTION"), "IDENTITY"),
        "device": "cpu",
    }
    batch = {"registry_name": "to_batch_processor", "config": {}}
    return {
        "config.json": config,
        "policy_preprocessor.json": {"name": "policy_preprocessor", "steps": [rename, batch, device]},
        "policy_postprocessor.json": {"name": "policy_postprocessor", "steps": [device]},
    }


def write_plugin(folder: Path) -> None:
    """The package that registers the type."""
    project = [
        "[build-system]",
        'requires = ["setuptools>=61"]',
        'build-backend = "setuptools.build_meta"',
        "",
        "[project]",
        'name = "lerobot_policy_offrl"',
        f'version = "{__version__}"',
        'dependencies = ["offrl"]',
        "",
        "[tool.setuptools]",
        'packages = ["lerobot_policy_offrl"]',
    ]
    atomic_write_text(folder / "pyproject.toml", "\n".join(project) + "\n")
    package = folder / "lerobot_policy_offrl"
    atomic_write_text(package / "__init__.py", INIT)
    for name in MODULES:
        text = (files("offrl.export") / f"lerobot_{name}.txt").read_text(encoding="utf-8")
        atomic_write_text(package / f"{name}_offrl.py", text)
