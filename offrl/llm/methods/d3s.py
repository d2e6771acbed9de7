"""D3S: GRPO on the responses whose advantages vary most, and on their tokens of largest |A| times entropy.

    rows    the N of the batch (or of each group) of largest Var(A): the k largest and N - k smallest, best k
    tokens  the share K of their tokens with the largest |A_i| H_it,     H the entropy of the policy at that token
    N, K    linear in training progress, few at first

Advantages are those of whole groups, never normalized again; means are over what is kept.

Source: arXiv:2509.22115.
Departures: no code is public, and the paper's N and K could not be read: the defaults are ours. On GRPO alone. Ties are
broken at random; entropies are those of the policy before the first update.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from offrl.errors import ConfigError
from offrl.estimators.compose import Estimator
from offrl.estimators.groups import Groups
from offrl.estimators.recipes import recipe
from offrl.llm.method import ClipSettings, Companion, Method, TextRollouts, clip, terms


@dataclass(frozen=True, kw_only=True)
class D3SConfig(ClipSettings):
    """Settings of D3S."""

    rows_first: float = 0.25
    """Share of the responses that the first step learns from."""
    rows_last: float = 1.0
    """That of the last step."""
    tokens_first: float = 0.1
    """Share of their tokens in the first step."""
    tokens_last: float = 0.5
    """That in the last step."""
    across: bool = True
    """Choose from the whole batch; otherwise as many from each group."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rows_first", "rows_last", "tokens_first", "tokens_last"):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise ConfigError(f"{name} must be above 0 and at most 1, got {getattr(self, name)}")


def share(first: float, last: float, progress: float) -> float:
    """From ``first`` to ``last`` as progress goes from 0 to 1."""
    return (1.0 - progress) * first + progress * last


def most_spread(values: Tensor, count: int) -> Tensor:
    """Indices of the ``count`` values of largest variance: some of the smallest and of the largest; (n,) -> (count,).

    Among equal values the first in line are taken.
    """
    order = values.argsort(stable=True)
    line = (values - values.mean()).double()[order]
    sums = torch.nn.functional.pad(torch.stack([line, line.square()]).cumsum(dim=1), (1, 0))
    large = torch.arange(count + 1, device=values.device)
    small = count - large
    total = sums[:, small] + sums[:, -1:] - sums[:, len(values) - large]
    spread = total[1] / count - (total[0] / count).square()
    k = int(spread.argmax())
    return torch.cat([order[: count - k], order[len(values) - k :]])


class Selection(Companion):
    """Rows and tokens to learn from."""

    metrics = ("rows_kept", "tokens_kept")

    def chosen(self, batch: TextRollouts) -> tuple[TextRollouts, dict[str, Tensor]]:
        """The chosen rows, in their order, with a mask of the chosen tokens."""
        s, progress = self.settings, self.learner.progress
        assert batch.advantages is not None
        size, tokens = len(batch.advantages), batch.mask.sum().clamp(min=1)
        groups = [torch.arange(size, device=batch.mask.device)]
        if not s.across:
            index = Groups(batch.group_ids).index
            groups = [(index == i).nonzero()[:, 0] for i in range(int(index.max()) + 1)]
        wanted = share(s.rows_first, s.rows_last, progress)
        kept = []
        for rows in groups:
            line = rows[self._shuffled(len(rows), rows.device)]
            kept.append(line[most_spread(batch.advantages[line], max(round(wanted * len(rows)), 1))])
        batch = batch.rows(torch.cat(kept).sort().values)
        wanted = share(s.tokens_first, s.tokens_last, progress)
        if wanted < 1.0:
            batch = batch.replace(mask=self._tokens(batch, wanted))
        found = {"rows_kept": torch.tensor(len(batch.mask) / size), "tokens_kept": batch.mask.sum() / tokens}
        return batch, found

    def _tokens(self, batch: TextRollouts, wanted: float) -> Tensor:
        """The mask of a share of the tokens."""
        assert batch.advantages is not None
        entropy = torch.zeros_like(batch.rollout_log_probs)
        for rows, scores in self.learner.scored(batch, entropy=True):
            entropy[rows] = scores.entropy.to(entropy)
        keys = (batch.advantages.abs()[:, None] * entropy)[batch.mask]
        line = self._shuffled(len(keys), keys.device)
        count = math.ceil(wanted * len(keys) - 1e-9)
        best = line[keys[line].argsort(descending=True, stable=True)[:count]]
        place = batch.mask.nonzero()[best]
        return torch.zeros_like(batch.mask).index_put((place[:, 0], place[:, 1]), torch.tensor(True))

    def _shuffled(self, size: int, device: Any) -> Tensor:
        return torch.randperm(size, generator=self.learner.streams["method"]).to(device)


def facts(settings: D3SConfig, options: Any) -> dict[str, str]:
    """How many responses an update reads."""
    updates, rows = options.reuse * options.minibatches, options.minibatch_rows
    first, last = round(settings.rows_first * rows), round(settings.rows_last * rows)
    tokens = f"{100 * settings.tokens_first:.3g} % of their tokens, then {100 * settings.tokens_last:.3g} %"
    return {"updates per step": f"{updates} of about {first} responses at first, {last} at last; {tokens}"}


def estimator(settings: D3SConfig, length: int) -> Estimator:
    """GRPO's composition."""
    return recipe("grpo", mask=clip(settings), regularizers=terms(settings))


METHOD = Method(config=D3SConfig, estimator=estimator, grouped=True, companion=Selection, facts=facts)
