"""A group of rollouts through a stand-in for verl's server: hints, fields, and group statistics by uid."""

import asyncio
from types import SimpleNamespace

import torch

from offrl.llm.integrations.verl_prompts import group_advantages, rollout_group
from offrl.llm.methods import load_method

PROMPT = [5, 6]


class Server:
    """Answers 1 from a hint of this level on, else 0; a hint is the number at the prompt's end."""

    def __init__(self, level):
        self.level, self.calls = level, []

    async def generate(self, request_id, *, prompt_ids, sampling_params):
        self.calls.append((request_id, prompt_ids, sampling_params))
        await asyncio.sleep(0.001 * (20 - len(self.calls)))  # later ones answer first
        right = int(prompt_ids[-1] >= 100 + self.level)
        return SimpleNamespace(token_ids=[right, 9], log_probs=[-0.5, -0.1])


def run(level, hinted=12, count=4):
    server = Server(level)
    hints = [[*PROMPT, 100 + j] for j in range(1, hinted + 1)]
    how = {"sampling_params": {"temperature": 1.0}, "hinted": hints, "uid": "a"}
    rows = asyncio.run(rollout_group(server.generate, PROMPT, count, lambda ids: float(ids[0]), **how))
    return server, rows


def test_a_failed_group_gets_the_first_hinted_success():
    server, rows = run(5)
    assert [row.reward_score for row in rows] == [1.0, 0.0, 0.0, 0.0]
    assert rows[0].prompt_ids == [*PROMPT, 105]
    assert rows[0].extra_fields == {"uid": "a", "hint_level": 5}
    assert (rows[1].prompt_ids, rows[1].response_mask, rows[1].response_logprobs) == (
        PROMPT,
        [1, 1],
        [-0.5, -0.1],
    )
    assert len(server.calls) == len({call[0] for call in server.calls}) == 16
    assert all(call[2] == {"temperature": 1.0} for call in server.calls)


def test_without_a_success_or_without_hints_nothing_is_replaced():
    assert [row.reward_score for row in run(13)[1]] == [0.0] * 4
    server, rows = run(1, hinted=0)
    assert [row.reward_score for row in rows] == [0.0] * 4
    assert len(server.calls) == 4


def test_a_group_with_a_success_asks_for_no_hint():
    server, rows = run(-200)
    assert [row.reward_score for row in rows] == [1.0] * 4
    assert len(server.calls) == 4


def test_advantages_are_those_of_groups_of_any_size_in_any_order():
    method = load_method("dr_grpo")
    estimator = method.estimator(method.config(), 3)
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0, 0.0])
    uids = ["b", "a", "b", "a", "b", "b"]
    found = group_advantages(estimator, rewards, uids, torch.ones(6, 3, dtype=torch.bool))
    plain = torch.tensor([0.75, -0.5, -0.25, 0.5, -0.25, -0.25])
    torch.testing.assert_close(found, plain * torch.tensor([0.75, 1.5, 0.75, 1.5, 0.75, 0.75]))
