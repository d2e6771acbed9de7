"""f-DPG: the policy is moved towards a target distribution by the gradient of an f-divergence.

    P(y|x) = a(y|x) exp(R / beta), or a R with R >= 0, or a exp(sum_k lambda_k R_k);     p = P / Z(x)
    a the model that training began with;     lambda such that some rewards get wanted means under P / Z
    loss = -mean_i sg(pi / q) (-f'(pi / p) - b) log pi(y_i|x),     of whole responses, q what sampled

f' for six divergences: offrl/estimators/divergences.py. Z of each prompt is the mean of P / q over all of its samples
so far; b is a moving average of -f' from before the update. Prompts whose Z is still 0 are skipped.

Source: arXiv:2302.08215; naver/disco.
Departures: q is always what sampled the batch; the variant with a copy that is exchanged when the policy is better is
not here, nor is disco's bound on Z. Log-ratios are cut at +-20. lambda is fitted once, on the first batch.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from offrl.errors import ConfigError
from offrl.estimators.aggregation import sequence_sum
from offrl.estimators.compose import Estimator, compose
from offrl.estimators.divergences import fit_moments, kl_estimate, pseudo_rewards, tv_estimate
from offrl.estimators.groups import Groups
from offrl.estimators.ratios import ratio
from offrl.llm.method import Companion, LossSettings, Method, TextRollouts, terms
from offrl.llm.rewards import NUMBER
from offrl.llm.rollouts import component_names


@dataclass(frozen=True, kw_only=True)
class FDPGConfig(LossSettings):
    """Settings of f-DPG."""

    divergence: Literal["js", "kl", "reverse_kl", "tv", "chi2", "reverse_chi2"] = "js"
    """Which one is minimised; kl is KL(p || pi)."""
    target: Literal["exponential", "pointwise", "moments"] = "exponential"
    """P is a exp(R / beta), a R, or the nearest to a with wanted means of rewards."""
    moments: tuple[str, ...] = ()
    """NAME=MEAN, each a reward of the task and its wanted mean; other rewards do not matter then."""
    beta: float = 1.0
    """Of the exponential target."""
    window: int = 1024
    """Samples over which the baseline averages."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta > 0.0 or self.window < 1:
            raise ConfigError(f"beta and window must be positive, got {self.beta} and {self.window}")
        if self.target != "exponential" and self.beta != 1.0:
            raise ConfigError("beta belongs to the exponential target: leave --beta out")
        if (self.target == "moments") != bool(self.moments):
            raise ConfigError("--target moments and --moments NAME=MEAN belong together")
        wanted(self)


def wanted(settings: FDPGConfig) -> dict[str, float]:
    """Means by reward."""
    found = {}
    for text in settings.moments:
        name, _, mean = text.rpartition("=")
        if not (name and NUMBER.fullmatch(mean)):
            raise ConfigError(f"a moment is NAME=MEAN, got {text!r}")
        found[name] = float(mean)
    return found


def proposal(log_probs: Tensor, rollout_log_probs: Tensor, mask: Tensor) -> Tensor:
    """Pi / q of whole responses; (B, 1)."""
    return ratio(sequence_sum(log_probs - rollout_log_probs, mask))[:, None]


def estimator(settings: FDPGConfig, length: int) -> Estimator:
    """The composition."""
    return compose(
        advantage=pseudo_reward,
        denominator=proposal,
        aggregation="seq-mean-token-sum",
        regularizers=terms(settings),
    )


def pseudo_reward(rewards: Tensor) -> Tensor:
    """1: each update finds its own, this holds what the rows weigh; (B,)."""
    return torch.ones_like(rewards)


class FDPG(Companion):
    """Normalizers by prompt and the baseline."""

    metrics = ("log_z", "kl_to_target_estimate", "tv_to_target_estimate")

    def __init__(self, settings: Any, learner: Any) -> None:
        super().__init__(settings, learner)
        self.sums: dict[int, tuple[float, int]] = {}  # prompt -> log of the sum of P / q, number
        self.baseline, self.seen = 0.0, 0
        self.coefficients: Tensor | None = None  # (K,) of the rewards, for moments

    def fitted(self, batch: TextRollouts) -> Tensor:
        """Coefficients of the rewards, 0 of those whose mean does not matter; (K,) float64."""
        assert batch.ref_log_probs is not None
        means, names = wanted(self.settings), component_names(self.learner.task)
        place = [names.index(name) for name in means]
        features, goal = batch.components[:, place].double(), list(means.values())
        for name, column, mean in zip(means, features.T, goal, strict=True):
            low, high = float(column.min()), float(column.max())
            if not low < mean < high:
                raise ConfigError(
                    f"fdpg: a mean of {mean:g} for {name}, of which {low:g} to {high:g} were drawn"
                )
        log_w = sequence_sum(batch.ref_log_probs - batch.rollout_log_probs, batch.mask).double()
        try:
            found = fit_moments(features, features.new_tensor(goal), log_w)
        except ValueError as error:  # each can be had, all of them not
            raise ConfigError(f"fdpg: {error}, for {', '.join(means)}, among what was drawn") from None
        return features.new_zeros(len(names)).index_put((torch.tensor(place, device=features.device),), found)

    def log_target(self, batch: TextRollouts) -> Tensor:
        """Log P of whole responses, -inf where it is 0; (B,)."""
        assert batch.ref_log_probs is not None
        log_a = sequence_sum(batch.ref_log_probs, batch.mask)
        if self.settings.target == "exponential":
            return torch.add(log_a, batch.rewards, alpha=1.0 / self.settings.beta)
        if self.settings.target == "moments":
            assert self.coefficients is not None
            return log_a + (batch.components.double() @ self.coefficients.to(log_a.device)).to(log_a)
        if bool((batch.rewards < 0).any()):
            raise ConfigError(
                f"fdpg: the pointwise target needs rewards >= 0, got {float(batch.rewards.min()):g}"
            )
        return log_a + batch.rewards.log()

    def log_z(self, batch: TextRollouts) -> Tensor:
        """Of each row's prompt; (B,)."""
        found = [self.sums[i] for i in batch.prompt_ids.tolist()]
        values = [total - math.log(number) for total, number in found]
        return torch.tensor(values, dtype=batch.rewards.dtype, device=batch.rewards.device)

    def measured(self, batch: TextRollouts) -> TextRollouts:
        """The normalizers with this batch; the first one also gives coefficients."""
        if self.settings.target == "moments" and self.coefficients is None:
            self.coefficients = self.fitted(batch)
        log_w = self.log_target(batch) - sequence_sum(batch.rollout_log_probs, batch.mask)
        groups = Groups(batch.prompt_ids)
        new = (groups.ids.tolist(), groups.logsumexp(log_w.double()).tolist(), groups.size.tolist())
        for prompt, total, number in zip(*new, strict=True):
            before, count = self.sums.get(prompt, (-math.inf, 0))
            self.sums[prompt] = (log_add(before, total), count + number)
        return batch

    def chosen(self, batch: TextRollouts) -> tuple[TextRollouts, dict[str, Tensor]]:
        """All of it; estimates with the policy that sampled."""
        log_q, log_z = sequence_sum(batch.rollout_log_probs, batch.mask), self.log_z(batch)
        known = torch.isfinite(log_z)
        args = [x[known] for x in (log_q, log_q, self.log_target(batch), log_z)]
        if not known.any():
            return batch, dict.fromkeys(self.metrics, torch.zeros_like(log_z[0]))
        return batch, dict(
            zip(self.metrics, (args[3].mean(), kl_estimate(*args), tv_estimate(*args)), strict=True)
        )

    def masked(self, batch: TextRollouts) -> tuple[TextRollouts, dict[str, Tensor]]:
        """With -f' - b times what a row weighs as advantages; the baseline is updated afterwards."""
        assert batch.advantages is not None
        log_z = self.log_z(batch)
        known = torch.isfinite(log_z)
        log_pi = sequence_sum(self.log_probs(batch), batch.mask)
        log_p = self.log_target(batch) - log_z.where(known, 0.0)
        found = pseudo_rewards(log_pi, log_p, self.settings.divergence)
        advantages = (found - self.baseline).where(known, 0.0) * batch.advantages
        if number := int(known.sum()):
            self.seen = min(self.seen + number, self.settings.window)
            step = min(number / self.seen, 1.0)
            self.baseline += step * (float(found[known].mean()) - self.baseline)
        return batch.replace(advantages=advantages), {}

    def state_dict(self) -> dict[str, Any]:
        """Normalizers, baseline, coefficients."""
        found = {"sums": dict(self.sums), "baseline": self.baseline, "seen": self.seen}
        return found | {"coefficients": self.coefficients}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them."""
        self.sums, self.baseline, self.seen = dict(state["sums"]), state["baseline"], state["seen"]
        self.coefficients = state["coefficients"]


def log_add(a: float, b: float) -> float:
    """log(exp(a) + exp(b)); -inf for two of them."""
    top = max(a, b)
    return top if top == -math.inf else top + math.log(math.exp(a - top) + math.exp(b - top))


def unfit(settings: FDPGConfig, options: Any, task: Any) -> str | None:
    """Moments of rewards that the task lacks, and chosen samples of other prompts among those of a normalizer."""
    if options.scaffold != "none":
        return "its normalizers are means over samples of one prompt: leave --scaffold out"
    names = component_names(task)
    unknown = [name for name in wanted(settings) if name not in names]
    return f"{task.name} has no reward {unknown[0]!r}, it has {', '.join(names)}" if unknown else None


METHOD = Method(config=FDPGConfig, estimator=estimator, companion=FDPG, reference=True, unfit=unfit)
