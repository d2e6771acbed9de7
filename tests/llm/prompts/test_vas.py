"""Sampling by variance: frequencies, scores, diversity against a plain reimplementation, and fewer dead groups."""

from collections import Counter
from math import exp, log

import numpy as np
import pytest
import torch

from offrl.llm.prompts.pool import Walk
from offrl.llm.prompts.vas import VAS, diversity, outcome_variance
from offrl.llm.text import Responses


def made(size, share, weights=None, seed=0):
    sampler = VAS(size, share, 0.2, torch.Generator().manual_seed(seed))
    if weights is not None:
        sampler.weights = torch.tensor(weights, dtype=torch.float64)
    return sampler


def every(size):
    return torch.ones(size, dtype=torch.bool)


def test_without_a_weighted_share_it_is_the_walk():
    stream = torch.Generator().manual_seed(0)
    sampler, walk = made(9, 0.0), Walk(9, stream)
    drawn = [sampler.draw(4, every(9)) for _ in range(6)]
    assert torch.equal(torch.cat(drawn), torch.cat([walk.draw(4, every(9)) for _ in range(6)]))


def test_frequencies_of_weighted_draws_are_the_weights():
    """Chi-square with 4 degrees of freedom; 0.999 quantile 18.5."""
    weights = [0.0, 1.0, 0.5, 0.25, 0.25, 2.0]
    drawn = made(6, 1.0, weights).draw(100_000, every(6))
    counts = drawn.bincount(minlength=6).double()
    want = 100_000 * torch.tensor(weights).double() / sum(weights)
    assert counts[0] == 0
    assert float(((counts - want).square() / want)[1:].sum()) < 18.5


def test_every_batch_has_the_floor_of_its_share_weighted_and_the_rest_covers_the_pool():
    sampler = made(20, 0.5, [1.0] + [0.0] * 19)
    walked = []
    for _ in range(20):
        drawn = sampler.draw(7, every(20))
        assert drawn[:3].tolist() == [0, 0, 0]
        walked.append(drawn[3:])
    for part in torch.cat(walked).split(20):
        assert sorted(part.tolist()) == list(range(20))


def test_variance_of_outcomes():
    success = torch.tensor([[1, 0], [1, 1], [0, 0]]).double()
    assert outcome_variance(success).tolist() == [0.25, 0.0, 0.0]


def test_its_bias_is_that_of_a_plug_in_estimate():
    """E[p^ (1 - p^)] = p (1 - p) (1 - 1/N)."""
    g = torch.Generator().manual_seed(0)
    for p, n in ((0.3, 4), (0.8, 8)):
        found = outcome_variance((torch.rand(100_000, n, generator=g) < p).double())
        bound = 5 * float(found.std()) / 100_000**0.5
        assert float(found.mean()) == pytest.approx(p * (1 - p) * (1 - 1 / n), abs=bound)


def test_equal_scores_draw_uniformly():
    sampler = made(5, 1.0)
    responses = Responses(torch.ones(10, 2).long(), torch.ones(10, 2).bool(), torch.zeros(10, 2))
    sampler.refresh(torch.zeros(10, dtype=torch.bool), responses)
    assert sampler.weights.tolist() == [0.0] * 5
    counts = sampler.draw(5000, every(5)).bincount(minlength=5)
    assert counts.min() > 850


def test_weights_are_scores_between_the_least_and_the_most():
    """Two responses each: (right, wrong), (right, right) with other words, (wrong, wrong) with the same words."""
    sampler = made(3, 0.5)
    tokens = torch.tensor([[4, 5], [4, 5], [4, 5], [6, 7], [4, 5], [4, 5]])
    responses = Responses(tokens, torch.ones(6, 2).bool(), torch.zeros(6, 2))
    found = sampler.refresh(torch.tensor([1, 0, 1, 1, 0, 0]).bool(), responses)
    diverse = float(diversity(tokens[2:4][None], torch.ones(1, 2, 2).bool()))
    score = [0.8 * 0.25, 0.2 * diverse, 0.0]
    assert sampler.weights.tolist() == pytest.approx([s / max(score) for s in score], abs=1e-6)
    assert float(found["vas_variance"]) == pytest.approx(0.8 * 0.25 / 3)
    assert float(found["vas_diversity"]) == pytest.approx(0.2 * diverse / 3)
    assert float(found["vas_zero"]) == pytest.approx(1 / 3)
    other = made(2, 0.5)
    half = Responses(tokens[:4], torch.ones(4, 2).bool(), torch.zeros(4, 2))
    other.refresh(torch.tensor([1, 0, 1, 0]).bool(), half)
    assert other.weights.tolist() == pytest.approx([0.0, 1.0], abs=1e-6)  # the least is 0, whatever its score


def test_rows_that_are_not_allowed_never_come():
    sampler, some = made(4, 0.5, [9.0, 1.0, 1.0, 1.0]), torch.tensor([False, True, True, False])
    assert set(sampler.draw(40, some).tolist()) == {1, 2}
    sampler.weights = torch.tensor([1.0, 0, 0, 0]).double()
    assert set(sampler.draw(40, some).tolist()) == {1, 2}


def test_a_restored_sampler_goes_on_with_the_same_draws():
    one = made(8, 0.5, list(range(8)))
    one.draw(5, every(8))
    other = made(8, 0.5, seed=3)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.draw(30, every(8)), other.draw(30, every(8)))


def bleu(sentence, others):
    """As nltk's sentence_bleu: clipped counts, smoothing of empty orders unless no word is shared, nearest length."""
    logs, orders = 0.0, 0
    for n in (1, 2, 3):
        if len(sentence) < n:
            continue
        grams = Counter(tuple(sentence[i : i + n]) for i in range(len(sentence) - n + 1))
        most = Counter()
        for other in others:
            most |= Counter(tuple(other[i : i + n]) for i in range(len(other) - n + 1))
        matches = sum(min(count, most[gram]) for gram, count in grams.items())
        if n == 1 and matches == 0:
            return 0.0
        matches = matches or 0.1
        logs, orders = logs + log(matches / sum(grams.values())), orders + 1
    nearest = min((abs(len(o) - len(sentence)), len(o)) for o in others)[1]
    return exp(min(0.0, 1 - nearest / len(sentence))) * exp(logs / orders)


def test_diversity_is_one_less_self_bleu():
    g = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, 6, (6, 4, 7), generator=g)
    mask = torch.arange(7) < torch.randint(1, 8, (6, 4, 1), generator=g)
    want = []
    for rows, kept in zip(tokens, mask, strict=True):
        texts = [row[k].tolist() for row, k in zip(rows, kept, strict=True)]
        want.append(1 - np.mean([bleu(t, texts[:i] + texts[i + 1 :]) for i, t in enumerate(texts)]))
    assert diversity(tokens, mask).tolist() == pytest.approx(want, abs=1e-9)


def test_equal_responses_have_no_diversity_and_disjoint_ones_all_of_it():
    mask = torch.ones(1, 4, 9, dtype=torch.bool)
    same = torch.arange(9).expand(1, 4, 9)
    assert float(diversity(same, mask)) == pytest.approx(0.0, abs=1e-12)
    for length in (1, 2, 9):
        assert float(diversity(torch.arange(36).view(1, 4, 9)[:, :, :length], mask[:, :, :length])) == 1.0
    shared = torch.tensor(
        [[[1, 2, 3], [1, 4, 5]]]
    )  # one word of three, no longer gram: (1/3 x 0.1/2 x 0.1)^(1/3)
    assert float(diversity(shared, mask[:, :2, :3])) == pytest.approx(1 - (0.1 * 0.05 / 3) ** (1 / 3))
    one = torch.ones(1, 4, 1, dtype=torch.int64)
    assert float(diversity(one, mask[:, :, :1])) == pytest.approx(0.0, abs=1e-12)


def test_padding_does_not_count():
    tokens = torch.tensor([[[4, 5, 6, 0], [4, 6, 0, 0], [7, 5, 6, 5]]])
    mask = tokens > 0
    other = torch.where(mask, tokens, torch.tensor([[[9, 8, 7, 6], [1, 2, 3, 4], [5, 5, 5, 5]]]))
    wide = torch.nn.functional.pad(tokens, (0, 3)), torch.nn.functional.pad(mask, (0, 3))
    want = float(diversity(tokens, mask))
    assert float(diversity(other, mask)) == want
    assert float(diversity(*wide)) == pytest.approx(want, abs=1e-12)
    place = torch.tensor([0, 2, 3, 5])  # other tokens between the chosen ones
    apart = torch.full((1, 3, 6), 8).index_copy(2, place, tokens)
    holes = torch.zeros(1, 3, 6, dtype=torch.bool).index_copy(2, place, mask)
    assert float(diversity(apart, holes)) == pytest.approx(want, abs=1e-12)


def test_half_a_batch_by_variance_halves_the_groups_of_equal_rewards():
    """Rates 0, uniform on (0, 1), 1 in equal numbers, G = 8; expected share sum_x q(x) [p^G + (1 - p)^G].

    Uniformly (1 + 1 + 2/9) / 3 = 0.741; by weights 6 p (1 - p) it is 12 B(10, 2) = 0.109; half and half 0.574 of the former.
    """
    middle = (torch.arange(500) + 0.5).double() / 500
    p = torch.cat([torch.zeros(500).double(), middle, torch.ones(500).double()])
    dead = p**8 + (1 - p) ** 8
    score = p * (1 - p)
    weights = (score - score.min()) / (score.max() - score.min())
    half = 0.5 * float(dead.mean()) + 0.5 * float((weights / weights.sum() * dead).sum())
    assert float(dead.mean()) == pytest.approx((2 + 2 / 9) / 3, abs=1e-3)
    assert half == pytest.approx(0.5 * (2 + 2 / 9) / 3 + 0.5 * 12 / 110, abs=1e-3)
    sampler = made(1500, 0.5, weights.tolist())
    drawn = torch.cat([sampler.draw(1000, every(1500)) for _ in range(30)])
    assert float(dead[drawn].mean()) == pytest.approx(half, abs=0.01)
