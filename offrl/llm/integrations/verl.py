r"""Our methods inside verl: advantages and policy losses in its registries, so that they run on its Ray clusters.

    VERL_USE_EXTERNAL_MODULES=offrl.llm.integrations.verl python -m verl.trainer.main_ppo \
        algorithm.adv_estimator=offrl_beta_norm actor_rollout_ref.actor.policy_loss.loss_mode=offrl_beta_norm \
        actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum ...

verl imports that module in every worker, which registers each method that its loop can run as ``offrl_NAME`` with
default settings; for others name a module of one's own that calls ``register("beta_norm", cap=10.0)``. The bounds of a
clipped ratio are the actor's ``clip_ratio_low`` and ``clip_ratio_high``; a KL and an entropy bonus are verl's
(``use_kl_loss``, ``entropy_coeff``). ``loss_agg_mode`` must be the method's mean: verl adds those terms under it.

What a method asks of the engine beside (demonstrations, a critic, other groups, whole groups in a loss) verl's
loop does not give: such methods are refused. Where verl has a method itself use verl's ('offrl llm list' says where);
``offrl.llm.methods.NATIVE`` names the differences.
"""

import dataclasses
import sys
from collections.abc import Callable
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from offrl.errors import ConfigError, MissingExtraError
from offrl.estimators.compose import Estimator
from offrl.estimators.rollouts import Counts, Rollouts
from offrl.llm.method import ClipSettings, Method, watches
from offrl.llm.methods import METHODS, load_method

VERSIONS = ("0.9", "0.10")
"""From the first, below the second: arguments of registered functions may change with any minor version."""
MEANS = {
    "token-mean": "token-mean",
    "seq-mean-token-mean": "seq-mean-token-mean",
    "seq-mean-token-sum": "seq-mean-token-sum",
    "fixed-length": "seq-mean-token-sum-norm",
}
"""Our names of means -> verl's."""
KNOWN = {
    "rewards",
    "group_ids",
    "mask",
    "lengths",
    "cut",
    "baseline_rewards",
    "old_log_probs",
    "rollout_log_probs",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class VerlRollouts(Rollouts):
    """What verl knows of a batch."""

    cut: Tensor | None = None
    """(B,) bool: a response that fills the whole width."""


def unfit(name: str, method: Method, settings: Any) -> str | None:
    """Why verl's loop cannot run a method, in a few words, or None."""
    own = {
        "demonstrations": method.data != "rollouts", "a critic": method.critic, "other groups": method.keep is not None,
        "whole groups in a loss": method.coupled, "final answers": method.answers,
        "a step of its own in the engine": not watches(method, settings),
        "a reference": method.reference,
    }  # fmt: skip
    if wrong := [what for what, asked in own.items() if asked]:
        return wrong[0]
    estimator = method.estimator(settings, 1)
    assert isinstance(estimator, Estimator)
    unknown = sorted(estimator.needs() - KNOWN)
    return f"{unknown[0]} of each response" if unknown else None


def fitting(name: str, given: dict[str, Any]) -> tuple[Method, Any]:
    """A method and its settings, if verl can run it.

    Raises:
        ConfigError: it cannot, or a setting that is verl's.
    """
    method = load_method(name)
    if taken := sorted({"clip_low", "clip_high", "kl", "entropy"} & given.keys() & settings_of(method)):
        option = {"clip_low": "clip_ratio_low", "clip_high": "clip_ratio_high", "kl": "kl_loss_coef"}
        raise ConfigError(f"give {taken[0]} as {option.get(taken[0], 'entropy_coeff')} of verl's actor")
    settings = method.config(**given)
    if reason := unfit(name, method, settings):
        raise ConfigError(
            f"{name} needs {reason}, which verl's loop does not give: use offrl llm train {name}"
        )
    return method, settings


def settings_of(method: Method) -> set[str]:
    """Names."""
    return {field.name for field in dataclasses.fields(method.config)}


def advantage(name: str, **given: Any) -> Callable[..., tuple[Tensor, Tensor]]:
    """A function for verl's registry of advantages: its keyword arguments -> (advantages, returns), (B, T) each.

    Args:
        name: of the method.
        given: settings other than the defaults.
    """
    method, settings = fitting(name, given)

    def compute(
        token_level_rewards: Tensor, response_mask: Tensor, index: Any = None, reward_baselines: Tensor | None = None,
        config: Any = None, **others: Any,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        mask = response_mask.bool()
        length = mask.shape[1]
        estimator = method.estimator(settings, length)
        rewards = token_level_rewards if method.kl == "step-reward" else token_level_rewards.sum(dim=1)
        rollouts = VerlRollouts(
            mask=mask, rewards=rewards, group_ids=None if index is None else ids(index).to(mask.device),
            baseline_rewards=reward_baselines, cut=mask.sum(dim=1) == length,
        )  # fmt: skip
        found = estimator.advantages(rollouts)
        found = (found if found.dim() == 2 else found[:, None]) * mask
        return found, found

    return compute


def ids(index: Any) -> Tensor:
    """Any hashable names of groups as int64."""
    numbers: dict[Any, int] = {}
    return torch.tensor([numbers.setdefault(name, len(numbers)) for name in index])


def policy_loss(name: str, **given: Any) -> Callable[..., tuple[Tensor, dict[str, Any]]]:
    """A function for verl's registry of policy losses: a micro-batch -> (loss, metrics).

    Its gradient is the method's, its value the method's surrogate.

    Args:
        name: of the method.
        given: settings other than the defaults.
    """
    method, settings = fitting(name, given)
    wanted = MEANS[METHODS[name].aggregation]

    def compute(
        old_log_prob: Tensor, log_prob: Tensor, advantages: Tensor, response_mask: Tensor,
        loss_agg_mode: str = "token-mean", config: Any = None, rollout_is_weights: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:  # fmt: skip
        if loss_agg_mode != wanted:
            raise ConfigError(
                f"offrl_{name} takes its mean as actor.loss_agg_mode={wanted}, got {loss_agg_mode}"
            )
        info = config.global_batch_info
        estimator = method.estimator(
            clipped(settings, config), info.get("loss_scale_factor") or response_mask.shape[1]
        )
        assert isinstance(estimator, Estimator)
        mask, sampled = response_mask.bool(), old_log_prob
        if rollout_is_weights is not None and "rollout_log_probs" in estimator.needs():
            sampled = old_log_prob - rollout_is_weights.log()
        elif rollout_is_weights is not None:
            advantages = advantages * rollout_is_weights
        rollouts = VerlRollouts(
            mask=mask, old_log_probs=old_log_prob, rollout_log_probs=sampled, advantages=advantages
        )  # fmt: skip
        counts = counted(mask, info)
        loss, now = estimator.loss(log_prob, rollouts, counts), log_prob.detach()
        value = estimator.surrogate(now, rollouts, counts)
        found = estimator.diagnostics(now, rollouts)
        metrics = {
            "actor/pg_clipfrac": float(found["clip_fraction"]),
            "actor/ppo_kl": float(found["approx_kl"]),
        }
        return loss - loss.detach() + value, metrics

    return compute


def clipped(settings: Any, config: Any) -> Any:
    """The settings with the actor's bounds of the ratio, where they have such."""
    low, high = (
        config.clip_ratio if value is None else value
        for value in (config.clip_ratio_low, config.clip_ratio_high)
    )
    if isinstance(settings, ClipSettings):
        return dataclasses.replace(settings, clip_low=low, clip_high=high)
    return dataclasses.replace(settings, clip_high=high) if hasattr(settings, "clip_high") else settings


def counted(mask: Tensor, info: dict[str, Any]) -> Counts:
    """What means divide by: the whole batch's counts, shared out over the processes whose gradients verl averages."""
    size = info.get("dp_size") or 1
    tokens, rows = info.get("batch_num_tokens"), info.get("global_batch_size")
    if tokens is None:
        tokens = mask.sum().clamp(min=1) * size
    if rows is None:
        rows = mask.any(dim=1).sum().clamp(min=1) * size
    return Counts(tokens / size, rows / size)


def register(name: str, **given: Any) -> None:
    """Make a method known to verl as ``offrl_NAME``, with settings other than its defaults.

    Raises:
        ConfigError: a method that verl's loop cannot run, or another version of verl.
        MissingExtraError: without verl.
    """
    core = core_algos()
    core.ADV_ESTIMATOR_REGISTRY[f"offrl_{name}"] = advantage(name, **given)
    core.POLICY_LOSS_REGISTRY[f"offrl_{name}"] = policy_loss(name, **given)


def runnable() -> tuple[str, ...]:
    """Methods that verl's loop can run."""
    methods = {name: load_method(name) for name in METHODS}
    return tuple(name for name, m in methods.items() if unfit(name, m, m.config()) is None)


def core_algos() -> Any:
    """Verl's registries."""
    try:
        version = metadata.version("verl")
        from verl.trainer.ppo import core_algos
    except (metadata.PackageNotFoundError, ImportError):
        raise MissingExtraError("verl", "verl") from None
    low, high = ([int(x) for x in v.split(".")] for v in VERSIONS)
    if not low <= [int(x) for x in version.split(".")[:2]] < high:
        raise ConfigError(
            f"verl {version} is installed, the plug-in was tested with {VERSIONS[0]} to below {VERSIONS[1]}"
        )
    return core_algos


if "verl" in sys.modules:  # imported through its hook
    for each in runnable():
        register(each)
