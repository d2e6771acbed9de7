"""The parts in a learner: what leaves a run bit for bit as it was, unequal groups under every loss, refusals."""

import dataclasses
import math

import pytest
import torch

from offrl.errors import ConfigError
from offrl.estimators.groups import Groups
from offrl.estimators.rollouts import count
from offrl.llm.learner import Learner
from offrl.llm.methods import METHODS, load_method
from offrl.llm.models import load_model
from offrl.llm.options import LLMOptions, check
from offrl.llm.prompts.knapsack import even
from offrl.llm.prompts.parts import PromptParts
from offrl.llm.rollouts import demonstrated
from offrl.llm.tasks import load_task
from offrl.llm.text import PAD


def learner(name="grpo", settings=None, **options):
    method = load_method(name)
    given = LLMOptions(**{"prompts": 4, "group": 4, "task": "t2", "lr": 1e-2, **options})
    check(name, method, given)
    task = load_task(given.task)
    policy = load_model(given.model, task, given.seed).double()
    return Learner(method, method.config(**(settings or {})), task, policy, given)


def weights(made):
    return torch.cat([p.detach().flatten() for p in made.policy.parameters()])


def after(steps=2, **options):
    made = learner(**options)
    return weights(made), [made.update() for _ in range(steps)], made


PLAIN = {"pool": 12, "steps": 9}


@pytest.mark.parametrize(
    "given",
    [
        {"allocator": "knapsack", "budget_low": 4, "budget_high": 4},
        {"curriculum": "stages", "stage_bounds": (8,)},
        {"sampler": "vas", "vas_share": 0.0},
        {"scaffold": "hints", "hint_exempt": 1.0},
    ],
    ids=lambda given: next(iter(given)),
)
def test_a_part_that_decides_nothing_changes_nothing(given):
    """Equal bounds, one stage, no weighted share, no step with hints: GRPO bit for bit."""
    if given.get("sampler") == "vas":  # its scoring draws from the same stream: the batches are compared
        one, other = learner(**PLAIN), learner(**PLAIN, **given, vas_rollouts=2)
        for made in (one, other):
            made.rows = [made._collect()[0].prompt_ids for _ in range(3)]
        assert all(torch.equal(a, b) for a, b in zip(one.rows, other.rows, strict=True))
        return
    _, want, plain = after(**PLAIN)
    _, found, made = after(**PLAIN, **given)
    assert torch.equal(weights(made), weights(plain))
    for one, other in zip(want, found, strict=True):
        assert all(torch.equal(other[key], value) for key, value in one.items())


class Rates:
    """Says what it is told, and keeps what it sees."""

    def __init__(self, rates):
        self.rates, self.seen = torch.tensor(rates).double(), []

    def predict(self, prompts, rows):
        return self.rates

    def observe(self, prompts, rows, right, tried):
        self.seen.append((rows, right, tried))


RAGGED = [0.5, 0.05, torch.nan, 0.97]


def ragged(name, settings=None, **options):
    made = learner(
        name, {"kl": 0.1} | (settings or {}), allocator="knapsack", pool=12, micro_batch=0, **options
    )
    made.prompting.predictor = Rates(RAGGED)
    return made


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("sft", "polychromic")])
def test_groups_of_unequal_size_work_with_every_loss(name):
    """Micro-batches change nothing, and the batch has the sizes that were asked for."""
    found = []
    for micro in (0, 12 if load_method(name).coupled else 3):
        made = ragged(name, minibatches=2)
        made.options.__dict__["micro_batch"] = micro
        made.optimizer = torch.optim.SGD(made.parameters, lr=0.1)
        sizes = []
        usual = made._prepared

        def prepared(batch, sizes=sizes, usual=usual):
            sizes.append(sorted(Groups(batch.group_ids[~batch.demo]).size.tolist()))
            return usual(batch)

        made._prepared = prepared
        metrics = made.update()
        found.append(weights(made))
        assert all(torch.isfinite(value).all() for value in metrics.values())
    assert sizes
    if load_method(name).keep is None:
        assert sizes == [[2, 3, 4, 7]]
    torch.testing.assert_close(found[0], found[1], atol=1e-7, rtol=1e-5)


def test_the_budget_is_the_average_number_and_unknown_prompts_get_just_that():
    made = ragged("grpo")
    batch, metrics = made._collect()
    assert Groups(batch.group_ids).size.tolist() == [7, 3, 4, 2]
    assert made.rollouts == 16
    assert (float(metrics["budget_least"]), float(metrics["budget_most"])) == (2.0, 7.0)
    rows, right, tried = made.prompting.predictor.seen[0]
    assert tried.tolist() == [7, 3, 4, 2]
    assert torch.equal(right, Groups(batch.group_ids).sum(batch.success.double()))
    ids = made.prompting.pool.prompts.ids[rows]
    assert torch.equal(ids.repeat_interleave(tried), batch.prompt_ids)
    errors = [abs(p - r / n) for p, r, n in zip(RAGGED, right, tried, strict=True) if p == p]
    assert float(metrics["prediction_error"]) == pytest.approx(float(sum(errors)) / 3)


def test_nothing_is_said_of_predictions_that_nobody_made():
    made = learner("grpo", pool=40, allocator="knapsack")
    assert "prediction_error" not in made.update()
    assert {"budget_least", "budget_most"} <= made.update().keys()


def test_what_only_later_samplings_of_a_step_report_is_reported():
    made = learner("dapo", pool=4, allocator="knapsack")  # the second sampling meets the same prompts again
    made.method = dataclasses.replace(
        made.method, rounds=lambda settings: 2, keep=lambda settings, batch: batch.rewards < -1.0
    )
    assert 0.0 < float(made.update()["prediction_error"]) < 1.0


def test_stages_are_of_the_difficulties_that_occur(byte_tokenizer):
    from offrl.llm.pretrained import Subwords
    from offrl.llm.prompts.parts import stages_of
    from offrl.llm.prompts.pool import Pool
    from offrl.llm.rewards import load_rewards
    from offrl.llm.tasks.prompts import PromptTask

    def made(*levels):
        rows = [
            {"prompt": f"{i} + 1", "answer": str(i + 1), "level": level} for i, level in enumerate(levels)
        ]
        task = PromptTask("q", rows, Subwords(byte_tokenizer, []), load_rewards(("integer",)))
        return stages_of(task, Pool(task.chosen(torch.arange(task.size))), LLMOptions(curriculum="stages"))

    assert made(1, 100, 5, 1).buckets.tolist() == [0, 2, 1, 0]
    with pytest.raises(ConfigError, match="all of one difficulty"):
        made(3, 3)


def test_all_prompts_weigh_the_same_in_the_loss():
    made = ragged("dr_grpo")
    batch, _ = made._collect()
    batch = batch.replace(rewards=torch.arange(16).double())
    found = made._prepared(batch).advantages
    plain = made.estimator.advantages(batch)
    torch.testing.assert_close(found, plain * even(batch.group_ids))
    sums = Groups(batch.group_ids).sum(found.abs())
    means = Groups(batch.group_ids).mean(plain.abs())
    torch.testing.assert_close(sums, 4.0 * means)


@pytest.mark.parametrize("name", ["grpo", "dr_grpo"])
@pytest.mark.parametrize("minibatches", [1, 2, 4])
def test_all_prompts_weigh_the_same_in_every_minibatch(name, minibatches):
    """Equal advantages and lengths: a prompt's share of the gradient is 1 / (prompts of its minibatch)."""
    made = ragged(name, {"kl": 0.0}, minibatches=minibatches)
    prepared, found = made._prepared, {}

    def flat(batch):
        batch = prepared(batch)
        zeros = torch.zeros_like(batch.rollout_log_probs)
        same = {"mask": zeros == 0.0, "old_log_probs": zeros, "advantages": even(batch.group_ids).double()}
        return batch.replace(**same)

    def update(part):
        x = torch.zeros_like(part.old_log_probs, requires_grad=True)
        made.estimator.loss(x, part, count(part.mask, part.group_ids)).backward()
        long = x.shape[1] / made.task.max_response if name == "dr_grpo" else 1.0
        shares = Groups(part.group_ids).sum(-x.grad.sum(dim=1)) / long
        found.update(zip(part.group_ids.unique().tolist(), shares.tolist(), strict=True))
        return {"loss": torch.zeros(())}

    made._prepared, made._update = flat, update
    made._step()
    assert len(found) == 4
    assert list(found.values()) == pytest.approx([minibatches / 4] * 4)


def test_means_over_prompts_are_left_as_they_are():
    """HPT divides by the size of a group itself."""
    made = ragged("hpt", {"gate": -1}, minibatches=2)
    batch, _ = made._collect()
    batch = batch.replace(rewards=torch.arange(len(batch.rewards)).double())
    prepared = made._prepared(batch)
    plain = made.estimator.advantages(batch)
    assert torch.equal(prepared.advantages, plain)
    assert plain.abs().max() > 0
    for rows in made._minibatches(prepared):
        assert torch.equal(made._minibatch(prepared, rows).advantages, plain[rows])


def test_utility_of_failures_goes_through_dynamic_programming():
    made = ragged("grpo", budget_value="failures", budget_high=30)
    made.prompting.predictor.rates = torch.tensor([0.5, 0.3, 0.9, 0.99]).double()
    batch, _ = made._collect()
    assert Groups(batch.group_ids).size.tolist() == [2, 10, 2, 2]


def test_a_hinted_success_has_ratio_one_under_its_own_prompt_alone():
    """All prompts fail, hints help: log-probabilities of training and sampling agree under the hinted prompt, and differ
    more than five times as much under the plain one.
    """  # fmt: skip
    made = learner("grpo", task="t2", prompts=16, group=2, scaffold="hints", hint_exempt=0.0)
    made.policy.model.lm_head.weight.data.mul_(3.0)
    batch, metrics = made._collect()
    hinted = batch.sources != batch.group_ids
    assert int(hinted.sum()) > 1
    assert float(metrics["hint_rescued"]) == pytest.approx(float(hinted.sum()) / 16)
    assert bool(batch.success[hinted].all())
    assert float(metrics["success"]) == pytest.approx(float(batch.success[~hinted].sum()) / 32)
    assert made.rollouts > 32
    scores = made._scores(batch, made.policy)[0]
    gap = (scores - batch.rollout_log_probs).abs()[hinted].sum()
    first = (~hinted).nonzero()[:, 0]
    twin = torch.stack([first[batch.group_ids[first] == g][0] for g in batch.group_ids[hinted]])
    prompts = batch.prompt_tokens.clone(), batch.prompt_mask.clone()
    for x in prompts:
        x[hinted] = x[twin]
    plain = batch.replace(prompt_tokens=prompts[0], prompt_mask=prompts[1], sources=None)
    wrong = (made._scores(plain, made.policy)[0] - batch.rollout_log_probs)[hinted]
    assert float(gap) < 1e-9
    spike = (wrong.exp() - 1 - wrong).mean()  # KL by k3
    assert float(spike) > 0.01


def test_hints_go_with_resampled_groups():
    """DAPO's samplings of one step, some with hinted rows and some without, are one batch."""
    made = learner("dapo", task="t2", prompts=4, group=2, scaffold="hints", hint_exempt=0.0)
    for _ in range(6):
        batch, _ = made._collect()
        gap = (made._scores(batch, made.policy)[0] - batch.rollout_log_probs).abs().max()
        assert float(gap) < 1e-9
    assert batch.sources is not None


def test_limits_of_hinted_responses_are_shorter_by_the_hint():
    task = load_task("t2-hard")
    prompts = task.prompts(50, torch.Generator().manual_seed(0))
    hinted, fits = task.hinted(prompts, 3)
    assert torch.equal(fits, prompts.levels > 3)
    assert torch.equal(hinted.limits[fits], prompts.levels[fits] - 3)
    sums = task.sums(prompts)
    assert torch.equal(hinted.tokens[:, -3:][fits], sums[:, :3][fits])
    assert torch.equal(task.sums(hinted), sums)
    rest = demonstrated(torch.nn.functional.pad(sums[:, 3:], (0, 1)))
    assert bool(task.success(hinted.rows(fits), demonstrated(rest.tokens[fits])).all())
    wrong = rest.tokens.clone()
    wrong[torch.arange(50), hinted.limits - 1] += 1
    assert not bool(task.success(hinted.rows(fits), demonstrated(wrong[fits])).any())


def test_scoring_rollouts_count_and_come_when_due():
    made = learner(pool=6, sampler="vas", vas_every=2, vas_rollouts=3, task="t1")
    size, counts = len(made.prompting.pool), []
    for _ in range(4):
        made.update()
        counts.append(made.rollouts)
    assert counts == [3 * size + 16, 3 * size + 32, 6 * size + 48, 6 * size + 64]


def test_models_of_many_parameters_score_a_pool_in_pieces(monkeypatch):
    """As evaluations do; the scores are those of one piece."""
    made = learner(pool=30, sampler="vas", vas_rollouts=3)
    task, sizes = made.task, []

    def respond(prompts, copies):
        """The right sums, some of them spoilt, the same for the same prompt; as wide as the longest of them."""
        sums = task.sums(prompts.repeat(copies))
        sums = sums[:, : int((sums != PAD).sum(dim=1).max())]
        spoilt = (prompts.repeat(copies).ids[:, None] * (1 + torch.arange(sums.shape[1]))) % 3 == 0
        turn = torch.arange(len(sums))[:, None] % copies  # another one in each copy
        other = torch.where(spoilt & (turn > 0) & (sums != PAD), task.zero + turn, sums)
        sizes.append(len(sums))
        return demonstrated(other)

    parts = made.prompting
    whole = {name: float(x) for name, x in parts.refreshed(0, respond).items()}
    size, weights = len(parts.pool), parts.vas.weights
    assert sizes == [3 * size]
    assert 0.0 < float(weights.mean()) < 1.0
    monkeypatch.setattr("offrl.llm.prompts.parts.LARGE", 0)
    monkeypatch.setattr("offrl.llm.prompts.parts.FEW_ROWS", 16)
    again = PromptParts(task, made.options, made.policy)
    found = {name: float(x) for name, x in again.refreshed(0, respond).items()}
    assert len(sizes) == 1 + -(-size // 5)
    assert max(sizes[1:]) == 15
    assert sum(sizes[1:]) == 3 * size
    assert found == pytest.approx(whole, abs=1e-12)
    torch.testing.assert_close(again.vas.weights, weights, atol=1e-12, rtol=0)


def test_a_curriculum_moves_on_and_its_batches_with_it():
    made = learner(pool=60, curriculum="stages", stage_bounds=(3, 8), stage_steps=2, stage_replay=0.5)
    levels = []
    for _ in range(4):
        batch, metrics = made._collect()
        levels.append(batch.prompt_mask.sum(dim=1)[:: made.options.group] - 2)
    assert bool((torch.cat(levels[:2]) <= 3).all())
    for drawn in levels[2:]:
        assert int((drawn <= 3).sum()) == 2
    assert float(metrics["stage"]) == 2.0


@pytest.mark.parametrize(
    ("name", "given", "says"),
    [
        ("grpo", {"sampler": "vas"}, "--sampler vas knows prompts that come again: pass --pool N"),
        ("grpo", {"allocator": "knapsack"}, "--predictor history knows prompts that come again"),
        ("grpo", {"curriculum": "stages"}, "--curriculum stages knows prompts that come again"),
        ("grpo", {"task": "t1", "pool": 9, "curriculum": "stages"}, "prompts of t1 are all of one difficulty"),
        ("grpo", {"scaffold": "hints", "task": "t1"}, "task t1 has no hints"),
        ("grpo", {"scaffold": "hints", "task": "t4a"}, "task t4a has no hints"),
        ("grpo", {"scaffold": "hints", "hints": "h"}, "task t2 has its own hints"),
        ("sft", {"group": 1, "pool": 9, "sampler": "vas"}, "sft samples nothing: leave --sampler vas out"),
        ("hpt", {"scaffold": "hints"}, "hpt has demonstrations where all responses fail"),
        ("grpo", {"pool": 9, "allocator": "knapsack", "budget_low": 5}, "--group 4 must be within --budget-low 5"),
        ("grpo", {"pool": 9, "allocator": "knapsack", "budget_low": 1}, "--budget-low must be 2 or more"),
        ("copg", {"pool": 9, "allocator": "knapsack", "micro_batch": 4}, "whole groups of up to --budget-high 128"),
        ("minirl", {"scaffold": "hints", "model": "tiny:moe"}, "notes more of its samples than hinted ones have"),
        ("rloo", {"task": "t3", "model": "tiny:table", "allocator": "knapsack", "predictor": "v0"}, "tiny:table has none"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(name, given, says):
    with pytest.raises(ConfigError, match=says):
        learner(name, {"copg": {"kl": 0.1}, "minirl": {"replay": "R3"}}.get(name), **given)


def test_minirl_without_replay_takes_hints():
    """It then notes nothing of its samples."""
    made = learner("minirl", scaffold="hints", hint_exempt=0.0, task="t2")
    found = [made.update() for _ in range(3)]
    assert all(math.isfinite(float(metrics["grad_norm"])) for metrics in found)
    assert sum(float(metrics["hint_rescued"]) for metrics in found) > 0


def test_sets_refuse_unequal_groups():
    from offrl.llm.session import build

    options = LLMOptions(task="t4b", prompts=4, group=8, pool=9, allocator="knapsack", device="cpu")
    with pytest.raises(ConfigError, match="polychromic: its sets need as many responses to every prompt"):
        build("polychromic", load_method("polychromic").config(), options)


def test_several_processes_are_refused():
    from offrl.llm.parallel import Ranks

    method, options = load_method("grpo"), LLMOptions(prompts=4, group=4, pool=9, sampler="vas")
    task = load_task("t1")
    with pytest.raises(ConfigError, match="--sampler vas runs in one process, not in 2"):
        Learner(method, method.config(), task, load_model("tiny:dense", task, 0), options, Ranks(0, 2))


def test_a_data_set_is_its_own_pool(byte_tokenizer):
    from offrl.llm.pretrained import Subwords
    from offrl.llm.prompts.parts import pool_of
    from offrl.llm.rewards import load_rewards
    from offrl.llm.tasks.prompts import PromptTask

    rows = [{"prompt": f"{i} + 1", "answer": str(i + 1)} for i in range(5)]
    task = PromptTask("q", rows, Subwords(byte_tokenizer, []), load_rewards(("integer",)))
    assert pool_of(task, LLMOptions()) is None
    assert len(pool_of(task, LLMOptions(sampler="vas"))) == 5
    with pytest.raises(ConfigError, match="q is a pool of 5 prompts: leave --pool out"):
        pool_of(task, LLMOptions(pool=3))


def test_a_data_set_is_gone_through_before_a_prompt_comes_again(byte_tokenizer):
    from offrl.llm.pretrained import Subwords
    from offrl.llm.rewards import load_rewards
    from offrl.llm.tasks.prompts import PromptTask

    rows = [{"prompt": "9" * (i + 1) + " + 1", "answer": "1"} for i in range(5)]
    task = PromptTask("q", rows, Subwords(byte_tokenizer, []), load_rewards(("integer",)))

    def made():
        return PromptParts(task, LLMOptions(prompts=2, group=2, seed=3), torch.nn.Linear(1, 1))

    parts = made()
    asked, width = [], []
    for _ in range(10):
        prompts, copies = parts.ask()
        assert copies == 2
        asked += prompts.ids.tolist()
        width += [(prompts.tokens.shape[1], max(len(task.tokens[i]) for i in prompts.ids.tolist()))]
    epochs = [asked[i : i + 5] for i in range(0, 20, 5)]
    assert all(sorted(epoch) == list(range(5)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) > 1
    assert all(own == longest for own, longest in width)

    parts = made()
    for _ in range(3):
        parts.ask()
    resumed = made()
    resumed.load_state_dict(parts.state_dict())
    rest = [i for _ in range(7) for i in resumed.ask()[0].ids.tolist()]
    assert rest == asked[6:]
