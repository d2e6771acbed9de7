"""CoPO: entropies of answers, both advantages, their blend, and what the global one is in expectation."""

import itertools
import math

import pytest
import torch

from offrl.errors import ConfigError
from offrl.estimators.groups import Groups
from offrl.llm.method import TextRollouts
from offrl.llm.methods import load_method
from offrl.llm.methods.copo import answer_entropy

METHOD = load_method("copo")
IDS = torch.tensor([4, 9, 4, 9, 4, 9, 2, 2, 2, 6, 6, 6])
REWARDS = torch.tensor([1, 1, 0, 1, 0, 1, 0, 0, 0, 1, 1, 0]).double()  # mixed, all right, all wrong, mixed
ANSWERS = torch.tensor([5, 7, 1, 7, -1, 7, -1, 3, -1, 5, 5, 8])


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def estimator(**settings):
    return METHOD.estimator(METHOD.config(**settings), 4)


def ragged(spread=0.4):
    old = -normal(12, 4).abs()
    lengths = torch.tensor([4, 1, 2, 3, 4, 2, 1, 3, 4, 2, 4, 1])
    batch = TextRollouts(
        mask=torch.arange(4) < lengths[:, None], old_log_probs=old, rollout_log_probs=old, rewards=REWARDS,
        group_ids=IDS, answer_ids=ANSWERS, demo=torch.zeros(12).bool(), prompt_tokens=IDS[:, None],
        prompt_mask=IDS[:, None] > 0, tokens=torch.ones(12, 4).long(), limits=torch.full((12,), 4), prompt_ids=IDS, components=REWARDS[:, None],
    )  # fmt: skip
    return (old + spread * normal(12, 4, seed=1)).requires_grad_(), batch


def gradient(made, x, batch):
    return torch.autograd.grad(made.loss(x, made.prepare(batch)), x)[0]


def entropies():
    """By hand, in the order of the ids 2, 4, 6, 9."""
    two_of_three = -(2 / 3) * math.log2(2 / 3) - (1 / 3) * math.log2(1 / 3)
    return [two_of_three, math.log2(3), two_of_three, 0.0]


def test_entropy_of_answers_in_bits():
    found = answer_entropy(Groups(IDS), ANSWERS)
    assert found.tolist() == pytest.approx(entropies())
    assert float(found[3]) == 0.0


def by_hand(share, *, consistency=False):
    """w A and (1 - w) B; share: (row, entropy, local) -> w."""
    rows = {i: [k for k in range(12) if IDS[k] == i] for i in (2, 4, 6, 9)}
    entropy = dict(zip((2, 4, 6, 9), entropies(), strict=True))
    means = {i: sum(float(REWARDS[k]) for k in rows[i]) / 3 for i in rows}
    values = {
        i: means[i] * (1 - (2 / 3) / math.log2(3) * entropy[i]) if consistency else means[i] for i in rows
    }
    center = sum(values.values()) / 4
    std = math.sqrt(sum((v - center) ** 2 for v in values.values()) / 3)
    found = []
    for k in range(12):
        i = int(IDS[k])
        sd = math.sqrt(sum((float(REWARDS[j]) - means[i]) ** 2 for j in rows[i]) / 2)
        local = (float(REWARDS[k]) - means[i]) / (sd + 1e-6)
        w = share(k, entropy[i], local)
        found.append([w * local, (1 - w) * (values[i] - center) / (std + 1e-6)])
    return torch.tensor(found, dtype=torch.float64)[:, None]


def soft(entropy):
    return 1 / (1 + math.exp(-5 * (entropy - 1)))


SHARES = {
    "only-soft": lambda k, h, a: soft(h),
    "soft with zero": lambda k, h, a: soft(h) * (REWARDS[k] != 0),
    "soft-with-zero": lambda k, h, a: soft(h) * (REWARDS[k] != 0),
    "only-zero": lambda k, h, a: float(REWARDS[k] != 0),
    "soft-with-forced": lambda k, h, a: soft(h) * (a != 0),
    "only-forced": lambda k, h, a: float(a != 0),
    "only-global": lambda k, h, a: 0.0,
}


@pytest.mark.parametrize("blend", SHARES)
@pytest.mark.parametrize("consistency", [False, True])
def test_advantages_by_hand(blend, consistency):
    found = estimator(blend=blend, consistency=consistency).advantages(ragged()[1])
    torch.testing.assert_close(found, by_hand(SHARES[blend], consistency=consistency), atol=1e-9, rtol=1e-6)


def test_without_the_global_term_it_is_grpo():
    x, batch = ragged()
    grpo = load_method("grpo")
    other = grpo.estimator(grpo.config(), 4)
    assert torch.equal(gradient(estimator(blend="no-global"), x, batch), gradient(other, x, batch))


def test_alone_the_global_one_is_the_same_within_a_group():
    found = estimator(blend="only-global").advantages(ragged()[1])[:, 0]
    assert (found[:, 0] == 0).all()
    for i in IDS.unique():
        assert len(found[i == IDS, 1].unique()) == 1


def test_uniform_groups_learn_from_the_others():
    x, batch = ragged(spread=0.0)
    found = gradient(estimator(), x, batch).sum(1)
    assert (found[IDS == 9] < 0).all()  # all right: raised
    assert (found[IDS == 2] > 0).all()
    local = estimator(blend="no-global")
    assert (gradient(local, x, batch)[(IDS == 9) | (IDS == 2)] == 0).all()


def test_consistency_leaves_a_gth_at_full_entropy():
    batch = ragged()[1].replace(rewards=torch.where(IDS == 4, 1.0, 0.0).double())
    batch = batch.replace(answer_ids=torch.arange(12))
    means = torch.tensor([0.0, 1 / 3, 0.0, 0.0])
    want = (means - means.mean()) / means.std()
    found = estimator(blend="only-global", consistency=True).advantages(batch)
    torch.testing.assert_close(found[[6, 0, 9, 1], 0, 1].float(), want, atol=1e-4, rtol=1e-4)
    assert float(means.std()) != 0.0
    mixed = batch.replace(rewards=REWARDS)
    plain, less = (estimator(blend="only-global", consistency=c).advantages(mixed) for c in (False, True))
    torch.testing.assert_close(plain, less, atol=1e-5, rtol=1e-4)  # all shrink alike: normalized away


def test_the_sigmoids_limits():
    batch = ragged()[1]
    halves = estimator(blend="only-soft", steepness=0.0).advantages(batch)
    one, other = (estimator(blend=b).advantages(batch) for b in ("no-global", "only-global"))
    torch.testing.assert_close(halves[:, 0], 0.5 * torch.stack([one, other[:, 0, 1]], dim=1))
    hard = estimator(blend="only-soft", steepness=1e6, bits=1.2).advantages(batch)[:, 0]
    beyond = IDS == 4  # log2 3 bits
    torch.testing.assert_close(hard[beyond], torch.stack([one, 0 * one], dim=1)[beyond])
    torch.testing.assert_close(hard[~beyond], other[~beyond, 0])


def test_at_ratio_one_it_is_one_pass_with_blended_advantages():
    x, batch = ragged(spread=0.0)
    made = estimator()
    blended = made.advantages(batch)[:, 0].sum(1)
    found = gradient(made, x, batch)
    (want,) = torch.autograd.grad(made.loss(x, batch.replace(advantages=blended)), x)
    torch.testing.assert_close(found, want, atol=1e-12, rtol=1e-9)


def test_each_term_is_clipped_by_its_own_sign():
    x, batch = ragged(spread=1.2)
    found = gradient(estimator(clip_low=0.1, clip_high=0.3), x, batch)
    parts = by_hand(SHARES["soft-with-zero"])[:, 0]
    r, total = (x - batch.old_log_probs).exp(), 0.0
    for a in parts.unbind(1):
        a = a[:, None]
        inner = torch.minimum(r * a, r.clamp(0.9, 1.3) * a)
        inner = torch.where(a < 0, torch.maximum(inner, 3.0 * a), inner)
        total = total - (inner * batch.mask / batch.mask.sum(1, keepdim=True)).sum() / 12
    (want,) = torch.autograd.grad(total, x)
    torch.testing.assert_close(found, want, atol=1e-7, rtol=1e-6)
    assert (r[batch.mask] > 3).any()


def test_in_expectation_the_global_term_is_the_gradient_over_the_group_size():
    """Three arms, groups of three: all 27 as the prompts of one batch, weighed by their probabilities."""
    logits = normal(3, seed=2).requires_grad_()
    arms, p = torch.tensor([0.0, 1.0, 0.4]).double(), logits.softmax(0)
    draws = torch.tensor(list(itertools.product(range(3), repeat=3)))
    rewards, ids = arms[draws.flatten()], torch.arange(27).repeat_interleave(3)
    batch = (
        ragged()[1]
        .rows(torch.zeros(81).long())
        .replace(rewards=rewards, group_ids=ids, answer_ids=draws.flatten())
    )
    across = estimator(blend="only-global").advantages(batch)[:, 0, 1].view(27, 3)
    chance = p.detach()[draws].prod(1)
    std = arms[draws].mean(1).std() + 1e-6
    score = (p.log()[draws] * across).mean(1)
    (found,) = torch.autograd.grad((chance * score).sum() * std, logits)
    (want,) = torch.autograd.grad((logits.softmax(0) * arms).sum(), logits)
    torch.testing.assert_close(found, want / 3, atol=1e-9, rtol=1e-6)


def test_one_prompt_and_unknown_blends():
    _, batch = ragged()
    alone = estimator().advantages(batch.rows(IDS == 4))
    assert torch.isfinite(alone).all()
    assert (alone[:, 0, 1] == 0).all()
    with pytest.raises(ConfigError, match="unknown blend 'soft'"):
        METHOD.config(blend="soft")
    for given in ({"blend": "only-zero", "bits": 2.0}, {"blend": "no-global", "consistency": True}):
        with pytest.raises(ConfigError, match="has no effect with blend"):
            METHOD.config(**given)
