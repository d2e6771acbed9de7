"""ADORA: weights of a hand-made table in both branches of the published code, and what they do to the gradient."""

import itertools

import pytest
import torch

from offrl.errors import ConfigError
from offrl.llm.method import TextRollouts
from offrl.llm.methods import load_method
from offrl.llm.options import LLMOptions
from offrl.llm.session import build

METHOD = load_method("adora")
# rewards, lengths, cut -> useful by length after the llm and the vlm rule, difficult at 0.5
TABLE = [
    ([1, 0, 0], [7, 3, 4], [0, 0, 0], True, True, True),  # mixed, the right one longer
    ([1, 0, 1], [2, 5, 3], [0, 0, 0], False, False, False),  # mixed, the right ones shorter
    ([1, 1, 1], [4, 4, 4], [0, 0, 0], True, False, False),  # all right
    ([0, 0, 0], [2, 3, 4], [0, 0, 0], False, True, True),  # all wrong
    ([1, 0, 0], [2, 8, 8], [0, 1, 1], True, False, True),  # the wrong ones were cut
    ([0, 0, 0], [8, 8, 8], [1, 1, 1], False, True, True),  # all wrong, all cut
    ([1, 0, 0], [4, 4, 4], [0, 0, 0], False, False, True),  # a tie
    ([1, 1, 0], [3, 5, 4], [0, 0, 0], True, True, False),  # the longest right one counts
    ([0, 1, 0], [8, 4, 3], [1, 0, 0], True, True, True),  # only the wrong one that was not cut counts
]
ORDER = torch.randperm(3 * len(TABLE), generator=torch.Generator().manual_seed(0))


def table(dtype=torch.float64):
    rows = range(len(TABLE))
    rewards, lengths, cut = (torch.tensor([TABLE[i][k] for i in rows]).flatten() for k in range(3))
    ids = torch.arange(len(TABLE)).repeat_interleave(3)
    mask = torch.arange(8) < lengths[:, None]
    batch = TextRollouts(
        mask=mask, rewards=rewards.to(dtype), group_ids=ids, cut=cut.bool(), demo=cut > 2,
        rollout_log_probs=0.0 * mask, old_log_probs=0.0 * mask, prompt_tokens=ids[:, None],
        prompt_mask=ids[:, None] >= 0, tokens=mask.long(), limits=torch.full_like(ids, 8), prompt_ids=ids, components=rewards[:, None],
    )  # fmt: skip
    return batch.rows(ORDER)


def estimator(**settings):
    return METHOD.estimator(METHOD.config(**settings), 8)


def weights(batch, **settings):
    """Those of each group, from advantages of 1."""
    made = estimator(**settings)
    ones = made.advantage[1].function(
        torch.ones_like(batch.rewards), batch.rewards, batch.group_ids, batch.lengths, batch.cut
    )
    per_group = [ones[batch.group_ids == i].unique().tolist() for i in batch.group_ids.unique()]
    assert all(len(found) == 1 for found in per_group)
    return [pytest.approx(found[0]) for found in per_group]


@pytest.mark.parametrize(("empty", "column"), [("llm", 3), ("vlm", 4)])
def test_both_branches_of_the_code(empty, column):
    found = weights(table(), mode="attenuate", criterion="length", empty=empty)
    assert found == [1.0 if row[column] else 0.1 for row in TABLE]


def test_amplification_by_both_or_either():
    difficulty = [row[5] for row in TABLE]
    assert weights(table(), criterion="difficulty") == [1.0 + d for d in difficulty]
    assert weights(table()) == [1.0 + (row[3] and row[5]) for row in TABLE]
    assert weights(table(), criterion="either", empty="vlm") == [1.0 + (row[4] or row[5]) for row in TABLE]
    assert weights(table(), criterion="difficulty", hard=0.3) == [
        2.0 if sum(r[0]) == 0 else 1.0 for r in TABLE
    ]
    shares = [sum(r[0]) / len(r[0]) for r in TABLE]
    for hard in (share for share in set(shares) if share < 1):  # as hard as that counts
        assert weights(table(), criterion="difficulty", hard=hard) == [1.0 + (x <= hard) for x in shares]
    higher = table().replace(rewards=table().rewards + 0.3)
    assert weights(higher, criterion="difficulty") == [1.0 + d for d in difficulty]
    assert weights(higher, criterion="difficulty", correct=1.4) == [2.0] * len(TABLE)
    assert weights(table(), criterion="difficulty", correct=1.0) == [2.0] * len(TABLE)  # not above it


def test_weights_of_one_leave_grpo():
    batch = table(torch.float32)
    grpo = load_method("grpo")
    alike = torch.isin(batch.group_ids, torch.tensor([0, 7, 8]))
    some, base = batch.rows(alike), grpo.estimator(grpo.config(), 8)
    found = estimator(mode="attenuate", criterion="length").advantages(some)
    assert torch.equal(found, base.advantages(some))
    assert found.abs().max() > 0.5


def test_equal_rewards_teach_nothing_and_a_weight_scales():
    batch = table()
    grpo = load_method("grpo")
    base = grpo.estimator(grpo.config(), 8).advantages(batch)
    found = estimator(mode="attenuate", criterion="length").advantages(batch)
    for i, row in enumerate(TABLE):
        mine = batch.group_ids == i
        if len(set(row[0])) == 1:
            assert (found[mine] == 0).all()
        torch.testing.assert_close(found[mine], base[mine] * (1.0 if row[3] else 0.1))
    assert not found.requires_grad


def expected_gradient(logits, right, lengths, **settings):
    """On four arms with groups of three: all 64 as groups of one batch."""
    draws = torch.tensor(list(itertools.product(range(4), repeat=3)))
    flat, ids = draws.flatten(), torch.arange(64).repeat_interleave(3)
    mask = torch.arange(8) < lengths[flat][:, None]
    batch = (
        table()
        .rows(torch.zeros(192).long())
        .replace(rewards=right[flat], group_ids=ids, mask=mask, cut=torch.zeros(192).bool())
    )
    a = estimator(**settings).advantages(batch).view(64, 3)
    p = logits.softmax(0)
    value = (p.detach()[draws].prod(1) * (p.log()[draws] * a).mean(1)).sum()
    return torch.autograd.grad(value, logits)[0]


def test_weights_by_difficulty_keep_the_direction_those_by_length_do_not():
    logits = torch.tensor([0.3, -0.4, 0.1, 0.6], dtype=torch.float64, requires_grad=True)
    right, lengths = torch.tensor([1.0, 1.0, 0.0, 0.0]).double(), torch.tensor([7, 2, 3, 5])
    (truth,) = torch.autograd.grad((logits.softmax(0) * right).sum(), logits)
    cosine = torch.nn.functional.cosine_similarity
    by_difficulty = expected_gradient(logits, right, lengths, criterion="difficulty")
    assert float(cosine(by_difficulty, truth, dim=0)) == pytest.approx(1.0, abs=1e-12)
    by_length = expected_gradient(logits, right, lengths, criterion="length", mode="attenuate")
    assert float(cosine(by_length, truth, dim=0)) < 0.99
    assert by_length[0] / truth[0] > by_length[1] / truth[1]  # long right responses gain


def test_settings_without_effect_are_refused():
    for given in ({"criterion": "length", "hard": 0.3}, {"criterion": "difficulty", "empty": "vlm"}):
        with pytest.raises(ConfigError, match="has no effect with criterion"):
            METHOD.config(**given)


def test_criteria_of_length_need_lengths_that_differ():
    """On t2 a response has as many tokens as its prompt has digits: no right one is longer than the wrong ones."""
    for criterion in ("both", "length"):
        with pytest.raises(
            ConfigError, match="prompt of t2 are all of one length: pass --criterion difficulty"
        ):
            build("adora", METHOD.config(criterion=criterion), LLMOptions(task="t2", device="cpu"))
    build("adora", METHOD.config(criterion="difficulty"), LLMOptions(task="t2", device="cpu"))
    for task in ("t1", "t4a"):
        build("adora", METHOD.config(), LLMOptions(task=task, device="cpu"))
