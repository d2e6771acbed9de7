"""f-DPG in the engine: normalizers by prompt, the baseline's order, off-policy weights, the exact target of t3."""

import math

import pytest
import torch

from offrl.errors import ConfigError
from offrl.estimators.divergences import pseudo_rewards
from offrl.estimators.groups import Groups
from offrl.llm.methods import load_method
from offrl.llm.options import LLMOptions
from offrl.llm.session import build

METHOD = load_method("fdpg")


def learner(settings=None, **options):
    given = {"task": "t3", "model": "tiny:table", "prompts": 8, "group": 16, "lr": 2e-2, "max_grad_norm": 1e9}
    made = build("fdpg", METHOD.config(**(settings or {})), LLMOptions(**given | options))
    made.policy.double()
    made.reference.double()
    return made


def exact_log_z(task):
    """Z of each prompt, by enumeration: the shift times the mean of the features' exponentials under the base."""
    contains, palindrome = task.features(task.strings)
    inner = torch.logsumexp(task.base_log_probs() + 2.0 * contains + 3.0 * palindrome, dim=0)
    return inner + task.shifts.double()


def test_normalizers_approach_those_of_an_enumeration():
    """The base's own draws, prompt by prompt, within three standard errors."""
    made = learner(group=256)
    batches = [made._prepared(made._collect()[0]) for _ in range(3)]
    want = exact_log_z(made.task)
    weights = {}
    for batch in batches:
        log_w = made.companion.log_target(batch) - batch.rollout_log_probs.sum(1)
        for prompt, value in zip(batch.prompt_ids.tolist(), log_w.tolist(), strict=True):
            weights.setdefault(prompt, []).append(math.exp(value - float(want[prompt])))
    assert set(made.companion.sums) == set(weights)
    rows = [made.companion.sums[i] for i in batch.prompt_ids.tolist()]
    means = torch.tensor([total - math.log(number) for total, number in rows], dtype=torch.float64)
    torch.testing.assert_close(made.companion.log_z(batch).double(), means)
    for prompt, (total, number) in made.companion.sums.items():
        values = torch.tensor(weights[prompt]).double()
        assert number == len(values)
        relative = math.exp(total - math.log(number) - float(want[prompt]))
        assert relative == pytest.approx(float(values.mean()), rel=1e-6)
        assert abs(relative - 1.0) < 3 * float(values.std()) / math.sqrt(number)


def test_an_update_by_hand():
    """Advantages of the first two updates of a batch: -f' less the baseline of before, then of what was seen."""
    made = learner({"divergence": "kl", "window": 200}, reuse=2, delay=1)
    made.update()  # from here on the sampler lags behind
    before = made.companion.baseline
    batch = made._prepared(made._collect()[0])
    log_q = batch.rollout_log_probs.sum(1)
    log_a = made._scores(batch, made.reference)[0].sum(1)
    log_p = log_a + batch.rewards - made.companion.log_z(batch)
    log_pi = made._scores(batch, made.policy)[0].sum(1)
    pseudo = (log_p - log_pi).exp()
    held, _ = made.companion.masked(batch)
    torch.testing.assert_close(held.advantages, pseudo - before)
    assert made.companion.seen == 200
    after = before + 128 / 200 * (float(pseudo.mean()) - before)
    assert made.companion.baseline == pytest.approx(after)
    torch.testing.assert_close(made.companion.masked(batch)[0].advantages, pseudo - after)
    leaf = made._scores(batch, made.policy)[0].requires_grad_()
    (found,) = torch.autograd.grad(made.estimator.loss(leaf, held), leaf)
    weights = (log_pi - log_q).exp() * (pseudo - before)
    assert (log_pi - log_q).abs().max() > 0.01
    torch.testing.assert_close(found, (-weights / 128)[:, None].expand(128, 4))


def test_the_first_baseline_is_zero_then_the_mean():
    made = learner({"divergence": "reverse_kl"})
    batch = made._prepared(made._collect()[0])
    held, _ = made.companion.masked(batch)
    log_pi = made._scores(batch, made.policy)[0].sum(1)
    log_p = made.companion.log_target(batch) - made.companion.log_z(batch)
    torch.testing.assert_close(held.advantages, pseudo_rewards(log_pi, log_p, "reverse_kl"))
    assert made.companion.baseline == pytest.approx(float(held.advantages.mean()))


def test_the_pointwise_target_and_prompts_without_any_reward():
    made = learner({"target": "pointwise"}, task="t1", model="tiny:dense", group=8, prompts=16)
    batch = made._collect()[0]
    rewards = (torch.arange(128) % 2).double() * (batch.group_ids < 8)
    batch = made._prepared(batch.replace(rewards=rewards))
    log_a = made._scores(batch, made.reference)[0].sum(1)
    found = made.companion.log_target(batch)
    torch.testing.assert_close(found, torch.where(rewards > 0, log_a, -torch.inf))
    held, _ = made.companion.masked(batch)
    assert torch.isfinite(held.advantages).all()
    dead = ~torch.isfinite(made.companion.log_z(batch))
    assert dead.any()
    assert (held.advantages[dead] == 0).all()
    assert (held.advantages[~dead].abs() > 0).all()
    assert made.companion.baseline == pytest.approx(float(held.advantages[~dead].mean()))
    assert made.companion.seen == int((~dead).sum())
    with pytest.raises(ConfigError, match="needs rewards >= 0"):
        made.companion.log_target(batch.replace(rewards=rewards - 1))


def test_a_temperature_of_rewards():
    made = learner({"beta": 2.0})
    batch = made._prepared(made._collect()[0])
    log_a = batch.ref_log_probs.sum(1)
    torch.testing.assert_close(made.companion.log_target(batch), log_a + batch.rewards / 2.0)


def test_the_policy_approaches_the_target():
    made = learner(group=32)
    before = made.task.measures(made.policy)["tv_to_target"]
    for _ in range(100):
        metrics = made.update()
    after = made.task.measures(made.policy)["tv_to_target"]
    assert before > 0.3
    assert after < 0.08
    assert float(metrics["tv_to_target_estimate"]) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("divergence", ["kl", "reverse_kl", "tv", "js"])
def test_in_500_steps_it_is_there(divergence):
    made = learner({"divergence": divergence}, group=32)
    for _ in range(500):
        made.update()
    assert made.task.measures(made.policy)["tv_to_target"] < 0.02


def test_resume_is_exact():
    whole, cut = learner(), learner()
    for _ in range(4):
        whole.update()
    for _ in range(2):
        cut.update()
    again = learner(seed=1)
    again.load_state_dict(cut.state_dict())
    for _ in range(2):
        again.update()
    assert torch.equal(whole.policy.logits, again.policy.logits)
    assert whole.companion.state_dict() == again.companion.state_dict()
    assert whole.companion.seen == 512


def test_a_prompt_of_many_responses_weighs_no_more():
    """8 and 24 responses a prompt: each prompt's advantages are summed up over 16."""
    made = learner(pool=8, allocator="knapsack", budget_low=8, budget_high=24, minibatches=2)
    made.prompting._budget = lambda rates: torch.tensor([8, 24] * 4)
    batch = made._prepared(made._collect()[0])
    sizes, rows = Groups(batch.group_ids), made._minibatches(batch)[0]
    held, _ = made.companion.masked(batch)
    log_p = made.companion.log_target(batch) - made.companion.log_z(batch)
    pseudo = pseudo_rewards(batch.old_log_probs.sum(1), log_p, "js")
    torch.testing.assert_close(held.advantages, pseudo * 16.0 / sizes.rows(sizes.size))
    baseline = made.companion.baseline
    assert baseline == pytest.approx(float(pseudo.mean()))
    part, _ = made.companion.masked(made._minibatch(batch, rows))
    weight = len(rows) / 4 / sizes.rows(sizes.size)[rows]
    torch.testing.assert_close(part.advantages, (pseudo[rows] - baseline) * weight)


def test_impossible_settings():
    with pytest.raises(ConfigError, match="means over samples of one prompt: leave --scaffold out"):
        learner(task="t2", model="tiny:dense", scaffold="hints")
    with pytest.raises(ConfigError, match="beta belongs to the exponential target"):
        METHOD.config(target="pointwise", beta=0.5)
    with pytest.raises(ConfigError, match="beta and window must be positive"):
        METHOD.config(beta=0.0)


def test_wanted_means_are_reached_and_nothing_else_changes():
    """t3's first feature from 0.57 to 0.8: the target is the base with other odds for it, known exactly."""
    settings = {"target": "moments", "moments": ("contains=1.6",), "divergence": "js"}
    made = learner(settings, group=64)
    log_a, (contains, _) = made.task.base_log_probs(), made.task.features(made.task.strings)
    rate = float(log_a.exp()[contains].sum())
    exact = (math.log(0.8 / 0.2) - math.log(rate / (1 - rate))) / 2.0
    for _ in range(120):
        made.update()
    coefficients = made.companion.coefficients
    assert coefficients[1:].tolist() == [0.0, 0.0]
    assert abs(float(coefficients[0]) - exact) < 3 * 0.5 / math.sqrt(512 * rate * (1 - rate))
    log_p = (log_a + coefficients[0] * 2.0 * contains).log_softmax(0)
    found = evaluated(made)
    assert 0.5 * float((found.exp() - log_p.exp()).abs().sum()) < 0.06
    assert 0.5 * float((found.exp() - log_a.exp()).abs().sum()) > 0.15


def evaluated(made):
    """log pi of every string after the first prompt."""
    from offrl.llm.score import score

    prompts = made.task.prompts(1, torch.Generator()).repeat(len(made.task.strings))
    with torch.no_grad():
        return score(made.policy, prompts.tokens, prompts.mask, made.task.strings).log_probs.double().sum(1)


def test_coefficients_are_fitted_once_and_weigh_draws_of_another_policy():
    settings = {"target": "moments", "moments": ("palindrome=1.5", "contains=1.0")}
    made = learner(settings)
    batch = made._collect()[0]
    batch = batch.replace(ref_log_probs=batch.rollout_log_probs + 0.3 * batch.components[:, :1])
    made.companion.measured(batch)
    c = made.companion.coefficients
    weights = (4 * 0.3 * batch.components[:, 0].double() + batch.components.double() @ c).softmax(0)
    means = weights @ batch.components.double()
    torch.testing.assert_close(means[:2], torch.tensor([1.0, 1.5]).double(), atol=1e-3, rtol=0)
    made.companion.measured(made._prepared(made._collect()[0]))
    assert torch.equal(made.companion.coefficients, c)
    again = learner(settings)
    again.load_state_dict(made.state_dict())
    assert torch.equal(again.companion.coefficients, c)


def test_moments_that_cannot_be():
    with pytest.raises(ConfigError, match="--target moments and --moments NAME=MEAN belong together"):
        METHOD.config(target="moments")
    with pytest.raises(ConfigError, match="belong together"):
        METHOD.config(moments=("contains=1",))
    with pytest.raises(ConfigError, match="a moment is NAME=MEAN, got 'contains'"):
        METHOD.config(target="moments", moments=("contains",))
    with pytest.raises(ConfigError, match="beta belongs to the exponential target"):
        METHOD.config(target="moments", moments=("contains=1",), beta=2.0)
    with pytest.raises(ConfigError, match="t3 has no reward 'length', it has contains, palindrome, shift"):
        learner({"target": "moments", "moments": ("length=1",)})
    with pytest.raises(ConfigError, match="a mean of 2.5 for contains, of which 0 to 2 were drawn"):
        learner({"target": "moments", "moments": ("contains=2.5",)}).update()
