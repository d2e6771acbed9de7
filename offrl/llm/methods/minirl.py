"""MiniRL: the token-level surrogate taken seriously, for policies that sample on another engine than they train on.

    loss = -mean_i sum_t M_it sg(min(pi / mu, cap)) A_i log pi(a_it | s_it),     A_i = R_i - mean of the group
    M = 0 where A > 0 and pi / pi_old > 1 + high, or A < 0 and pi / pi_old < 1 - low

mu is what sampling recorded. With ``replay`` the experts of a mixture are held during updates: R2 takes those that
training chose before the first update (the first one is not changed), R3 those that sampling chose (both ratios come
closer to 1, and the first update is one of another policy).

Source: arXiv:2512.01374; replay: volcengine/verl.
Departures: no code of the authors is known. Groups of equal rewards are kept. No load-balancing loss is added.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from offrl.errors import ConfigError
from offrl.estimators.compose import Estimator
from offrl.estimators.groups import Groups
from offrl.estimators.recipes import recipe
from offrl.llm.method import ClipSettings, Companion, Method, TextRollouts, terms
from offrl.llm.routing import forced, recording, routers
from offrl.llm.text import Responses


@dataclass(frozen=True, kw_only=True)
class MiniRLConfig(ClipSettings):
    """Settings of MiniRL."""

    clip_high: float = 0.27
    """The ratio is held below 1 plus this."""
    cap: float = 5.0
    """The weight pi / mu is at most this."""
    replay: Literal["none", "R2", "R3"] = "none"
    """Which experts updates use: those of the current router, of training before the updates, of sampling."""


def estimator(settings: MiniRLConfig, length: int) -> Estimator:
    """The composition."""
    bounds = {"low": settings.clip_low, "high": settings.clip_high}
    return recipe(
        "minirl", denominator=("rollout", {"cap": settings.cap}), mask=("decoupled_clip", bounds),
        regularizers=terms(settings),
    )  # fmt: skip


class Replay(Companion):
    """Holds the experts of each token of a batch."""

    def __init__(self, settings: Any, learner: Any) -> None:
        super().__init__(settings, learner)
        if settings.replay != "none" and not routers(learner.policy):
            raise ConfigError(f"minirl: {learner.options.model} has no routers to replay; leave --replay out")

    @staticmethod
    def watches(settings: MiniRLConfig) -> bool:
        """Without replay it does not even that."""
        return settings.replay == "none"

    def sampled(self, sampler: Any, draw: Callable[[], Responses]) -> tuple[Responses, dict[str, Tensor]]:
        """R3: with the experts of sampling, which reads each prompt once and then a token at a time."""
        if self.settings.replay != "R3":
            return draw(), {}
        with recording(sampler) as passes:
            responses = draw()
        first, *rest = passes
        copies = self.learner.prompting.copies
        prompts = len(copies) if isinstance(copies, Tensor) else len(responses.tokens) // copies
        of_prompts = first.view(prompts, -1, *first.shape[1:]).repeat_interleave(copies, 0)
        later = torch.stack(rest, dim=1) if rest else of_prompts[:, :0]
        return responses, {"prompt_routes": of_prompts, "routes": later}

    def measured(self, batch: TextRollouts) -> TextRollouts:
        """R2: with the experts of training, before its first update."""
        if self.settings.replay != "R2":
            return batch
        of_prompts, later = [], []
        with recording(self.learner.policy) as passes:
            parts = [rows for rows, _ in self.learner.scored(batch)]
        each = iter(passes)
        for rows in parts:
            owners = Groups(batch.group_ids[rows]).index
            read = next(each)
            of_prompts.append(read.view(int(owners.max()) + 1, -1, *read.shape[1:])[owners])
            later.append(next(each) if batch.tokens.shape[1] > 1 else read[:0])
        routes = torch.cat(later).view(len(batch.tokens), -1, *passes[0].shape[1:])
        return batch.replace(prompt_routes=torch.cat(of_prompts), routes=routes)

    @contextmanager
    def scoring(self, batch: TextRollouts, policy: Any, first: Tensor) -> Iterator[None]:
        """The policy's experts are the recorded ones."""
        if batch.routes is None or batch.prompt_routes is None or policy is not self.learner.policy:
            yield
            return
        passes = [batch.prompt_routes[first].flatten(0, 1), batch.routes.flatten(0, 1)]
        with forced(policy, passes):
            yield


def unfit(settings: MiniRLConfig, options: Any, task: Any) -> str | None:
    """Replay that cannot change anything."""
    if settings.replay == "R3" and hasattr(task, "environment"):
        return "R3 reads what sampling read token by token, which episodes are not: leave --replay R3 out"
    if settings.replay != "none" and options.context != "full":
        return "experts are replayed in whole episodes only: leave --context out"
    once = options.reuse * options.minibatches == 1
    if settings.replay == "R2" and once:
        return "R2 changes nothing in the first update of a batch: pass --minibatches or --reuse"
    if settings.replay == "R3" and options.generation != "own":
        return "R3 needs the experts of sampling, which a server does not tell: use R2"
    if settings.replay == "R3" and once and options.engine == "exact" and not options.delay:
        return "R3 changes nothing with one update a batch of an exact engine: pass --minibatches, --reuse or --engine"
    return None


METHOD = Method(config=MiniRLConfig, estimator=estimator, grouped=True, companion=Replay, unfit=unfit)
