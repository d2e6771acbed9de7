"""Batches for the methods' tests."""

import pytest
import torch

from offrl.llm.method import TextRollouts


@pytest.fixture
def stream():
    """seed -> a random stream."""
    return lambda seed=0: torch.Generator().manual_seed(seed)


@pytest.fixture
def drifted():
    """(rows, width, groups, seed) -> log-probabilities now and a batch of ragged responses sampled before; float64."""

    def make(rows=12, width=6, groups=3, seed=0):
        g = torch.Generator().manual_seed(seed)
        lengths = torch.randint(1, width + 1, (rows,), generator=g)
        old = -2 * torch.rand(rows, width, generator=g, dtype=torch.float64)
        now = old + 0.5 * torch.randn(rows, width, generator=g, dtype=torch.float64)
        rewards = torch.rand(rows, generator=g, dtype=torch.float64)
        ids, one = torch.arange(rows) % groups, torch.ones(rows, 1, dtype=torch.int64)
        return now, TextRollouts(
            mask=torch.arange(width) < lengths[:, None], old_log_probs=old, rollout_log_probs=old,
            rewards=rewards, group_ids=ids, demo=torch.zeros(rows, dtype=torch.bool), prompt_tokens=one,
            prompt_mask=one > 0, tokens=one.expand(rows, width), limits=one[:, 0], prompt_ids=ids,
            components=rewards[:, None],
        )  # fmt: skip

    return make
