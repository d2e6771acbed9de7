"""A model of rewards that learns from pairs: which of two responses to the same prompt came out better.

    loss = mean over pairs of a group with G_i > G_j of -log sigmoid(r_i - r_j)

Its body begins as the policy, its value is one product of the state after the last token that was chosen.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from offrl.llm.method import TextRollouts


class Rater(nn.Module):
    """Ratings of responses.

    Args:
        policy: that its body is a copy of; frozen parameters are shared.
    """

    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.body = copy.deepcopy(policy, {id(p): p for p in policy.parameters() if not p.requires_grad})
        self.value = nn.Linear(policy.head.shape[1], 1).to(policy.head)
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)

    def forward(self, batch: TextRollouts) -> Tensor:
        """(B,)."""
        rows, columns = torch.arange(len(batch.mask), device=batch.mask.device), batch.mask.shape[1]
        tokens = torch.nn.functional.pad(batch.tokens, (0, 1), value=self.body.pad)  # states precede tokens
        states = self.body.hidden(batch.prompt_tokens, batch.prompt_mask, tokens, rows)
        last = ((1 + torch.arange(columns, device=rows.device)) * batch.mask).amax(dim=1)
        found: Tensor = self.value(states[rows, last])[:, 0]
        return found


def pairs(outcomes: Tensor, group_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of the better and of the worse of all pairs of a group that differ; (B,), (B,) -> (K,), (K,)."""
    better, worse = ((outcomes[:, None] > outcomes) & (group_ids[:, None] == group_ids)).nonzero(
        as_tuple=True
    )
    return better, worse


def pair_loss(ratings: Tensor, better: Tensor, worse: Tensor) -> Tensor:
    """Mean -log sigmoid(r_i - r_j)."""
    return -nn.functional.logsigmoid(ratings[better] - ratings[worse]).mean()


def pair_accuracy(ratings: Tensor, better: Tensor, worse: Tensor) -> Tensor:
    """Share of pairs that the ratings order, ties halved; 1/2 where there is no pair."""
    if len(better) == 0:
        return ratings.new_tensor(0.5)
    gap = ratings[better] - ratings[worse]
    return (gap > 0).float().mean() + 0.5 * (gap == 0).float().mean()


class Rating:
    """A rater in training.

    Args:
        policy: as training begins.
        lr: learning rate of AdamW (no weight decay).
        updates: from each batch.
        micro_batch: rows of one pass; 0: all.
    """

    def __init__(self, policy: Any, lr: float, updates: int, micro_batch: int) -> None:
        self.model, self.updates, self.micro = Rater(policy), updates, micro_batch
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=lr, weight_decay=0.0)

    def rated(self, batch: TextRollouts) -> Tensor:
        """(B,), without gradient."""
        with torch.no_grad():
            return torch.cat([self.model(batch.rows(rows)) for rows in self._parts(batch)])

    @torch.enable_grad()
    def learn(self, batch: TextRollouts) -> tuple[Tensor, Tensor]:
        """From which responses of a batch came out better; accuracy on its pairs before that, and the first loss."""
        better, worse = pairs(batch.rewards, batch.group_ids)
        ratings = self.rated(batch)
        accuracy, first = pair_accuracy(ratings, better, worse), ratings.new_tensor(0.0)
        for number in range(self.updates if len(better) else 0):
            ratings = (ratings if number == 0 else self.rated(batch)).requires_grad_()
            loss = pair_loss(ratings, better, worse)
            (gradient,) = torch.autograd.grad(loss, ratings)
            self.optimizer.zero_grad()
            for rows in self._parts(batch):  # the gradient of a pair, whichever passes its rows are in
                self.model(batch.rows(rows)).backward(gradient[rows])
            nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimizer.step()
            first = loss.detach() if number == 0 else first
        return accuracy, first

    def _parts(self, batch: TextRollouts) -> tuple[Tensor, ...]:
        size = len(batch.tokens)
        rows: tuple[Tensor, ...] = torch.arange(size, device=batch.tokens.device).split(self.micro or size)
        return rows

    def state_dict(self) -> dict[str, Any]:
        """Weights and the optimizer's state."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
