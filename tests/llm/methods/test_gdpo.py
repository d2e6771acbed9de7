"""GDPO: what its advantages are for rewards that can be written down, and what leaves them alone."""

import itertools
import math

import pytest
import torch

from offrl.errors import ConfigError
from offrl.estimators.advantages import group_std, whiten_rows
from offrl.estimators.rollouts import Rollouts
from offrl.llm.methods import load_method
from offrl.llm.methods.gdpo import each_group_std
from offrl.llm.options import LLMOptions
from offrl.llm.session import build


def advantages(columns, ids=None, weights=()):
    components = torch.tensor(columns, dtype=torch.float64).T
    ids = torch.zeros(len(components), dtype=torch.int64) if ids is None else torch.tensor(ids)
    return each_group_std(components, ids, weights=weights)


def whole(components, ids, mask=None, **settings):
    method = load_method("gdpo")
    estimator = method.estimator(method.config(**settings), 4)
    batch = Rollouts(group_ids=ids, mask=mask)
    object.__setattr__(batch, "components", components)
    return estimator.advantages(batch)


def drawn(rows=24, groups=4, rewards=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    components = torch.rand(rows, rewards, generator=g, dtype=torch.float64)
    ids = torch.arange(rows) % groups
    return components, ids[torch.randperm(rows, generator=g)]


def test_the_papers_example_of_two_binary_rewards():
    """Totals (0, 1), (0, 2), (1, 2) are one for GRPO; here the second is twice as good."""
    half = math.sqrt(0.5)
    assert advantages([[0, 1], [0, 0]]).tolist() == pytest.approx([-half, half], abs=1e-3)
    assert advantages([[0, 1], [0, 1]]).tolist() == pytest.approx([-2 * half, 2 * half], abs=1e-3)
    assert advantages([[0, 1], [1, 1]]).tolist() == pytest.approx([-half, half], abs=1e-3)
    assert advantages([[1, 1], [0, 0]]).tolist() == [0.0, 0.0]


def test_opposite_rewards_cancel_unless_their_weights_differ():
    assert advantages([[1, 1, 0], [0, 0, 1]]).tolist() == pytest.approx([0, 0, 0], abs=1e-12)
    found = advantages([[1, 1, 0], [0, 0, 1]], weights=(1.0, 0.5))
    assert found.tolist() == pytest.approx([0.2887, 0.2887, -0.5774], abs=1e-3)


@pytest.mark.parametrize(
    ("size", "rewards", "want"),
    [(2, 2, (2, 3, 3)), (3, 2, (4, 6, 6)), (4, 2, (7, 10, 14)), (3, 3, (6, 10, 10))],
)
def test_how_many_advantages_can_be_told_apart(size, rewards, want):
    """Distinct sorted advantages over all rewards of a group: GRPO, without its std, GDPO. Counted in the paper."""
    found = (set(), set(), set())
    ids = torch.zeros(size, dtype=torch.int64)
    for bits in itertools.product([0.0, 1.0], repeat=size * rewards):
        each = torch.tensor(bits, dtype=torch.float64).view(size, rewards)
        total = each.sum(dim=1)
        kinds = (
            group_std(total, ids, epsilon=0.0).nan_to_num(),
            total - total.mean(),
            each_group_std(each, ids, weights=()),
        )
        for seen, advantage in zip(found, kinds, strict=True):
            seen.add(tuple((advantage.sort()[0].round(decimals=3) + 0.0).tolist()))
    assert tuple(len(seen) for seen in found) == want


def test_one_reward_is_whitened_grpo_and_a_multiple_of_it():
    components, ids = drawn(rewards=1)
    grpo = group_std(components[:, 0], ids, epsilon=1e-4)
    found = whole(components, ids)
    torch.testing.assert_close(found, whiten_rows(grpo, epsilon=1e-4))
    torch.testing.assert_close(found / grpo, (found / grpo)[:1].expand(len(ids)))


def test_responses_have_mean_zero_and_std_one():
    found = whole(*drawn())
    assert float(found.mean()) == pytest.approx(0.0, abs=1e-12)
    assert float(found.std()) == pytest.approx(1.0, abs=1e-3)


def test_the_scale_of_a_reward_does_not_matter_but_its_weight_does():
    components, ids = drawn()
    other = components * torch.tensor([100.0, 7.0, 30.0]) + torch.tensor([5.0, -3.0, 0.0])
    torch.testing.assert_close(whole(other, ids), whole(components, ids), atol=1e-3, rtol=1e-3)
    heavy = whole(components, ids, weights=(1.0, 1.0, 5.0))
    assert (heavy - whole(components, ids)).abs().max() > 0.1
    only = whole(components, ids, weights=(0.0, 0.0, 5.0))
    torch.testing.assert_close(only, whole(components[:, 2:], ids), atol=1e-3, rtol=1e-3)


def test_a_constant_reward_changes_nothing():
    components, ids = drawn()
    constant = torch.cat([components, torch.full((24, 1), 0.3, dtype=torch.float64)], dim=1)
    torch.testing.assert_close(whole(constant, ids), whole(components, ids))


def test_a_rare_reward_is_amplified():
    assert advantages([[1] + [0] * 15])[0] == pytest.approx(3.75, abs=1e-2)


def test_groups_are_found_by_id():
    components, ids = drawn()
    order = torch.randperm(24, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(whole(components[order], ids[order]), whole(components, ids)[order])


def dead_and_alive():
    """A group of equal rewards and short responses, a group of unequal ones whose good response is long."""
    components = torch.tensor([[1.0, 1.0], [1.0, 1.0], [0.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    ids = torch.tensor([0, 0, 1, 1])
    mask = torch.arange(4) < torch.tensor([[1], [1], [1], [4]])
    return components, ids, mask


def test_over_responses_groups_that_teach_nothing_get_nothing_and_over_tokens_something():
    components, ids, mask = dead_and_alive()
    rows = whole(components, ids, mask)
    assert rows[:2].tolist() == [0.0, 0.0]
    assert rows[2:].tolist() == pytest.approx([-math.sqrt(1.5), math.sqrt(1.5)], abs=1e-3)
    tokens = whole(components, ids, mask, whiten_over="tokens")
    kept = tokens[mask]
    assert float(kept.mean()) == pytest.approx(0.0, abs=1e-12)
    assert float(kept.std()) == pytest.approx(1.0, abs=1e-3)
    assert tokens[0, 0] < -0.5


def test_weights_that_no_reward_has_are_refused():
    method, options = load_method("gdpo"), LLMOptions(task="t5", group=2, prompts=2)
    with pytest.raises(ConfigError, match=r"2 weights for the 3 rewards of t5 \(format, length, correct\)"):
        build("gdpo", method.config(weights=(1.0, 2.0)), options)
    build("gdpo", method.config(weights=(1.0, 2.0, 0.5)), options)
    with pytest.raises(ConfigError, match="gdpo: all rewards weigh 0"):
        build("gdpo", method.config(weights=(0.0, 0.0, 0.0)), options)


def test_weights_that_normalizing_takes_away_are_refused(tmp_path, hugging_face):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1+1", "answer": 2}\n')
    method, given = load_method("gdpo"), {"model": hugging_face(), "group": 2, "prompts": 2}
    given |= {"dataset": str(tmp_path / "rows.jsonl"), "max_response": 4}
    options = LLMOptions(reward=("integer", "regex:1=0.5"), **given)
    with pytest.raises(
        ConfigError, match="gdpo: the weight 0.5 of --reward regex has no effect: pass --weights"
    ):
        build("gdpo", method.config(), options)
    build("grpo", load_method("grpo").config(), options)
    for weight in ("", "=-1", "=0"):
        build(
            "gdpo",
            method.config(weights=(1.0, 0.5)),
            LLMOptions(reward=("integer", f"regex:1{weight}"), **given),
        )


def test_the_engine_passes_on_each_reward():
    """On t5 a learner's advantages are those of the rewards that the task gives to what was sampled."""
    method, options = load_method("gdpo"), LLMOptions(task="t5", group=8, prompts=4, seed=1)
    made = build("gdpo", method.config(weights=(1.0, 0.5, 2.0)), options)
    batch = made._prepared(made._collect()[0])
    torch.testing.assert_close(batch.components.sum(1), batch.rewards)
    want = whole(batch.components, batch.group_ids, weights=(1.0, 0.5, 2.0))
    torch.testing.assert_close(batch.advantages, want)
    assert batch.advantages.abs().max() > 0.5
