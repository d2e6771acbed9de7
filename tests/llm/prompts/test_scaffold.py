"""Hints where a group failed: which row changes and to what, whose success it is, and a cliff that GRPO cannot climb."""

import math

import pytest
import torch

from offrl.estimators.advantages import group_std
from offrl.llm.prompts.scaffold import Scaffold
from offrl.llm.rollouts import rollouts
from offrl.llm.text import Prompts, Responses, left_padded, stacked

RIGHT, WRONG, WIDTH, GROUP = 5, 6, 3, 8


def asked(count):
    tokens = torch.arange(10, 10 + count)[:, None].expand(count, WIDTH).clone()
    ones = torch.ones(count, dtype=torch.int64)
    return Prompts(tokens, torch.ones_like(tokens, dtype=torch.bool), 2 * ones, torch.arange(count), ones)


class Hints:
    """Level j appends the token 100 + j; some prompts lack some levels."""

    hint_levels = 12

    def __init__(self, lacking=()):
        self.lacking = set(lacking)

    def hinted(self, prompts, level):
        tokens = torch.nn.functional.pad(prompts.tokens, (0, 1), value=100 + level)
        mask = torch.nn.functional.pad(prompts.mask, (0, 1), value=True)
        fits = torch.tensor([(int(i), level) not in self.lacking for i in prompts.ids])
        return Prompts(tokens, mask, prompts.limits, prompts.ids, prompts.levels), fits


def responses(right):
    """Two tokens each, the first says whether it is right."""
    first = torch.where(right, RIGHT, WRONG)
    tokens = torch.stack([first, torch.full_like(first, 9)], dim=1)
    return Responses(tokens, torch.ones_like(tokens, dtype=torch.bool), torch.full(tokens.shape, -0.5))


def rewarded(prompts, given, ids):
    right = given.tokens[:, 0] == RIGHT
    reward = right.float()
    return rollouts(prompts, given, reward, ids, reward[:, None]).replace(success=right)


def batch_of(prompts, right):
    many = prompts.repeat(right.shape[1])
    ids = torch.arange(len(prompts)).repeat_interleave(right.shape[1]) + 40
    return rewarded(many, responses(right.flatten()), ids)


def oracle(level):
    """Succeeds from this level on."""
    return lambda prompts: responses(prompts.tokens[:, -1] >= 100 + level)


def rescued(right, respond, hints=None):
    prompts = asked(len(right))
    before = batch_of(prompts, right)
    made = Scaffold(hints or Hints(), 0)
    return before, *made.rescue(prompts, before, respond, rewarded)


def rows_equal(one, other, row):
    pad = other.prompt_tokens.shape[1] - one.prompt_tokens.shape[1]
    return (
        torch.equal(torch.nn.functional.pad(one.prompt_tokens[row], (pad, 0)), other.prompt_tokens[row])
        and torch.equal(one.tokens[row], other.tokens[row])
        and one.rewards[row] == other.rewards[row]
    )


def test_groups_with_a_success_are_left_alone_bit_for_bit():
    right = torch.eye(3, GROUP, dtype=torch.bool)
    before, after, found = rescued(right, oracle(1))
    assert after is before
    assert float(found["hint_prompts"]) == 0.0


def test_a_reward_for_something_else_is_no_success():
    """All of a group is well-formed, say, and none of it right: hints come, and their success counts by the same rule."""
    prompts = asked(2)
    right = torch.zeros(2, GROUP, dtype=torch.bool)
    before = batch_of(prompts, right)
    before = before.replace(rewards=before.rewards + 0.1)

    def graded(given, found, ids):
        rows = rewarded(given, found, ids)
        return rows.replace(rewards=rows.rewards + 0.1)

    after, found = Scaffold(Hints(), 0).rescue(prompts, before, oracle(3), graded)
    assert float(found["hint_rescued"]) == 1.0
    assert float(found["hint_level"]) == 3.0
    assert after.rewards.view(2, GROUP)[:, 0].tolist() == pytest.approx([1.1] * 2)


def test_one_row_of_a_failed_group_changes_and_its_advantage_is_known():
    """One success among eight, unbiased std: 7/8 / sqrt(1/8) = 2.475 and -0.354."""
    right = torch.zeros(3, GROUP, dtype=torch.bool)
    right[1, 4] = True
    before, after, found = rescued(right, oracle(3))
    changed = [row for row in range(3 * GROUP) if not rows_equal(before, after, row)]
    assert changed == [0, 2 * GROUP]
    assert torch.equal(before.group_ids, after.group_ids)
    assert after.rewards.view(3, GROUP).mean(dim=1).tolist() == [1 / 8] * 3
    advantages = group_std(after.rewards, after.group_ids).view(3, GROUP)
    assert float(advantages[0, 0]) == pytest.approx(2.475, abs=1e-3)
    assert float(advantages[0, 1]) == pytest.approx(-0.354, abs=1e-3)
    assert float(found["hint_prompts"]) == pytest.approx(2 / 3)
    assert float(found["hint_rescued"]) == pytest.approx(2 / 3)
    assert float(found["hint_level"]) == 3.0


def test_that_row_stands_under_the_hinted_prompt_of_its_own():
    _, after, _ = rescued(torch.zeros(2, GROUP, dtype=torch.bool), oracle(3))
    assert after.prompt_tokens[:, -1].tolist() == [103, *[10] * 7, 103, *[11] * 7]
    assert after.prompt_tokens[1, 0] == 0
    assert not after.prompt_mask[1, 0]
    assert bool(after.prompt_mask[0].all())
    same = after.sources.unique(return_counts=True)[1]
    assert sorted(same.tolist()) == [1, 1, 7, 7]
    assert after.sources[0] not in after.sources[1:].tolist()


def test_the_least_level_that_succeeds_is_taken():
    for level in (1, 5, 12):
        _, after, found = rescued(torch.zeros(4, GROUP, dtype=torch.bool), oracle(level))
        assert after.prompt_tokens[::GROUP, -1].tolist() == [100 + level] * 4
        assert float(found["hint_level"]) == level


def test_a_level_that_a_prompt_lacks_is_passed_over():
    hints = Hints([(0, 5), (0, 6)])
    _, after, _ = rescued(torch.zeros(2, GROUP, dtype=torch.bool), oracle(5), hints)
    assert after.prompt_tokens[::GROUP, -1].tolist() == [107, 105]


def test_where_no_level_helps_the_group_stays_as_it_is():
    before, after, found = rescued(torch.zeros(2, GROUP, dtype=torch.bool), oracle(13))
    assert all(rows_equal(before, after, row) for row in range(2 * GROUP))
    assert torch.equal(group_std(after.rewards, after.group_ids), torch.zeros(2 * GROUP))
    assert float(found["hint_rescued"]) == 0.0
    assert "hint_level" not in found  # a mean of none
    nothing = Hints([(i, j) for i in range(2) for j in range(1, 13)])
    before, after, _ = rescued(torch.zeros(2, GROUP, dtype=torch.bool), oracle(1), nothing)
    assert after is before


def test_groups_of_unequal_size():
    prompts = asked(3)
    ids = torch.tensor([0, 0, 1, 1, 1, 2])
    right = torch.tensor([0, 0, 0, 1, 0, 0]).bool()
    before = rewarded(prompts.repeat(torch.tensor([2, 3, 1])), responses(right), ids)
    after, _ = Scaffold(Hints(), 0).rescue(prompts, before, oracle(2), rewarded)
    assert after.rewards.tolist() == [1, 0, 0, 1, 0, 1]


def test_prompts_that_need_less_help_than_before_are_counted():
    made, none = Scaffold(Hints(), 0), torch.zeros(4, GROUP, dtype=torch.bool)
    some = none.clone()
    some[0, 0] = True
    graduated = []
    for right, level in ((none, 6), (none, 6), (none, 4), (some, 5), (none, 9)):
        prompts = asked(4)
        _, found = made.rescue(prompts, batch_of(prompts, right), oracle(level), rewarded)
        graduated.append(float(found["hint_graduated"]))
    assert graduated == [0.0, 0.0, 1.0, 0.25, 0.0]
    other = Scaffold(Hints(), 0)
    other.load_state_dict(made.state_dict())
    assert other.solved_at == made.solved_at == dict.fromkeys(range(4), 9)


def test_prompts_of_unequal_width_are_stacked_on_the_left():
    tokens, mask = left_padded([[4, 5]], 2)
    one = torch.tensor([1])
    short, long = Prompts(tokens, mask, one, one, one), asked(1)
    both = stacked([short, long])
    assert both.tokens.tolist() == [[0, 4, 5], [10, 10, 10]]
    assert both.mask.tolist() == [[False, True, True], [True, True, True]]


def climb(scaffold, steps=200, seed=0, lr=1.5):
    """One prompt, one shared logit: success 1e-4 without a hint and 0.3 with any; returns the former's at the end."""
    g = torch.Generator().manual_seed(seed)
    logit = 0.0
    plain, hinted = math.log(1e-4 / (1 - 1e-4)), math.log(0.3 / 0.7)
    made, prompts = Scaffold(Hints(), 0), asked(1)

    def chance(with_hint):
        return 1 / (1 + math.exp(-(logit + (hinted if with_hint else plain))))

    for _ in range(steps):
        batch = batch_of(prompts, torch.rand(1, GROUP, generator=g) < chance(False))
        if scaffold:
            batch, _ = made.rescue(
                prompts, batch,
                lambda p: responses(torch.rand(len(p), generator=g) < chance(True)), rewarded,
            )  # fmt: skip
        advantages = group_std(batch.rewards, batch.group_ids)
        p = torch.tensor([chance(bool(last >= 100)) for last in batch.prompt_tokens[:, -1]])
        logit += lr * float(
            (advantages * (batch.rewards - p)).mean()
        )  # score of a Bernoulli under its own prompt
    return chance(False)


def test_a_cliff_is_climbed_with_hints_alone():
    """Without: P(no success in 1600 tries) = 0.85, and one success moves the logit by less than 1/2."""
    assert climb(False) < 2e-4
    assert climb(True) > 0.9
