"""One file an algorithm: objective, settings, losses and update order. This page loads none of them."""

import difflib
import importlib
import importlib.util
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offrl.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from offrl.online.options import OnlineAlgorithm
    from offrl.training.problem import Algorithm

ALGORITHMS = {  # name (also of the file) -> what it is, for 'offrl algos'
    "bc": "behaviour cloning, also of the best x % of the episodes",
    "td3_bc": "TD3 with a behaviour-cloning term (arXiv:2106.06860)",
    "iql": "implicit Q-learning (arXiv:2110.06169)",
    "awac": "advantage-weighted actor-critic (arXiv:2006.09359)",
    "cql": "conservative Q-learning (arXiv:2006.04779)",
    "cal_ql": "calibrated Q-learning: CQL bounded by the data's returns (arXiv:2303.05479)",
    "sac_n": "soft actor-critic with many critics (arXiv:2110.01548)",
    "edac": "SAC-N with diverse critics (arXiv:2110.01548)",
    "fql": "flow Q-learning: a one-step policy between a cloned flow and Q (arXiv:2502.02538)",
    "decision_transformer": "a transformer asked for a return (arXiv:2106.01345)",
    "prdc": "policy regularization with dataset constraint (arXiv:2306.06569)",
    "a2pr": "adaptive advantage-guided policy regularization (arXiv:2405.19909)",
    "rebrac": "TD3+BC with separate pulls on actor and critic (arXiv:2305.09836)",
    "odice": "orthogonal-gradient visitation ratios, also for imitation (arXiv:2402.00348)",
}
MODELS = {  # the same for models of data: trained like those above, used by another command, without a policy
    "policy_guided_diffusion": "diffusion model of trajectories (arXiv:2404.06356): offrl generate RUN",
    "cdsa": "pulls a policy's actions to the data, reconstruction (arXiv:2406.07541): offrl eval --adjust RUN",
}
CHUNKS = {  # the same for policies of robots that plan chunks of actions, cloned from demonstrations
    "diffusion_policy": "diffusion over chunks of actions (arXiv:2303.04137)",
    "flow_policy": "the same by flow matching (arXiv:2210.02747)",
}
ELSEWHERE = {  # name (also of the file) -> what it is, the command that trains it: no dataset of steps
    "hdpo": (
        "inventory policies by gradients through the simulator (arXiv:2306.11246)",
        "offrl inventory train",
    ),
}

ONLINE = {  # the same for methods that learn in an environment (extra sb3)
    "n_pg_igt": "normalized policy gradient with implicit gradient transport (arXiv:2302.01734)",
    "harpg": "policy gradient with Hessian-aided momentum, HARPG and N-HARPG (arXiv:2302.01734)",
    "mdpo_on": "mirror descent policy optimization, on policy (arXiv:2005.09814)",
    "mdpo_off": "the same off policy, KL or Tsallis (arXiv:2005.09814)",
    "ppo": "proximal policy optimization through the estimator core, also REINFORCE (arXiv:1707.06347)",
    "sac": "soft actor-critic, the control of the soft methods (arXiv:1812.05905)",
    "pmoe_sac": "SAC with a mixture of Gaussians whose gate learns who wins (arXiv:2104.09122)",
    "pmoe_ppo": "the same for PPO (arXiv:2104.09122)",
    "policy_gradient": "their baselines: REINFORCE, N-MPG, STORM-PG (arXiv:2003.04302)",
}


def plugins() -> dict[str, metadata.EntryPoint]:
    """Algorithms that installed packages offer through the entry-point group ``offrl.algos``."""
    return {point.name: point for point in metadata.entry_points(group="offrl.algos")}


def load_algorithm(name: str) -> tuple[str, "Algorithm"]:
    """An algorithm by its name, its plug-in's name, or the path of its file.

    Args:
        name: e.g. ``td3_bc``, or ``./my_algo.py``. A file is run as Python code: only name files you trust.

    Returns:
        The short name (the file's stem) and the file's ``ALGORITHM``.

    Raises:
        ConfigError: no such name (the nearest one is named), or the file declares no ``ALGORITHM``.
        FileNotFoundError: the file does not exist.
    """
    from offrl.training.problem import Algorithm

    if name in ONLINE:
        raise ConfigError(f"{name} learns in an environment, not from data: offrl train {name} --env ID")
    if name.endswith(".py"):
        path = Path(name).resolve()
        if not path.is_file():
            raise FileNotFoundError(f"no algorithm file {path}")
        spec = importlib.util.spec_from_file_location(f"offrl_user_{path.stem}", path)
        if spec is None or spec.loader is None:
            raise ConfigError(f"{path} cannot be loaded as a Python module")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        try:
            spec.loader.exec_module(module)
        except SyntaxError as error:
            raise ConfigError(f"{path} cannot be loaded: SyntaxError: {error}") from None
        short, algorithm = path.stem, getattr(module, "ALGORITHM", None)
    elif name in {*ALGORITHMS, *CHUNKS, *MODELS}:
        short, algorithm = name, importlib.import_module(f"offrl.algos.{name}").ALGORITHM
    elif name in (found := plugins()):
        loaded = found[name].load()
        short, algorithm = name, getattr(loaded, "ALGORITHM", loaded)
    elif name in ELSEWHERE:
        raise ConfigError(f"{name} is not trained on a dataset; use: {ELSEWHERE[name][1]}")
    else:
        known = [*ALGORITHMS, *CHUNKS, *MODELS, *ONLINE, *found]
        near = difflib.get_close_matches(name.replace("-", "_"), known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"unknown algorithm {name!r}{hint} ('offrl algos' lists all; a file ends in .py)")
    if not isinstance(algorithm, Algorithm):
        if type(algorithm).__name__ == "OnlineAlgorithm":
            raise ConfigError(
                f"{name} learns in an environment: outside the package such a method is trained from Python "
                "(docs/online.md, a method of your own)"
            )
        raise ConfigError(f"{name} declares no ALGORITHM = offrl.training.problem.Algorithm(...)")
    return short, algorithm


def load_online(name: str) -> "OnlineAlgorithm":
    """The ``ALGORITHM`` of a method that learns in an environment.

    Raises:
        ConfigError: no such method.
        MissingExtraError: stable-baselines3 is not installed.
    """
    if name not in ONLINE:
        raise ConfigError(f"{name!r} does not learn in an environment; those that do: {', '.join(ONLINE)}")
    algorithm: OnlineAlgorithm = _on_sb3(f"offrl.algos.{name}").ALGORITHM
    return algorithm


def online_runner() -> Any:
    """``offrl.online.runner``.

    Raises:
        MissingExtraError: stable-baselines3 is not installed.
    """
    return _on_sb3("offrl.online.runner")


def _on_sb3(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "stable_baselines3":
            raise
        raise MissingExtraError("stable-baselines3", "sb3") from error


def load_method(name: str) -> tuple[str, "Algorithm | OnlineAlgorithm"]:
    """A method of either kind by its name, see ``load_algorithm`` and ``load_online``."""
    return (name, load_online(name)) if name in ONLINE else load_algorithm(name)


def fitting_presets(algorithm: "Algorithm | OnlineAlgorithm", name: str) -> list[str]:
    """The keys of the algorithm's presets that ``name``, with or without its scheme, starts with.

    OGBench's antmaze pays otherwise than D4RL's: a key that begins names of both does not fit OGBench's.
    """
    from offrl.data.reference import D4RL, OGBENCH, bare_name  # loads NumPy

    bare = bare_name(name)
    fitting = [key for key in algorithm.presets if bare.startswith(key)]
    if any(bare.startswith(f"{data}-") for data in OGBENCH):
        return [key for key in fitting if not any(known.startswith(key) for known in D4RL)]
    return fitting


def preset(algorithm: "Algorithm | OnlineAlgorithm", name: str) -> dict[str, object]:
    """Settings of preset ``name``: the longest of ``fitting_presets``.

    Raises:
        ConfigError: no preset fits.
    """
    if not (fitting := fitting_presets(algorithm, name)):
        known = ", ".join(sorted(algorithm.presets)) or "none"
        raise ConfigError(f"no preset for {name!r}; presets (names or prefixes of data set names): {known}")
    return dict(algorithm.presets[max(fitting, key=len)])
