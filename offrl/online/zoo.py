"""Hyper-parameter files in the layout of rl-baselines3-zoo, as options and settings here.

A file maps environment ids, or ``default``, to options by stable-baselines3's names; ours are understood too. What has
no counterpart is refused, unless it asks for what happens here anyway. Nothing is evaluated: of ``dict(...)`` in
strings only literals and the two activations are read, and words where our own setting is one.

Source: DLR-RM/rl-baselines3-zoo 2.9, ``hyperparams/*.yml``, ``exp_manager.py``.
"""

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from offrl.errors import ConfigError, MissingExtraError
from offrl.files import check_values

SUFFIXES = (".yml", ".yaml")
MAX_BYTES = 1_000_000
NAMES = {  # theirs -> ours
    "n_timesteps": "steps",
    "n_envs": "num_envs",
    "learning_rate": "lr",
    "gamma": "discount",
    "n_steps": "rollout",
    "n_epochs": "epochs",
    "clip_range": "clip",
    "vf_coef": "value_coefficient",
    "ent_coef": "entropy_coefficient",
    "norm_obs": "normalize_observations",
    "norm_reward": "normalize_rewards",
    "log_std_init": "log_std",
    "ortho_init": "orthogonal",
    "kl_coef": "kl_coefficient",
    "m": "inner_steps",
    "n_experts": "experts",
}
ALWAYS = {  # what they say of what is always so here
    "policy": "MlpPolicy",
    "use_sde": False,
    "train_freq": 1,
    "gradient_steps": 1,
    "normalize_advantage": True,
    "ortho_init": True,
    "ent_coef": "auto",
}
ACTIVATIONS = {"nn.ReLU": "relu", "nn.Tanh": "tanh"}


def is_zoo(preset: str) -> bool:
    """Whether a preset is FILE.yml or FILE.yml:SECTION."""
    return Path(preset).suffix in SUFFIXES or Path(preset.rpartition(":")[0]).suffix in SUFFIXES


def zoo_values(preset: str, env: str | None, known: set[str], texts: set[str]) -> dict[str, Any]:
    """Options and settings of a section, by our names.

    Args:
        preset: FILE.yml, of which the section ``env`` or else ``default`` is taken, or FILE.yml:SECTION.
        env: the environment's id.
        known: names of the options and settings that there are.
        texts: those whose values are no numbers.

    Raises:
        ConfigError: no such section, or something in it that cannot be followed; the message names it.
        FileNotFoundError: no such file.
    """
    path, section = Path(preset), None
    if path.suffix not in SUFFIXES:
        name, _, section = preset.rpartition(":")
        path = Path(name)
    content = _load(path)
    tried = [section] if section else [env, "default"]
    found = next((name for name in tried if name in content), None)
    if found is None:
        missing, there = " or ".join(map(repr, filter(None, tried))), ", ".join(map(str, content))
        raise ConfigError(f"{path} has no section {missing}; it has {there}; name one as {path}:SECTION")
    try:
        return _translated(_dict(content[found]), known, texts)
    except ConfigError as error:
        raise ConfigError(f"{path}, {found}: {error}") from None


def _load(path: Path) -> dict[Any, Any]:
    try:
        import yaml
    except ImportError:
        raise MissingExtraError("pyyaml", "sb3") from None
    if path.stat().st_size > MAX_BYTES:
        raise ConfigError(f"{path} has more than {MAX_BYTES:,} bytes, which is no file of hyper-parameters")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        check_values(content, ConfigError)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must map environments to hyper-parameters")
    return content


def _translated(section: Mapping[str, Any], known: set[str], texts: set[str]) -> dict[str, Any]:
    given = dict(section)
    normalize = given.pop("normalize", None)
    if normalize is True:
        given |= {"norm_obs": True, "norm_reward": True}
    elif normalize:
        wanted = {"norm_obs": True, "norm_reward": True} | _dict(normalize)
        if wanted.pop("gamma", None) is not None and "gamma" not in given:
            raise ConfigError(
                "normalize: its gamma is the method's here, and in the zoo's scripts: give gamma"
            )
        given |= wanted
    if "learning_starts" in known:
        _one_update_a_step(given)
    network = _dict(given.pop("policy_kwargs", None) or {})
    given |= _network(network)
    values: dict[str, Any] = {}
    for name, raw in given.items():
        ours, value = NAMES.get(name, name), _number(raw)
        tuned = ours == "entropy_coefficient" and ours in known  # 'auto' of a method that has it fixed
        if value is None or (name in ALWAYS and value == ALWAYS[name] and not tuned):
            continue
        if ours not in known:
            raise ConfigError(f"{name}: {raw!r} has no counterpart here; leave it out")
        if isinstance(value, str) and ours not in texts:
            raise ConfigError(f"{name}: {raw!r} is no number, and there are no schedules here; give one")
        if ours in values:
            raise ConfigError(f"{ours} is given twice, once by another name: leave one out")
        values[ours] = value
    return values


def _one_update_a_step(given: dict[str, Any]) -> None:
    """Take ``gradient_steps`` out: -1, or as many as there are environments, is what happens here."""
    updates, envs = (_number(given.get(name, 1)) for name in ("gradient_steps", "n_envs"))
    if "gradient_steps" in given and updates not in (-1, envs):
        raise ConfigError(
            f"gradient_steps: {updates!r} has no counterpart here: {envs} environments make {envs} updates a step; "
            "give -1 or leave it out"
        )
    given.pop("gradient_steps", None)


def _network(given: dict[str, Any]) -> dict[str, Any]:
    """``policy_kwargs`` by our names."""
    found = dict(given)
    layers = found.pop("net_arch", None)
    if isinstance(layers, dict):  # there, a side that is left out has no hidden layers
        sides = [layers.get("pi"), layers.get("vf", layers.get("qf"))]
        layers = sides[0] if len(layers) == 2 and sides[0] == sides[1] else layers
    if layers is not None:
        if not isinstance(layers, list) or len(layers) != 2 or layers[0] != layers[1]:
            raise ConfigError(
                f"net_arch: {layers!r} has no counterpart here: networks have two equal hidden layers"
            )
        found["hidden"] = layers[0]
    activation = found.pop("activation_fn", None)
    if activation is not None:
        if not isinstance(activation, str) or activation not in ACTIVATIONS:
            raise ConfigError(f"activation_fn: {activation!r} must be {' or '.join(ACTIVATIONS)}")
        found["activation"] = ACTIVATIONS[activation]
    return found


def _number(value: Any) -> Any:
    """YAML takes 1e6 and 3e-4 for strings; whole numbers become ints."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return value
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) >= 10 else value


def _dict(value: Any) -> dict[str, Any]:
    """A mapping, or a string with ``dict(name=literal, ...)``."""
    if isinstance(value, dict):
        return dict(value)
    try:
        tree = ast.parse(str(value).strip(), mode="eval").body
        found = _literal(tree)
    except (SyntaxError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ConfigError(
            f"{value!r} cannot be read: write a mapping, or dict(name=value, ...) of plain values"
        )
    return found


def _literal(node: ast.expr) -> Any:
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "dict"
        and not node.args
    ):
        return {str(pair.arg): _literal(pair.value) for pair in node.keywords}
    if isinstance(node, ast.Attribute):
        return ast.unparse(node)
    return ast.literal_eval(node)
