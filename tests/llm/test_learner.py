"""A step of training: global counts, staleness, the KL's places, which groups are learnt from."""

import types

import pytest
import torch

from offrl.errors import ConfigError
from offrl.estimators.groups import Groups
from offrl.llm.learner import Learner
from offrl.llm.method import Companion
from offrl.llm.methods import METHODS, load_method
from offrl.llm.models import load_model
from offrl.llm.options import LLMOptions
from offrl.llm.tasks import load_task
from offrl.llm.text import EOS, Responses

SINGLE_TURN = {"polychromic": {"states": 0, "n": 2}}
"""Settings of methods whose own are for episodes of several turns."""


def learner(name="grpo", settings=None, *, model="tiny:dense", double=True, **options):
    method = load_method(name)
    group = 1 if method.data == "demonstrations" else 4
    given = LLMOptions(**{"prompts": 4, "group": group, "model": model, "task": "t1", "lr": 1e-2, **options})
    task = load_task(given.task)
    policy = load_model(given.model, task, given.seed)
    policy = policy.double() if double else policy
    return Learner(
        method, method.config(**SINGLE_TURN.get(name, {}), **(settings or {})), task, policy, given
    )


class Favourite:
    """A reward that random weights earn often: the first token is an even digit."""

    def __init__(self, of):
        self.of = of

    def __getattr__(self, name):
        return getattr(self.of, name)

    def rewards(self, prompts, responses):
        first = responses.tokens[:, 0] - self.of.zero
        return {"even": ((first >= 0) & (first % 2 == 0)).double()}

    def success(self, prompts, responses):
        return self.rewards(prompts, responses)["even"] > 0


def easy(*args, **kwargs):
    made = learner(*args, **kwargs)
    made.task = Favourite(made.task)
    return made


def weights(made):
    return torch.cat([p.detach().flatten() for p in made.policy.parameters()])


@pytest.mark.parametrize("name", METHODS)
def test_micro_batches_change_nothing(name):
    """Two steps with two updates each: parameters and metrics do not depend on how a gradient is accumulated.

    Plain gradient steps, because Adam turns the rounding of a gradient near 0 into a whole step.
    """
    found = []
    for micro in (0, 4 if load_method(name).coupled else 2):
        group = {} if name == "sft" else {"group": 4}
        made = easy(name, {"kl": 0.1, "entropy": 0.05}, micro_batch=micro, minibatches=2, reuse=1, **group)
        made.optimizer = torch.optim.SGD(made.parameters, lr=0.1)
        metrics = [made.update() for _ in range(2)]
        found.append((weights(made), metrics))
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-7, rtol=1e-5)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
    assert not torch.equal(found[0][0], weights(learner(name)))


@pytest.mark.parametrize("name", METHODS)
def test_every_declared_metric_comes_and_is_finite(name):
    made = easy(name, {"kl": 0.1}, double=False)
    made.options.__dict__["minibatches"] = 2
    metrics = made.update()
    wanted = set(made.metrics) - ({"engine_gap"} if name == "sft" else set())
    assert wanted <= set(metrics) | {"kl"}
    assert set(metrics) <= set(made.metrics)
    assert all(torch.isfinite(value).all() for value in metrics.values())


def test_a_favoured_token_becomes_likelier():
    made = easy("grpo", double=False, prompts=16)
    rewards = [float(made.update()["reward"]) for _ in range(20)]
    assert rewards[0] < 0.6
    assert rewards[-1] > 0.9


def test_one_update_needs_no_second_pass_and_has_ratio_one():
    made = easy("grpo")
    metrics = made.update()
    assert float(metrics["log_ratio"]) == 0.0
    assert float(metrics["clip_fraction"]) == 0.0
    assert float(metrics["engine_gap"]) < 1e-9
    assert made.updates == 1


def test_several_updates_move_away_from_the_old_policy():
    made = easy("grpo", minibatches=2, reuse=3)
    metrics = made.update()
    assert made.updates == 6
    assert float(metrics["log_ratio"]) > 1e-3
    assert float(metrics["approx_kl"]) > 0
    assert (made.rollouts, made.tokens) == (16, int(made.rollouts * metrics["length"]))


@pytest.mark.parametrize("name", ["luffy", "hpt"])
@pytest.mark.parametrize("micro", [0, 1])
def test_bypassed_ratios_are_of_samples_alone(name, micro):
    """Demonstrations have no recorded log-probabilities: their differences are no drift, and no loss reads them."""
    settings = {"gate": 2} if name == "hpt" else {}  # some prompts by their demonstrations
    made, other = (easy(name, settings, bypass=True, micro_batch=micro) for _ in range(2))
    batch = made._prepared(made._collect()[0])
    noise = 0.1 * torch.randn(batch.mask.shape, generator=torch.Generator().manual_seed(0)).double()
    old = made._scores(batch, made.policy)[0] - noise
    batch = batch.replace(old_log_probs=old.where(~batch.demo[:, None], 0.0))
    metrics = made._update(batch)
    d = noise[batch.mask & ~batch.demo[:, None]]
    assert batch.demo.any()
    assert len(d)
    assert float(metrics["log_ratio"]) == pytest.approx(float(d.abs().mean()))
    assert float(metrics["approx_kl"]) == pytest.approx(float((d.exp() - 1.0 - d).mean()))
    other.options.__dict__["bypass"] = False
    other._update(batch)
    assert torch.equal(weights(made), weights(other))


@pytest.mark.parametrize("name", ["luffy", "hpt"])
@pytest.mark.parametrize("micro", [0, 1])
def test_engine_gap_and_kl_are_of_samples_alone(name, micro):
    """Demonstrations were drawn by no policy: neither their tokens nor their rows are in these means."""
    made = easy(name, {"kl": 0.1} | ({"gate": 2} if name == "hpt" else {}), micro_batch=micro)
    batch = made._prepared(made._collect()[0])
    own = batch.mask & ~batch.demo[:, None]
    noise = 0.1 * torch.randn(2, *own.shape, generator=torch.Generator().manual_seed(0)).double()
    now = made._scores(batch, made.policy)[0]
    batch = batch.replace(rollout_log_probs=now - noise[0], ref_log_probs=now - noise[1])
    metrics = made._update(batch)
    assert batch.demo.any()
    assert float(metrics["engine_gap"]) == pytest.approx(float(noise[0][own].abs().mean()))
    assert float(metrics["kl"]) == pytest.approx(float(noise[1][own].sum() / (~batch.demo).sum()))


def test_supervised_updates_report_no_kl():
    """What the current policy says of demonstrations is no divergence from the first model."""
    assert "kl" not in easy("sft", {"kl": 0.1}).update()


def test_the_old_policy_of_all_updates_is_that_of_the_first():
    """Two passes over one batch by hand."""
    one = easy("grpo", reuse=2)
    other = easy("grpo", reuse=2)
    one.update()
    batch, _ = other._collect()
    old = other._scores(batch, other.policy)[0]
    batch = other.estimator.prepare(batch.replace(old_log_probs=old))
    for _ in range(2):
        other._update(batch)
    torch.testing.assert_close(weights(one), weights(other), atol=1e-12, rtol=0)


def test_minibatches_are_whole_groups_and_cover_the_batch():
    made = easy("grpo", minibatches=2)
    batch = made._collect()[0]
    parts = made._minibatches(batch)
    assert sorted(torch.cat(parts).tolist()) == list(range(16))
    for rows in parts:
        sizes = batch.group_ids[rows].unique(return_counts=True)[1]
        assert sizes.tolist() == [4, 4]


def test_a_delayed_sampler_has_the_parameters_of_that_many_steps_ago():
    made = easy("grpo", delay=2)
    history = [weights(made)]
    for _ in range(5):
        sampler = made.engine.sampler(made.policy)
        now = torch.cat([p.detach().flatten() for p in sampler.parameters()])
        assert torch.equal(now, history[max(len(history) - 3, 0)])
        metrics = made.update()
        history.append(weights(made))
    assert float(metrics["engine_gap"]) > 1e-3


@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_bypass_takes_the_ratio_to_what_sampled(name):
    corrected = easy(name, delay=1, bypass=True)
    plain = easy(name, delay=1)
    for made in (corrected, plain):
        made.update()
    assert float(corrected.update()["log_ratio"]) > 1e-3
    assert float(plain.update()["log_ratio"]) == 0.0


@pytest.mark.parametrize("engine", ["bf16", "int8"])
def test_a_rounded_engine_is_near_but_not_the_same(engine):
    made = easy("grpo", engine=engine)
    gap = float(made.update()["engine_gap"])
    assert 1e-5 < gap < 0.05
    exact = made.policy.head
    copied = made.engine.sampler(made.policy).head
    step = exact.abs().amax(dim=1, keepdim=True) / 254 if engine == "int8" else exact.abs() / 256
    assert ((exact - copied).abs() <= step + 1e-12).all()


def test_dapo_samples_again_until_all_groups_differ():
    made = easy("dapo", {"max_rounds": 50}, group=2)
    batch, metrics = made._collect()
    groups = Groups(batch.group_ids)
    assert len(groups.ids) == 4
    assert (groups.std(batch.rewards) > 0).all()
    assert made.rollouts > 8
    assert float(metrics["zero_variance"]) > 0
    all_kept = easy("dapo", {"max_rounds": 1}, group=2)
    assert len(all_kept._collect()[0].group_ids) == 8


def test_dapo_without_any_unequal_group_makes_no_update():
    made = learner("dapo", {"max_rounds": 2})
    made.task = Favourite(made.task)
    made.task.rewards = lambda prompts, responses: {"even": torch.ones(len(prompts), dtype=torch.float64)}
    before = weights(made)
    made.update()
    assert torch.equal(before, weights(made))
    assert made.rollouts == 32


def test_a_batch_without_an_update_counts_as_one_of_the_delay():
    made = learner("dapo", {"max_rounds": 1}, delay=1)
    made.task = Favourite(made.task)
    made.update()
    moved, made.settings = weights(made), made.method.config(max_rounds=2)
    made.task.rewards = lambda prompts, responses: {"even": torch.ones(len(prompts), dtype=torch.float64)}
    made.update()
    assert torch.equal(moved, weights(made))
    sampler = made.engine.sampler(made.policy)
    assert torch.equal(moved, torch.cat([p.detach().flatten() for p in sampler.parameters()]))


def test_dapo_punishes_the_last_tokens_before_the_limit():
    method = load_method("dapo")
    made = learner("dapo", {"overlong": 2})
    lengths = torch.tensor([1, 2, 3, 4])
    mask = torch.arange(4) < lengths[:, None]
    responses = type("R", (), {"lengths": mask.sum(1)})
    found = method.shaped(made.settings, torch.ones(4), responses, torch.full((4,), 4))
    assert found.tolist() == [1.0, 1.0, 0.5, 0.0]


@pytest.mark.parametrize("given", [{"max_rounds": 0}, {"overlong": -1}])
def test_dapo_refuses_no_sampling_and_a_negative_punishment(given):
    with pytest.raises(ConfigError, match="max_rounds must be 1 or more and overlong 0 or more"):
        load_method("dapo").config(**given)


NOTHING_CHOSEN = {
    "beta_norm": {"high": 10.0}, "clip_cov": {"quantiles": True, "cov_low": 0.5, "cov_high": 0.9},
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].data != "episodes"])
def test_a_minibatch_without_a_chosen_token_changes_nothing(name):
    """All of its episodes ran out of summaries, for instance."""
    made = learner(name, NOTHING_CHOSEN.get(name), double=False)
    collect, before = made._collect, weights(made)

    def none():
        batch, metrics = collect()
        return batch.replace(mask=torch.zeros_like(batch.mask)), metrics

    made._collect = none
    found = made.update()
    assert torch.equal(before, weights(made))
    assert all(torch.isfinite(torch.as_tensor(value)).all() for value in found.values())


def test_remax_subtracts_the_greedy_reward():
    made = easy("remax")
    batch = made._collect()[0]
    assert batch.baseline_rewards.shape == (16,)
    per_group = batch.baseline_rewards.view(4, 4)
    assert (per_group == per_group[:, :1]).all()
    torch.testing.assert_close(made.estimator.advantages(batch), batch.rewards - batch.baseline_rewards)
    assert made.rollouts == 20


def moved(name, kl):
    """A learner whose policy is no longer the reference, and a batch of it."""
    made = easy(name, {"kl": kl})
    with torch.no_grad():
        for p in made.policy.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1), dtype=p.dtype))
    batch = made._collect()[0]
    new, ref = (made._scores(batch, policy)[0] for policy in (made.policy, made.reference))
    return made, batch, new - ref


@pytest.mark.parametrize("name", ["rloo", "p3o"])
def test_the_kl_in_a_rows_reward(name):
    made, batch, log_ratio = moved(name, 0.3)
    found = made._prepared(batch)
    torch.testing.assert_close(found.rewards, batch.rewards - 0.3 * log_ratio.sum(1))
    metrics = made._update(found)
    assert float(metrics["kl"]) == pytest.approx(float(log_ratio.sum(1).mean()))


def test_the_kl_in_the_rewards_of_tokens():
    made, batch, log_ratio = moved("reinforce_plus_plus", 0.3)
    found = made._prepared(batch).rewards
    torch.testing.assert_close(found.sum(1), batch.rewards - 0.3 * log_ratio.sum(1))
    assert (found[:, 0] + 0.3 * log_ratio[:, 0]).abs()[batch.mask.sum(1) > 1].max() < 1e-12


def test_the_kl_in_the_loss():
    made, batch, log_ratio = moved("grpo", 0.3)
    found = made._prepared(batch)
    torch.testing.assert_close(found.rewards, batch.rewards)
    new = made._scores(batch, made.policy)[0]
    without = load_method("grpo").estimator(load_method("grpo").config(), 4)
    found = found.replace(old_log_probs=new.detach())
    k3 = ((-log_ratio).exp() - 1 + log_ratio).where(batch.mask, 0.0).sum(1) / batch.mask.sum(1)
    difference = made.estimator.loss(new, found) - without.loss(new, found)
    assert float(difference.detach()) == pytest.approx(0.3 * float(k3.mean()))


def test_the_critic_learns_the_mean_reward():
    made = easy("ppo", {"value": 1.0}, double=False, prompts=8, lr=3e-3)
    for _ in range(30):
        made.update()
    batch = made._collect()[0]
    values = made._scores(batch, made.policy)[1]
    assert float(values[:, 0].mean()) == pytest.approx(float(batch.rewards.mean()), abs=0.2)


def test_warmup_grows_the_learning_rate():
    made = easy("grpo", warmup=4)
    rates = []
    for _ in range(5):
        made.update()
        rates.append(made.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01])


def test_shares_of_equal_groups():
    from offrl.llm.rollouts import group_shares

    rewards = torch.tensor([1.0, 1.0, 0.0, 0.0, 1.0, 0.0])
    found = group_shares(rewards, torch.tensor([5, 5, 2, 2, 9, 9]), rewards > 0)
    assert {k: pytest.approx(1 / 3) for k in ("all_right", "all_wrong")}.items() <= {
        k: float(v) for k, v in found.items()
    }.items()
    assert float(found["zero_variance"]) == pytest.approx(2 / 3)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_grpo_learns_t1(seed):
    """Four fifths of right answers in 400 updates from random weights, about 20 CPU seconds (docs/llm.md)."""
    from offrl.llm.evaluate import evaluate

    made = learner("grpo", double=False, prompts=32, group=16, lr=1e-3, seed=seed)
    first = evaluate(made.policy, made.task, prompts=512, samples=4, seed=0, name="first").accuracy
    for _ in range(400):
        made.update()
    last = evaluate(made.policy, made.task, prompts=512, samples=4, seed=0, name="last").accuracy
    assert first < 0.05
    assert last > 0.8


class Half(Companion):
    """Learns from the first half of a batch, half of its tokens, at a quarter of the rate; counts its minibatches."""

    metrics = ("kept", "pieces")
    seen = 0

    def measured(self, batch):
        return batch.replace(baseline_weights=torch.arange(len(batch.rewards)))

    def chosen(self, batch):
        assert batch.advantages is not None
        return batch.rows(batch.baseline_weights < len(batch.rewards) // 2), {"kept": torch.tensor(0.5)}

    def masked(self, batch):
        self.seen += 1
        return batch.replace(mask=batch.mask & (torch.arange(batch.mask.shape[1]) < 2)), {}

    def pieces(self, batch):
        return list(torch.arange(len(batch.tokens)).tensor_split(2))

    def rate(self, gradients):
        self.gradients = gradients
        return 0.25, {"pieces": torch.tensor(float(len(gradients)))}

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]


def test_a_companion_chooses_masks_splits_and_slows():
    made = easy("grpo", minibatches=2)
    made.companion = Half(made.settings, made)
    found = made.update()
    assert made.companion.seen == 2
    assert (float(found["kept"]), float(found["pieces"])) == (0.5, 2.0)
    assert made.optimizer.param_groups[0]["lr"] == 0.25 * made.options.lr
    whole = [p.grad for p in made.parameters]
    norm = torch.cat([(a + b).flatten() for a, b in zip(*made.companion.gradients, strict=True)]).norm()
    share = min(1.0, float(1.0 / norm))
    for one, other, total in zip(*made.companion.gradients, whole, strict=True):
        torch.testing.assert_close((one + other) * share, total, atol=1e-6, rtol=1e-5)
    other = easy("grpo")
    other.companion = Half(other.settings, other)
    other.load_state_dict(made.state_dict())
    assert other.companion.seen == 2


def test_nothing_kept_moves_nothing():
    made = easy("grpo")
    made.update()
    before = weights(made)
    made.companion.masked = lambda batch: (
        batch.replace(mask=batch.mask & False),
        {"kept": torch.tensor(0.0)},
    )
    assert all(torch.isfinite(x) for x in made.update().values())
    assert torch.equal(weights(made), before)


def test_progress_runs_from_0_to_1():
    made = easy("grpo", steps=3)
    found = []
    for _ in range(4):
        found.append(made.progress)
        made.update()
    assert found == [0.0, 0.5, 1.0, 1.0]


def test_cut_responses_are_those_that_a_limit_stopped():
    made = learner("grpo", prompts=16)
    batch = made._collect()[0]
    ended = (batch.tokens == EOS).any(dim=1)
    assert 0 < int(batch.cut.sum()) < len(ended)
    assert torch.equal(batch.cut, ~ended)
    assert not learner("grpo", task="t2")._collect()[0].cut.any()  # there no response can end by itself
    assert not learner("luffy")._collect()[0].cut[16:].any()


def test_several_advantages_are_several_surrogates():
    made = easy("grpo", reuse=2)
    batch = made._prepared(made._collect()[0])
    new = batch.old_log_probs + 0.3 * torch.randn(batch.mask.shape, dtype=torch.float64)
    parts = torch.stack([batch.advantages, 0.5 - batch.advantages], dim=-1)[:, None]
    both, estimator = batch.replace(advantages=parts), made.estimator
    for function in (estimator.weights, estimator.surrogate):
        apart = [function(new, batch.replace(advantages=a)) for a in parts[:, 0].unbind(-1)]
        torch.testing.assert_close(function(new, both), apart[0] + apart[1])
    shares = [
        estimator.diagnostics(new, batch.replace(advantages=a))["clip_fraction"]
        for a in parts[:, 0].unbind(-1)
    ]
    assert shares[0] != shares[1]
    found = estimator.diagnostics(new, both)["clip_fraction"]
    torch.testing.assert_close(found, (shares[0] + shares[1]) / 2)


def test_a_task_without_final_answers_cannot_compare_them():
    with pytest.raises(ConfigError, match="task t1 does not say what the final answer"):
        without = types.SimpleNamespace(name="t1", max_response=4)
        Learner(
            load_method("copo"), load_method("copo").config(), without, learner().policy, learner().options
        )


def test_final_answers():
    chain, strings, g = load_task("t2"), load_task("t3"), torch.Generator().manual_seed(0)
    prompts = chain.prompts(6, g)
    tokens = torch.arange(48).view(6, 8)
    whole = Responses(tokens, tokens >= 0, torch.zeros(6, 8))
    assert torch.equal(chain.final_answers(prompts, whole), 8 * torch.arange(6) + prompts.levels - 1)
    short = Responses(tokens[:, :3], tokens[:, :3] >= 0, torch.zeros(6, 3))
    assert torch.equal(chain.final_answers(prompts, short) >= 0, prompts.levels <= 3)
    every = Responses(strings.strings, strings.strings >= 0, torch.zeros(1296, 4))
    assert len(strings.final_answers(prompts, every).unique()) == 1296
