"""Ratings that learn from pairs: which pairs, what a rating reads, that passes do not matter, and Retroformer's use."""

import copy

import pytest
import torch

from offrl.errors import ConfigError
from offrl.llm.learner import Learner
from offrl.llm.methods import load_method
from offrl.llm.models import load_model
from offrl.llm.options import LLMOptions
from offrl.llm.ratings import Rater, Rating, pair_accuracy, pair_loss, pairs
from offrl.llm.rollouts import demonstrated, rollouts
from offrl.llm.tasks import load_task
from offrl.llm.text import EOS, PAD

TASK = load_task("t1")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(seed=0, count=8, group=4, longest=3):
    """Responses of one to three digits; the better the higher the last of them."""
    g = generator(seed)
    prompts = TASK.prompts(count, g).repeat(group)
    digits = torch.randint(10, (count * group, longest), generator=g)
    lengths = torch.randint(1, longest + 1, (count * group, 1), generator=g)
    tokens = (TASK.zero + digits).where(torch.arange(longest) < lengths, PAD)
    earned = digits.gather(1, lengths - 1)[:, 0].float()
    ids = torch.arange(count).repeat_interleave(group)
    return rollouts(prompts, demonstrated(tokens), earned, ids, earned[:, None])


def policy():
    return load_model("tiny:dense", TASK, 0)


def test_pairs_are_of_one_group_and_unequal():
    better, worse = pairs(torch.tensor([1.0, 0.0, 1.0, 5.0, 5.0]), torch.tensor([7, 7, 7, 2, 2]))
    assert sorted(zip(better.tolist(), worse.tolist(), strict=True)) == [(0, 1), (2, 1)]


def test_loss_and_accuracy_of_pairs():
    ratings, better, worse = torch.tensor([2.0, 0.0, 1.0]), torch.tensor([0, 1, 1]), torch.tensor([1, 0, 2])
    expected = torch.tensor((0.126928 + 2.126928 + 1.313262) / 3)  # of gaps 2, -2 and -1
    torch.testing.assert_close(pair_loss(ratings, better, worse), expected)
    assert float(pair_accuracy(ratings, better, worse)) == pytest.approx(1 / 3)
    assert float(pair_accuracy(torch.zeros(3), better, worse)) == 0.5
    assert float(pair_accuracy(ratings, better[:0], worse[:0])) == 0.5


@torch.no_grad()
def test_a_rating_is_of_the_prompt_and_of_what_was_chosen():
    made, found = Rater(policy()), batch()
    torch.nn.init.normal_(made.value.weight)
    rated = made(found)
    longer = torch.nn.functional.pad(found.tokens, (0, 2), value=EOS)
    mask = torch.nn.functional.pad(found.mask, (0, 2))
    torch.testing.assert_close(made(found.replace(tokens=longer, mask=mask)), rated, atol=1e-5, rtol=0)
    last = torch.arange(len(found.mask)), found.mask.sum(dim=1) - 1
    other = found.tokens.clone()
    other[last] = TASK.zero + (other[last] - TASK.zero + 1) % 10
    assert float((made(found.replace(tokens=other)) - rated).abs().min()) > 1e-4
    asked = torch.cat([found.prompt_tokens[:16], found.prompt_tokens[16:].roll(4, 0)])
    elsewhere = made(found.replace(prompt_tokens=asked))
    torch.testing.assert_close(elsewhere[:16], rated[:16], atol=1e-5, rtol=0)
    assert float((elsewhere - rated)[16:].abs().max()) > 1e-3


def test_a_step_is_the_same_in_passes_of_any_size():
    one, other = (Rating(policy().double(), 1e-2, 2, micro) for micro in (0, 5))
    found = batch()
    assert [float(x) for x in one.learn(found)] == pytest.approx([float(x) for x in other.learn(found)])
    for a, b in zip(one.parameters, other.parameters, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=0)
    assert not torch.equal(one.model.value.weight, torch.zeros(1, 64).double())


def test_separable_ratings_are_learnt():
    made = Rating(policy(), 3e-3, 4, 0)
    before = float(made.learn(batch(1, 32))[0])
    for seed in range(2, 22):
        made.learn(batch(seed, 32))
    fresh = batch(99, 64)
    better, worse = pairs(fresh.rewards, fresh.group_ids)
    assert before == 0.5
    assert float(pair_accuracy(made.rated(fresh), better, worse)) > 0.9


def test_no_pair_teaches_nothing():
    made, found = Rating(policy(), 1e-2, 2, 0), batch()
    before = copy.deepcopy(made.state_dict())
    assert [float(x) for x in made.learn(found.replace(rewards=torch.ones(32)))] == [0.5, 0.0]
    assert all(torch.equal(x, made.state_dict()["model"][name]) for name, x in before["model"].items())


METHOD = load_method("retroformer")


def learner(**settings):
    options, task = LLMOptions(task="t2", prompts=8, group=4, device="cpu", lr=1e-2), load_task("t2")
    return Learner(METHOD, METHOD.config(**settings), task, load_model("tiny:dense", task, 0), options)


def test_retroformer_learns_from_ratings_where_they_are_asked_for():
    made = learner(learn_from="ratings")
    raters = made.companion.rating
    found, _ = made._collect()
    prepared = made._prepared(found)
    rated = raters.rated(found)
    assert not torch.equal(rated, torch.zeros(32))
    torch.testing.assert_close(prepared.rewards, rated)
    torch.testing.assert_close(prepared.advantages, rated - rated.view(8, 4).mean(dim=1).repeat_interleave(4))
    assert {"rating_accuracy", "rating_loss"} <= made.update().keys()
    assert set(made.update()) == set(made.metrics)
    plain = learner()
    assert plain.companion.rating is None
    assert torch.equal(plain._prepared(found).rewards, found.rewards)
    assert "rating_loss" not in plain.update()


def test_ratings_go_on_exactly():
    made, other = learner(learn_from="ratings"), learner(learn_from="ratings")
    for _ in range(2):
        made.update()
    other.load_state_dict(copy.deepcopy(made.state_dict()))
    first, second = made.update(), other.update()
    assert all(float(first[name]) == float(second[name]) for name in first)
    assert torch.equal(made.companion.rating.model.value.weight, other.companion.rating.model.value.weight)


def test_what_has_no_effect_is_refused():
    with pytest.raises(ConfigError, match="no effect without learn_from ratings"):
        METHOD.config(rating_updates=2)
    with pytest.raises(ConfigError, match="rating_lr must be positive"):
        METHOD.config(learn_from="ratings", rating_lr=0.0)
    options = LLMOptions(task="t6", context="supo", context_window=32)
    assert "leave --context out" in METHOD.unfit(METHOD.config(learn_from="ratings"), options, None)
    table = LLMOptions(task="t3", model="tiny:table")
    assert "need a transformer" in METHOD.unfit(METHOD.config(learn_from="ratings"), table, None)
    assert METHOD.unfit(METHOD.config(), table, None) is None
    assert METHOD.unfit(METHOD.config(), options, None) is None
