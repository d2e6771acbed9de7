"""D3S: the rows of largest variance by brute force, tokens counted exactly, the schedule, and GRPO when all is kept."""

import itertools

import pytest
import torch

from offrl.errors import ConfigError
from offrl.estimators.groups import Groups
from offrl.llm.learner import Learner
from offrl.llm.methods import load_method
from offrl.llm.methods.d3s import most_spread
from offrl.llm.models import load_model
from offrl.llm.options import LLMOptions
from offrl.llm.tasks import load_task

METHOD = load_method("d3s")
ALL = {"rows_first": 1.0, "rows_last": 1.0, "tokens_first": 1.0, "tokens_last": 1.0}


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def learner(settings=None, name="d3s", **options):
    given = {"prompts": 4, "group": 6, "lr": 1e-2, "task": "t2", "steps": 5, **options}
    method, o = load_method(name), LLMOptions(**given)
    task = load_task(o.task)
    return Learner(method, method.config(**(settings or {})), task, load_model(o.model, task, 0).double(), o)


def batch_of(made, seed=5):
    batch = made._prepared(made._collect()[0])
    return batch if seed is None else batch.replace(advantages=normal(len(batch.rewards), seed=seed))


def weights(made):
    return torch.cat([p.detach().flatten() for p in made.policy.parameters()])


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("count", [1, 4, 7])
def test_the_rows_are_those_of_brute_force(seed, count):
    values = (-1) ** seed * normal(10, seed=seed).exp()  # a long tail: splits are not even
    best = max(
        itertools.combinations(range(10), count), key=lambda rows: float(values[list(rows)].var(correction=0))
    )
    found = most_spread(values, count)
    assert len(found) == count
    assert len(found.unique()) == count
    if count > 1:
        assert sorted(found.tolist()) == sorted(best)
        assert values[found].var(correction=0) >= values.var(correction=0)


def test_ties_keep_both_signs_and_all_is_all():
    values = torch.tensor([1.0, -1, -1, 1, 1, -1, 1, 1])
    assert values[most_spread(values, 4)].sort().values.tolist() == [-1, -1, 1, 1]
    assert sorted(most_spread(values, 8).tolist()) == list(range(8))
    assert values[most_spread(values + 1e6, 4)].sum() == 0


def test_when_everything_is_kept_it_is_grpo():
    one, other = learner(ALL, minibatches=2), learner(name="grpo", minibatches=2)
    start = weights(one)
    for _ in range(3):
        found = one.update()
        other.update()
    assert torch.equal(weights(one), weights(other))
    assert not torch.equal(weights(one), start)
    assert (float(found["rows_kept"]), float(found["tokens_kept"])) == (1.0, 1.0)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_the_tokens_are_those_of_the_largest_products(share):
    made = learner(ALL | {"tokens_first": share}, micro_batch=3)
    batch = batch_of(made)
    kept, metrics = made.companion.chosen(batch)
    entropy = torch.zeros_like(batch.rollout_log_probs)
    for rows, scores in made.scored(batch, entropy=True):
        entropy[rows] = scores.entropy
    keys = batch.advantages.abs()[:, None] * entropy
    tokens = int(batch.mask.sum())
    count = -(-round(share * 10) * tokens // 10)
    assert int(kept.mask.sum()) == count
    assert not (kept.mask & ~batch.mask).any()
    assert keys[kept.mask].min() >= keys[batch.mask & ~kept.mask].max()
    assert float(metrics["tokens_kept"]) == pytest.approx(count / tokens)
    assert torch.equal(kept.advantages, batch.advantages)


def test_tokens_without_an_advantage_come_last():
    made = learner(ALL | {"tokens_first": 0.3})
    batch = batch_of(made)
    batch = batch.replace(advantages=batch.advantages.where(torch.arange(24) % 2 == 0, 0.0))
    kept = made.companion.chosen(batch)[0].mask
    assert kept.any()
    assert not kept[1::2].any()


def test_rows_from_the_whole_batch_or_from_each_group():
    across, within = (learner(ALL | {"rows_first": 0.5, "across": a}) for a in (True, False))
    batch = batch_of(across)
    scaled = batch.replace(advantages=batch.advantages * (1.0 + 9.0 * (batch.group_ids == 0)))
    kept, metrics = across.companion.chosen(scaled)
    assert float(metrics["rows_kept"]) == 0.5
    assert (kept.group_ids == 0).sum() == 6
    assert kept.advantages.var() > scaled.advantages.var()
    kept = within.companion.chosen(scaled)[0]
    assert kept.group_ids.unique(return_counts=True)[1].tolist() == [3, 3, 3, 3]
    for i in range(4):
        whole = scaled.advantages[scaled.group_ids == i]
        assert kept.advantages[kept.group_ids == i].var(correction=0) >= whole.var(correction=0)


def test_advantages_are_those_of_whole_groups():
    made = learner(ALL | {"rows_first": 0.25})
    batch = made._prepared(made._collect()[0])
    made.companion.learner.streams["method"].manual_seed(0)
    kept = made.companion.chosen(batch)[0]
    grpo = load_method("grpo")
    base = grpo.estimator(grpo.config(), 8).advantages(batch)
    index = [int(i) for i in range(24) if any(torch.equal(batch.tokens[i], t) for t in kept.tokens)]
    assert set(kept.advantages.tolist()) <= set(base[index].tolist())
    assert len(kept.advantages) == 6
    if Groups(kept.group_ids).size.max() > 1:
        assert not torch.allclose(kept.advantages, made.estimator.advantages(kept.replace(advantages=None)))


def test_ties_are_broken_at_random_and_a_stream_repeats_them():
    made = learner(ALL | {"rows_first": 0.5})
    batch = batch_of(made).replace(advantages=torch.ones(24).double())
    made.streams["method"].manual_seed(1)
    first, second = (made.companion.chosen(batch)[0].tokens for _ in range(2))
    assert not torch.equal(first, second)
    made.streams["method"].manual_seed(1)
    assert torch.equal(made.companion.chosen(batch)[0].tokens, first)


def test_the_schedule_runs_from_first_to_last():
    made = learner({"rows_first": 0.25, "rows_last": 0.75, "tokens_first": 0.2, "tokens_last": 1.0})
    rows, tokens = [], []
    for _ in range(6):
        batch = batch_of(made)
        kept, metrics = made.companion.chosen(batch)
        rows.append(float(metrics["rows_kept"]))
        tokens.append((int(kept.mask.sum()), int(kept.limits.sum())))  # t2: as many as allowed
        made.steps += 1
    assert rows == pytest.approx([0.25, 9 / 24, 0.5, 15 / 24, 0.75, 0.75])
    assert rows == sorted(rows)
    assert [n for n, _ in tokens] == [
        -(-k * of // 5) for k, (_, of) in zip((1, 2, 3, 4, 5, 5), tokens, strict=True)
    ]


def test_its_gradients_are_larger_than_those_of_random_rows():
    """A fixed policy, 50 batches, a quarter of the rows."""
    made = learner(ALL | {"rows_first": 0.25}, task="t3", model="tiny:table", prompts=4, group=8)
    ratios = []

    def norm(batch):
        made.policy.zero_grad()
        log_probs = made._score(batch, made.policy).log_probs
        made.estimator.loss(log_probs, batch.replace(old_log_probs=log_probs.detach())).backward()
        return float(made.policy.logits.grad.norm())

    for i in range(50):
        batch = batch_of(made, seed=None)
        random = torch.randperm(32, generator=torch.Generator().manual_seed(i))[:8]
        ratios.append(norm(made.companion.chosen(batch)[0]) / norm(batch.rows(random)))
    assert float(torch.tensor(ratios).median()) > 1.1


def test_shares_must_be_shares():
    with pytest.raises(ConfigError, match="tokens_last must be above 0 and at most 1, got 1.5"):
        METHOD.config(tokens_last=1.5)
    found = METHOD.facts(METHOD.config(), LLMOptions(minibatches=2))
    assert found == {
        "updates per step": "2 of about 64 responses at first, 256 at last; 10 % of their tokens, then 50 %"
    }
