"""Polychromic PPO: episodes from one state are rewarded in sets, for success times diversity, so that none crowds out.

    f(S) = mean of R over S x (different answers in S) / n     of n of the episodes from a state
    A = f(S) - mean f in the first window + 1 turns of each member of S, GAE elsewhere
    loss = -mean over tokens of [min(r A, clip(r) A) - kl_old (r - 1 - log r) - value (V - A_gae - V_old)^2]

With ``states`` 1 or more a prompt's first episode is gone through again: from that many of its states, evenly spaced
and its beginning among them, ``vines`` new episodes are sampled, and only these are compared in sets. With 0 the
responses to a prompt are themselves the sets' members, which is all that a task of single turns allows.

Source: arXiv:2509.25424.
Departures: no code of the authors is known. Advantages are not whitened, so that both kinds keep their scale. The KL to
the sampling policy is estimated from samples (an unbiased gradient) instead of summed over all tokens. ``projected``
is the expectation of ``set`` over all sets.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from offrl.errors import ConfigError, unused
from offrl.estimators.compose import Estimator, Spec, compose
from offrl.estimators.groups import Groups
from offrl.estimators.sets import all_sets, enumerable, polychromic, projected, random_sets, shared
from offrl.llm.episodes import Moment, environment_of, resumed
from offrl.llm.method import ClipSettings, Companion, Method, TextRollouts, clip, terms
from offrl.llm.text import Prompts, Responses


@dataclass(frozen=True, kw_only=True)
class PolychromicConfig(ClipSettings):
    """Settings of Polychromic PPO."""

    n: int = 4
    """Episodes of a set."""
    share: Literal["set", "projected"] = "projected"
    """What a member gets: the advantage of each of its sets, or their expectation."""
    sets: int = 4
    """Random sets of share set, and of projected where there are more than 5000."""
    states: int = 2
    """States of a prompt's first episode that new ones start from; 0: responses to the prompt are compared."""
    vines: int = 8
    """Episodes from each such state."""
    window: int = 5
    """Turns after the first that still get the set's advantage."""
    kl_old: float = 0.01
    """Coefficient of the KL from the sampling policy."""
    lam: float = 0.95
    """GAE's lambda."""
    value: float = 0.1
    """Coefficient of the value loss."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n < 2 or self.sets < 1 or self.states < 0 or self.window < 0:
            raise ConfigError("polychromic: n must be 2 or more, sets 1 or more, states and window 0 or more")
        if self.states == 0:
            unused(self, "with states 0", "vines")
        if self.states and self.n > self.vines:
            raise ConfigError(f"polychromic: sets of {self.n} need as many vines, got {self.vines}")


def mixed(
    advantages: Tensor, set_advantages: Tensor, vines: Tensor, step_ids: Tensor, mask: Tensor, *, window: int
) -> Tensor:
    """Sets' advantages in the window of their rows, the given ones elsewhere; (B, T), (B, K) -> (B, T[, K])."""
    inside = vines[:, None] & (step_ids >= 0) & (step_ids <= window) & mask
    others = torch.zeros(*advantages.shape, set_advantages.shape[1]).to(advantages)
    others[..., 0] = advantages
    found = torch.where(inside[..., None], set_advantages[:, None].to(advantages), others)
    return found[..., 0] if found.shape[-1] == 1 else found


def kl_from_old(log_probs: Tensor, old_log_probs: Tensor) -> Tensor:
    """The estimate r - 1 - log r of KL(pi_old || pi), without bias for samples of pi_old; (B, T)."""
    d = log_probs - old_log_probs
    return d.clamp(max=20.0).exp() - 1.0 - d


class Vines(Companion):
    """Samples from inside of episodes, and compares sets."""

    metrics = ("set_advantage", "gae_advantage", "dead_sets", "different")

    def sampled(self, sampler: Any, draw: Callable[..., Responses]) -> tuple[Responses, dict[str, Tensor]]:
        """The responses, and where their episodes passed."""
        self.moments: list[Moment] = []
        responses = draw(moments=self.moments) if self.settings.states else draw()
        fresh = torch.full((len(responses.tokens),), not self.settings.states, device=responses.tokens.device)
        return responses, {"vines": fresh}

    def more(
        self, sampler: Any, prompts: Prompts, responses: Responses
    ) -> tuple[Prompts, Responses, Tensor, dict[str, Tensor]] | None:
        """The vines."""
        s, learner = self.settings, self.learner
        if not s.states:
            return None
        environment = environment_of(learner.task)
        assert environment is not None  # see unfit
        firsts = torch.arange(0, len(prompts), learner.options.group, device=prompts.ids.device)
        asked, found = resumed(
            sampler, environment, prompts, responses, self.moments, firsts, states=s.states,
            copies=s.vines, temperature=learner.options.temperature, generator=learner.streams["sampling"],
        )  # fmt: skip
        many = asked.repeat(s.vines)
        ids = torch.arange(len(asked), device=many.ids.device).repeat_interleave(s.vines)
        return many, found, ids, {"vines": torch.ones_like(ids, dtype=torch.bool)}

    def measured(self, batch: TextRollouts) -> TextRollouts:
        """With the advantages of sets."""
        s, rewards = self.settings, batch.components.sum(dim=1)
        assert batch.vines is not None
        assert batch.answer_ids is not None
        if not bool(((rewards >= 0.0) & (rewards <= 1.0)).all()):
            wide = f"{float(rewards.min()):g} to {float(rewards.max()):g}"
            raise ConfigError(f"polychromic: rewards must lie in [0, 1], got {wide}")
        found = rewards.new_zeros(len(rewards), 1 if s.share == "projected" else s.sets)
        groups = Groups(batch.group_ids)
        dead, different = [], []
        for group in groups.index[batch.vines].unique().tolist():
            rows = (groups.index == group).nonzero()[:, 0]
            sets = self._sets(len(rows)).to(rows.device)
            scores = polychromic(rewards[rows], batch.answer_ids[rows], sets)
            dead.append(scores.max() == scores.min())
            different.append(float(len(batch.answer_ids[rows].unique())))
            if s.share == "projected":
                found[rows, 0] = projected(scores, sets, len(rows))
            else:
                found[rows] = shared(scores, sets, len(rows))
        self.dead, self.different = torch.stack(dead).float().mean(), sum(different) / len(different)
        return batch.replace(set_advantages=found)

    def _sets(self, size: int) -> Tensor:
        s = self.settings
        if s.share == "projected" and enumerable(size, s.n):
            return all_sets(size, s.n)
        return random_sets(size, s.n, s.sets, self.learner.streams["method"])

    def chosen(self, batch: TextRollouts) -> tuple[TextRollouts, dict[str, Tensor]]:
        """All; reports the scale of both kinds of advantages, groups whose sets are all alike, and their answers."""
        assert batch.advantages is not None
        assert batch.set_advantages is not None
        assert batch.vines is not None
        outside = batch.mask & ~batch.vines[:, None]
        a = batch.advantages if batch.advantages.dim() == 2 else batch.advantages.sum(dim=-1)
        return batch, {
            "set_advantage": batch.set_advantages[batch.vines].sum(dim=1).square().mean().sqrt(),
            "gae_advantage": (a[outside].square().sum() / outside.sum().clamp(min=1)).sqrt(),
            "dead_sets": self.dead,
            "different": a.new_tensor(self.different),
        }


def unfit(settings: PolychromicConfig, options: Any, task: Any) -> str | None:
    """Groups of unequal sizes, vines of a task of single turns, and sets larger than a group."""
    if options.allocator != "uniform":
        return "its sets need as many responses to every prompt: leave --allocator out"
    if settings.states and environment_of(task) is None:
        return f"task {task.name} has no states to start from: pass --states 0"
    if options.context != "full":
        return "it starts inside of whole episodes: leave --context out"
    if not settings.states and settings.n > options.group:
        return f"sets of {settings.n} need groups as large: pass --group {settings.n} or more"
    return None


def beside(settings: PolychromicConfig, options: Any) -> int:
    """Vines."""
    vines: int = options.prompts * settings.states * settings.vines
    return vines


def facts(settings: PolychromicConfig, options: Any) -> dict[str, str]:
    """Vines come on top."""
    rows = options.prompts * options.group + beside(settings, options)
    vines = f" and {settings.states} x {settings.vines} vines" if settings.states else ""
    return {"responses per step": f"{rows} ({options.group} a prompt{vines})"}


def estimator(settings: PolychromicConfig, length: int) -> Estimator:
    """The composition."""
    gae: Spec = ("gae", {"discount": 1.0, "lam": settings.lam})
    advantage: list[Spec] = [gae, (mixed, {"window": settings.window})]
    own: list[tuple[Spec, float]] = [(kl_from_old, settings.kl_old), ("value_loss", settings.value)]
    return compose(advantage=advantage, mask=clip(settings), regularizers=[*terms(settings, None), *own])


METHOD = Method(
    config=PolychromicConfig, estimator=estimator, kl="step-reward", critic=True, answers=True, companion=Vines,
    unfit=unfit, beside=beside, facts=facts,
)  # fmt: skip
