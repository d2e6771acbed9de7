"""Our methods inside TRL: a GRPOTrainer whose advantages and loss are ours, everything else TRL's.

    from offrl.llm.integrations.trl import trainer
    Trainer = trainer("gmpo")
    Trainer(model, reward_funcs=..., args=GRPOConfig(...), train_dataset=...).train()

TRL samples, computes rewards, log-probabilities of the old and the reference policy, and updates. What a method asks of
the engine beside its estimator (demonstrations, greedy responses, a critic, resampled groups, a KL in the reward) TRL's
loop does not give: such methods are refused. Where TRL has a method itself (loss_type grpo, dr_grpo, dapo, cispo, sapo;
GSPO through importance_sampling_level) use TRL's; differences to ours:

    advantages    TRL divides by the group's standard deviation + 1e-4, we by + 1e-6
    cispo         TRL's epsilon_high is the whole bound of the ratio, ours stands above 1
    rloo          TRL clips the ratio of whole responses; ours has none, which is the same at the first update
"""

import dataclasses
from collections.abc import Callable
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from offrl.errors import ConfigError, MissingExtraError
from offrl.estimators.advantages import rewards_at_end
from offrl.estimators.compose import Estimator
from offrl.estimators.rollouts import Counts, Rollouts
from offrl.llm.method import watches
from offrl.llm.methods import load_method

VERSIONS = ("1.16", "1.17")
"""From the first, below the second: the trainer's private steps that we replace may change with any minor version."""

IDLE = (
    "loss_type", "epsilon", "epsilon_high", "delta", "importance_sampling_level", "scale_rewards",
    "multi_objective_aggregation", "top_entropy_quantile", "off_policy_mask_threshold", "entropy_coef",
    "use_adaptive_entropy", "use_bias_correction_kl",
)  # fmt: skip
"""Settings of GRPOConfig that advantages or loss of ours take no notice of."""

KNOWN = {"rewards", "components", "group_ids", "mask", "lengths", "cut", "old_log_probs", "rollout_log_probs"}
"""What a method may read."""


def loss(
    estimator: Estimator,
    log_probs: Tensor,
    inputs: dict[str, Tensor],
    *,
    parts: float,
    tokens: Tensor,
    entropy: Tensor,
) -> tuple[Tensor, Tensor]:
    """The loss of a micro-batch as TRL adds them up, and the value of the surrogate.

    Args:
        estimator: of a method.
        log_probs: (B, T) of the current policy, with gradient.
        inputs: TRL's: advantages (B,) or (B, T), completion_mask; tool_mask, old and reference log-probabilities, and
            the weights that correct for vLLM's, (B, T) or (B, 1), where there are.
        parts: micro-batches of an update.
        tokens: of an update, divided by the number of processes.
        entropy: (B, T).
    """
    mask, weighed = _own_tokens(inputs), inputs["advantages"]
    old, correction = inputs.get("old_per_token_logps"), inputs.get("importance_sampling_ratio")
    old = log_probs.detach() if old is None else old
    sampled = inputs.get("sampling_per_token_logps", old)
    sampled = old.where(sampled.isnan(), sampled)  # vLLM may not tell some
    if correction is not None and "rollout_log_probs" not in estimator.needs():
        weighed = (weighed if weighed.dim() == 2 else weighed[:, None]) * correction
    rollouts = Rollouts(
        mask=mask, advantages=weighed, rewards=weighed,
        old_log_probs=old, ref_log_probs=inputs.get("ref_per_token_logps"), group_ids=inputs.get("group_ids"),
        rollout_log_probs=sampled,  # of the old policy, but for a vLLM's
    )  # fmt: skip
    counts = Counts(tokens.clamp(min=1), parts * mask.any(dim=1).sum().clamp(min=1))
    value = estimator.loss(log_probs, rollouts, counts, entropy=entropy)
    return value, estimator.surrogate(log_probs.detach(), rollouts, counts)


def _own_tokens(inputs: dict[str, Tensor]) -> Tensor:
    """(B, T) bool: what the model wrote, without the answers of tools."""
    mask = inputs["completion_mask"]
    return (mask * inputs["tool_mask"] if "tool_mask" in inputs else mask).bool()


@dataclasses.dataclass(frozen=True, kw_only=True)
class TRLRollouts(Rollouts):
    """What TRL knows of a batch."""

    components: Tensor | None = None
    """(B, K) weighted rewards."""
    cut: Tensor | None = None
    """(B,) bool: a response of the greatest length."""


def advantages(
    estimator: Estimator, components: Tensor, ids: Tensor, mask: Tensor, cut: Tensor, *, steps: bool = False
) -> Tensor:
    """Of all processes' rows: (B, K) weighted rewards, (B,) ids of groups, (B, T) mask, (B,) cut -> (B,).

    With ``steps`` rewards are paid at the last tokens of responses, and advantages are (B, T).
    """
    outcomes = components.sum(dim=1)
    rollouts = TRLRollouts(
        rewards=rewards_at_end(outcomes, mask) if steps else outcomes, components=components, group_ids=ids,
        mask=mask, cut=cut,
    )  # fmt: skip
    return estimator.advantages(rollouts)


def trainer(name: str, settings: Any = None) -> Any:
    """A subclass of TRL's GRPOTrainer for a method.

    Args:
        name: of the method.
        settings: of the method; None: its defaults.

    Raises:
        ConfigError: a method that TRL's loop cannot run, or another version of TRL.
        MissingExtraError: without TRL.
    """
    method = load_method(name)
    settings = method.config() if settings is None else settings
    own = {
        "demonstrations": method.data != "rollouts", "greedy responses": method.greedy_baseline,
        "a critic": method.critic, "other groups": method.keep is not None,
        "whole groups in a loss": method.coupled, "final answers": method.answers,
        "a step of its own in the engine": not watches(method, settings), "a reference": method.reference,
        "a KL in its reward": method.kl != "loss" and settings.kl != 0.0,
    }  # fmt: skip
    if wrong := [what for what, asked in own.items() if asked]:
        raise ConfigError(
            f"{name} needs {wrong[0]}, which TRL's loop does not give: use offrl llm train {name}"
        )
    if settings.kl != 0.0:
        raise ConfigError("give the KL's coefficient as beta of GRPOConfig, so that TRL keeps a reference")
    made = method.estimator(settings, 1)
    assert isinstance(made, Estimator)
    if unknown := sorted(made.needs() - KNOWN):
        raise ConfigError(
            f"{name} needs {unknown[0]}, which TRL's loop does not give: use offrl llm train {name}"
        )
    base = _grpo_trainer()

    def estimator(length: int, beta: float, reward_weights: Tensor) -> Estimator:
        if beta != 0.0 and method.kl != "loss":
            raise ConfigError(
                f"{name} has its KL in the reward, which TRL's loop does not give: leave beta at 0"
            )
        found = method.estimator(_of_trl(settings, beta, reward_weights), length)
        assert isinstance(found, Estimator)
        return found

    return _subclass(base, estimator, steps=method.kl == "step-reward")


def _of_trl(settings: Any, beta: float, reward_weights: Tensor) -> Any:
    """With TRL's KL, and with its weights where a method normalizes rewards (whose signs they keep) without its own."""
    settings = dataclasses.replace(settings, kl=beta)
    if getattr(settings, "weights", None) == ():
        settings = dataclasses.replace(settings, weights=tuple(reward_weights.abs().tolist()))
    return settings


def _grpo_trainer() -> Any:
    try:
        version = metadata.version("trl")
        from trl import GRPOTrainer  # type: ignore[attr-defined] # a lazy module
    except (metadata.PackageNotFoundError, ImportError):
        raise MissingExtraError("trl", "trl") from None
    low, high = VERSIONS
    if not low <= version < high:
        raise ConfigError(f"trl {version} is installed, the plug-in was tested with {low} to below {high}")
    return GRPOTrainer


def _check_idle(args: Any) -> None:
    """Refuse settings of TRL's own loss."""
    defaults = {field.name: field.default for field in dataclasses.fields(args)}
    if wrong := [name for name in IDLE if name in defaults and getattr(args, name) != defaults[name]]:
        raise ConfigError(
            f"{wrong[0]} of GRPOConfig has no effect on a method of offrl: leave it out, and give the method's own "
            "settings to offrl.llm.integrations.trl.trainer"
        )


def _share(found: Tensor, process: int, mask: Tensor) -> Tensor:
    """Advantages of a process's rows, those of tokens as wide as their mask."""
    mine, width = found[process * len(mask) : (process + 1) * len(mask)], mask.shape[1]
    if mine.dim() == 1:
        return mine
    return torch.nn.functional.pad(mine, (0, max(width - mine.shape[1], 0)))[:, :width]


def _subclass(base: Any, estimator_of: Callable[[int, float, Tensor], Estimator], *, steps: bool) -> Any:
    """What is replaced: the rewards are kept on their way, the advantages computed from them, and the loss is ours."""

    class Trainer(base):  # type: ignore[misc]
        """TRL's trainer with a method of offrl."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            _check_idle(self.args)
            self.estimator = estimator_of(self.max_completion_length, self.beta, self.reward_weights)

        def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Any:
            found = super()._calculate_rewards(*args, **kwargs)
            self._components = (found * self.reward_weights.to(found.device)).nan_to_num(nan=0.0)
            return found

        def _generate_and_score_completions(self, inputs: Any) -> Any:
            output = super()._generate_and_score_completions(inputs)
            mask, a = _own_tokens(output), self.accelerator
            lengths = output["completion_mask"].sum(dim=1)  # 0 where mask_truncated_completions took all
            cut = a.gather((lengths >= self.max_completion_length) | (lengths == 0))
            whole = a.gather(a.pad_across_processes(mask, dim=1))
            ids = self._group_ids(len(self._components))
            found = advantages(self.estimator, self._components, ids, whole, cut, steps=steps)
            output["advantages"] = _share(found, a.process_index, mask)
            return output

        def _group_ids(self, count: int) -> Tensor:
            """Of all processes' rows; those of a prompt are beside each other."""
            size = self.num_generations if self.model.training else self.num_generations_eval
            return torch.arange(count, device=self.accelerator.device).div(size, rounding_mode="floor")

        def _compute_loss(self, model: Any, inputs: Any) -> Any:
            ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
            seen = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
            log_probs, entropy, _ = self._get_per_token_logps_and_entropies(
                model, ids, seen, inputs["completion_ids"].size(1), compute_entropy=True
            )
            mode, parts = (
                ("train", self.current_gradient_accumulation_steps) if model.training else ("eval", 1)
            )
            share = parts / self.args.steps_per_generation if mode == "train" else 1.0
            tokens = inputs["num_items_in_batch"] / self.accelerator.num_processes * share
            value, surrogate = loss(
                self.estimator, log_probs, inputs, parts=parts, tokens=tokens, entropy=entropy
            )
            self._metrics[mode]["surrogate"].append(self.accelerator.gather(surrogate).nanmean().item())
            return value

    return Trainer
