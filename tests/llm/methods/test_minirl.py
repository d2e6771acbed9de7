"""MiniRL: first-order agreement with the sequence objective, the two ratios' roles, and routing replay on a mixture."""

import itertools

import pytest
import torch

from offrl.errors import ConfigError
from offrl.estimators.compose import compose
from offrl.estimators.recipes import recipe
from offrl.estimators.rollouts import Rollouts
from offrl.llm.methods import load_method
from offrl.llm.models import Transformer
from offrl.llm.options import LLMOptions
from offrl.llm.routing import forced, recording, routers
from offrl.llm.session import build
from offrl.llm.tasks import load_task

METHOD = load_method("minirl")
PATHS = torch.tensor(list(itertools.product(range(3), repeat=2)))
RETURNS = torch.tensor([1.0, 0.0, 2.0, -1.0, 0.5, 0.0, 3.0, 1.0, -2.0], dtype=torch.float64)


def step_log_probs(logits):
    """(9, 2) of all paths of two steps: the first by row 0, the second by row 1 + the first's action; (4, 3) logits."""
    log_p = logits.log_softmax(-1)
    return torch.stack([log_p[0, PATHS[:, 0]], log_p[1 + PATHS[:, 0], PATHS[:, 1]]], dim=1)


def surrogate_gradient(logits, mu, **settings):
    """Of the token-level loss over all paths, each with its probability under mu."""
    leaf = logits.clone().requires_grad_()
    log_probs, rollout = step_log_probs(leaf), step_log_probs(mu)
    share = 9 * rollout.sum(1).exp()
    batch = Rollouts(
        mask=torch.ones(9, 2, dtype=torch.bool), old_log_probs=log_probs.detach(), rollout_log_probs=rollout,
        advantages=RETURNS * share,
    )  # fmt: skip
    estimator = METHOD.estimator(METHOD.config(cap=1e9, **settings), 2)
    return -torch.autograd.grad(estimator.loss(log_probs, batch), leaf)[0]


def test_the_surrogate_is_the_first_order_of_the_sequence_objective():
    """The gradients' difference is 0 at pi = mu and grows linearly with the distance of the logits."""
    g = torch.Generator().manual_seed(0)
    mu, direction = (torch.randn(4, 3, generator=g, dtype=torch.float64) for _ in range(2))
    errors, sizes = [], [0.0, 1e-3, 1e-2, 1e-1]
    for size in sizes:
        leaf = (mu + size * direction).requires_grad_()
        (want,) = torch.autograd.grad((step_log_probs(leaf).sum(1).exp() * RETURNS).sum(), leaf)
        errors.append(float((surrogate_gradient(leaf.detach(), mu) - want).norm()))
    assert errors[0] < 1e-12
    slopes = [errors[i + 1] / errors[i] for i in (1, 2)]
    assert slopes == pytest.approx([10.0, 10.0], rel=0.15)


def gradient(estimator, now, batch):
    leaf = now.clone().requires_grad_()
    return torch.autograd.grad(estimator.loss(leaf, estimator.prepare(batch)), leaf)[0]


def test_where_all_policies_are_one_it_is_rloo_and_dr_grpo(drifted):
    _, batch = drifted()
    now = batch.old_log_probs
    found = gradient(METHOD.estimator(METHOD.config(), 6), now, batch)
    rloo, dr_grpo = recipe("rloo"), recipe("dr_grpo", length=6)
    torch.testing.assert_close(found, gradient(rloo, now, batch) * 3 / 4, atol=1e-8, rtol=1e-6)  # groups of 4
    torch.testing.assert_close(found, gradient(dr_grpo, now, batch) * 6, atol=1e-12, rtol=1e-9)


def test_weights_correct_what_another_engine_sampled():
    """One step: over draws of mu the weighted gradient is the on-policy one; pi / pi_old alone leaves a bias."""
    g = torch.Generator().manual_seed(1)
    logits, rewards = torch.randn(6, generator=g).double(), torch.randn(6, generator=g).double()
    mu = (logits + 0.5 * torch.randn(6, generator=g).double()).log_softmax(0)
    leaf = logits.clone().requires_grad_()
    (want,) = torch.autograd.grad(-(leaf.softmax(0) * rewards).sum(), leaf, retain_graph=True)
    log_probs = leaf.log_softmax(0)[:, None]
    batch = Rollouts(
        mask=torch.ones(6, 1, dtype=torch.bool), old_log_probs=log_probs.detach(), rollout_log_probs=mu[:, None],
        advantages=rewards * 6 * mu.exp(),
    )  # fmt: skip
    right = METHOD.estimator(METHOD.config(cap=1e9), 1)
    plain = compose(denominator="old", aggregation="seq-mean-token-sum")
    found, biased = (
        torch.autograd.grad(estimator.loss(log_probs, batch), leaf, retain_graph=True)[0]
        for estimator in (right, plain)
    )
    torch.testing.assert_close(found, want, atol=1e-12, rtol=1e-9)
    assert (biased - want).abs().max() > 0.02


def test_the_mask_looks_at_pi_old_and_the_weight_at_mu(drifted):
    now, batch = drifted()
    estimator = METHOD.estimator(METHOD.config(), 6)
    batch = estimator.prepare(batch)
    far = batch.replace(rollout_log_probs=batch.old_log_probs - 1.0)
    near, moved = estimator.weights(now, batch), estimator.weights(now, far)
    ratio = (now - batch.old_log_probs).exp()
    a = batch.advantages[:, None].expand_as(ratio)
    kept = batch.mask & torch.where(a > 0, ratio <= 1.27, ratio >= 0.8)
    assert torch.equal(near != 0, kept)
    assert torch.equal(moved != 0, kept)
    assert 5 < int(kept.sum()) < int(batch.mask.sum()) - 5
    want = (now - far.rollout_log_probs).exp().clamp(max=5.0) * a
    torch.testing.assert_close(moved, want.where(kept, 0.0))
    assert ((now - far.rollout_log_probs).exp()[kept] > 5.0).any()


def mixture(seed=0, active=1):
    """A tiny mixture of four experts."""
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(seed)
    task = load_task("t1")
    config = MixtralConfig(
        vocab_size=len(task.vocabulary), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, num_local_experts=4, num_experts_per_tok=active,
        max_position_embeddings=8, initializer_range=0.3, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return Transformer(MixtralForCausalLM(config), task.allowed, 0, [2]), task


def reading(policy, task, rows=64):
    g = torch.Generator().manual_seed(1)
    prompts = task.prompts(rows, g)
    tokens = torch.randint(3, 13, (rows, 4), generator=g)

    def log_probs():
        states = policy.hidden(prompts.tokens, prompts.mask, tokens, torch.arange(rows))
        logits = states @ policy.head.T + policy.bias
        return logits.log_softmax(-1).gather(2, tokens[..., None])[..., 0]

    return log_probs


@pytest.mark.parametrize("active", [1, 2])
def test_a_models_own_experts_change_nothing_and_others_do(active):
    policy, task = mixture(active=active)
    log_probs = reading(policy, task)
    with recording(policy) as passes:
        plain = log_probs()
    assert [x.shape for x in passes] == [(64 * 4, 2, active), (64 * 3, 2, active)]
    with forced(policy, passes):
        again = log_probs()
    torch.testing.assert_close(again, plain, atol=1e-6, rtol=0)
    some = torch.rand(passes[1].shape[0], generator=torch.Generator().manual_seed(0)) < 0.1
    other = torch.where(some[:, None, None], (passes[1] + 1) % 4, passes[1])
    with forced(policy, [passes[0], other]):
        changed = log_probs()
    assert (changed - plain).abs().max() > 1e-3
    torch.testing.assert_close(
        changed[:, 0], plain[:, 0], atol=1e-6, rtol=0
    )  # no token of the response is read yet
    after = log_probs()  # nothing stays behind
    torch.testing.assert_close(after, plain, atol=1e-6, rtol=0)


def test_forced_experts_weigh_what_the_router_thinks_of_them():
    policy, _ = mixture(active=2)
    router, g = routers(policy)[0], torch.Generator().manual_seed(0)
    states = torch.randn(5, 32, generator=g)
    experts = torch.tensor([[0, 1], [2, 0], [3, 1], [1, 3], [2, 3]])
    with forced(policy, [experts[:, None].expand(5, 2, 2)]):
        logits, weights, used = router(states)
    p = (states @ router.weight.T).softmax(dim=-1)
    want = torch.stack([p[i, row] / p[i, row].sum() for i, row in enumerate(experts)])
    assert torch.equal(used, experts)
    torch.testing.assert_close(weights, want)
    torch.testing.assert_close(logits, states @ router.weight.T)


def test_forced_routers_keep_their_gradient():
    policy, task = mixture(active=2)
    log_probs = reading(policy, task)
    with recording(policy) as passes:
        log_probs()
    with forced(policy, passes):
        log_probs().sum().backward()
    for router in routers(policy):
        assert router.weight.grad.abs().max() > 1e-6


def test_replay_keeps_ratios_closer_to_one():
    """Experts and routers are moved a little: the largest log-ratio is smaller under the experts of before."""
    better, factors = 0, []
    for seed in range(12):
        policy, task = mixture(seed)
        log_probs = reading(policy, task)
        with recording(policy) as passes, torch.no_grad():
            before = log_probs()
        g = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in policy.named_parameters():
                if "mlp" in name or "block_sparse_moe" in name:
                    parameter.add_(0.003 * torch.randn(parameter.shape, generator=g))
            free = (log_probs() - before).abs().max()
            with forced(policy, passes):
                held = (log_probs() - before).abs().max()
        better += int(held <= free)
        factors.append(float(free / held))
    assert better >= 11
    assert sorted(factors)[6] > 2.0


def learner(replay, **options):
    given = {"model": "tiny:moe", "prompts": 4, "group": 4, "lr": 1e-2, **options}
    return build("minirl", METHOD.config(replay=replay, entropy=0.05), LLMOptions(**given))


@pytest.mark.parametrize("task", ["t1", "t2"])
def test_r2_leaves_the_first_update_alone_and_changes_later_ones(task):
    """Prompts of one length, and padded ones."""
    weights = {}
    for replay in ("none", "R2"):
        made = learner(replay, reuse=2, lr=0.3, task=task)
        batch = made._prepared(made._collect()[0])
        batch = batch.replace(advantages=torch.linspace(-1, 1, 16))
        now = made.companion.log_probs(batch)
        torch.testing.assert_close(now, batch.old_log_probs, atol=1e-5, rtol=0)
        made._update(batch)
        weights[replay] = (now, made.companion.log_probs(batch))
    torch.testing.assert_close(weights["none"][0], weights["R2"][0], atol=1e-6, rtol=0)
    assert (weights["none"][1] - weights["R2"][1]).abs().max() > 1e-3


def test_r3_takes_the_experts_of_the_rounded_sampler():
    made = learner("R3", engine="fp8", reuse=2)
    batch = made._collect()[0]
    assert batch.routes.shape == (16, batch.tokens.shape[1] - 1, 2, 2)
    assert batch.prompt_routes.shape == (16, 4, 2, 2)
    with recording(made.engine.copy) as passes, torch.no_grad():
        owners = torch.arange(16)
        made.engine.copy.hidden(batch.prompt_tokens, batch.prompt_mask, batch.tokens, owners)
    assert torch.equal(passes[0].view(16, 4, 2, 2), batch.prompt_routes)
    later = passes[1].view(batch.routes.shape)
    read = batch.mask[:, :-1]
    assert torch.equal(later[read], batch.routes[read])
    with recording(made.policy) as own, torch.no_grad():
        made.policy.hidden(batch.prompt_tokens, batch.prompt_mask, batch.tokens, owners)
    assert not torch.equal(own[0], passes[0])
    free = batch.replace(routes=None, prompt_routes=None)
    assert (made.companion.log_probs(batch) - made.companion.log_probs(free)).abs().max() > 1e-6


def test_r3_with_unequal_numbers_of_responses():
    """Each response has the experts of its own prompt."""
    made = learner("R3", engine="fp8", reuse=2, pool=9, allocator="knapsack", budget_low=2, task="t2")
    made.prompting._budget = lambda rates: torch.tensor([2, 6, 3, 5])
    batch = made._collect()[0]
    with recording(made.engine.copy) as passes, torch.no_grad():
        made.engine.copy.hidden(batch.prompt_tokens, batch.prompt_mask, batch.tokens, torch.arange(16))
    own = batch.prompt_mask[..., None, None]
    assert torch.equal(passes[0].view(batch.prompt_routes.shape) * own, batch.prompt_routes * own)
    assert batch.group_ids.unique(return_counts=True)[1].tolist() == [2, 6, 3, 5]


def test_the_first_model_keeps_its_own_experts():
    made = build(
        "minirl",
        METHOD.config(replay="R3", kl=0.1),
        LLMOptions(model="tiny:moe", prompts=4, group=4, reuse=2),
    )
    batch = made._collect()[0]
    swapped = batch.replace(routes=(batch.routes + 1) % 4, prompt_routes=(batch.prompt_routes + 1) % 4)
    of_first = [made._scores(x, made.reference)[0] for x in (batch, swapped)]
    torch.testing.assert_close(of_first[0], of_first[1])
    of_policy = [made._scores(x, made.policy)[0] for x in (batch, swapped)]
    assert (of_policy[0] - of_policy[1]).abs().max() > 1e-5


@pytest.mark.parametrize("replay", ["R2", "R3"])
def test_micro_batches_change_nothing_under_replay(replay):
    found = []
    for micro in (0, 2):
        made = learner(replay, micro_batch=micro, minibatches=2, engine="fp8")
        made.optimizer = torch.optim.SGD(made.parameters, lr=0.1)
        for _ in range(2):
            made.update()
        found.append(torch.cat([p.detach().flatten() for p in made.policy.parameters()]))
    torch.testing.assert_close(found[0], found[1], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("replay", "options", "says"),
    [
        ("R2", {}, "R2 changes nothing in the first update"),
        ("R3", {}, "R3 changes nothing with one update a batch of an exact engine"),
        ("R2", {"reuse": 2, "model": "tiny:dense"}, "tiny:dense has no routers to replay"),
        ("R3", {"reuse": 2, "task": "t4a"}, "R3 reads what sampling read token by token"),
    ],
)
def test_replay_without_effect_is_refused(replay, options, says):
    with pytest.raises(ConfigError, match=says):
        learner(replay, **options)
