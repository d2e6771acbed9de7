"""CAPO: the two moves against finite differences and by hand, the model of Adam, and what is left out."""

import pytest
import torch

from offrl.errors import ConfigError
from offrl.estimators.last_layer import Moments, energy, likeliest, predicted
from offrl.llm.learner import Learner
from offrl.llm.methods import load_method
from offrl.llm.methods.capo import high
from offrl.llm.models import load_model
from offrl.llm.options import LLMOptions
from offrl.llm.session import build
from offrl.llm.tasks import load_task

V, H, A = 6, 4, 1.7


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


W, STATE, STEP = normal(V, H), normal(H, seed=1), normal(V, H, seed=2)


def logits(t):
    return (W + t * STEP) @ STATE


def moves(action, advantage=A, lr=1.0, step=STEP):
    """Both moves of one token along a given direction, in the words' own order."""
    ids, pi, v = likeliest((W @ STATE)[None], torch.tensor([action]), V)
    g = advantage * v[0, :, None] * STATE
    found = predicted(
        v,
        pi,
        torch.tensor([advantage], dtype=torch.float64),
        (g * step[ids[0]]).sum()[None],
        (step @ STATE)[ids],
        lr,
    )
    return [float(x) for x in found]


def derivatives(function):
    t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(function(t), t, create_graph=True)
    return float(first.detach()), float(torch.autograd.grad(first, t)[0])


@pytest.mark.parametrize("action", [0, 3])
def test_the_objectives_move_is_the_surrogates_to_third_order(action):
    base = logits(torch.zeros(())).log_softmax(0)[action]

    def surrogate(t):
        return A * (logits(t).log_softmax(0)[action] - base).exp()

    first, second = derivatives(surrogate)
    for lr in (1e-3, 0.5):
        assert moves(action, lr=lr)[0] == pytest.approx(lr * first + 0.5 * lr**2 * second, rel=1e-9)
    assert abs(float(surrogate(torch.tensor(1e-3))) - A - moves(action, lr=1e-3)[0]) < 1e-7


def test_the_policys_move_is_half_the_fisher_norm_in_expectation_and_that_is_the_kl():
    pi = logits(torch.zeros(())).softmax(0)
    u = STEP @ STATE
    fisher = float((pi * u**2).sum() - (pi * u).sum() ** 2)
    expected = sum(float(pi[a]) * moves(a, lr=0.3)[1] for a in range(V))
    assert expected == pytest.approx(0.5 * 0.3**2 * fisher, rel=1e-9)
    inner = sum(float(pi[a]) * (moves(a, lr=0.3)[0] - 0.3 * A * float((u * (torch.eye(V).double()[a] - pi)).sum()))
                for a in range(V))  # fmt: skip
    assert inner == pytest.approx(0.0, abs=1e-12)
    second = derivatives(lambda t: (pi * (pi.log() - logits(t).log_softmax(0))).sum())[1]
    assert second == pytest.approx(fisher, rel=1e-9)


def test_the_action_is_always_among_the_likeliest():
    row = torch.tensor([[3.0, 1.0, 2.0, 0.0, -1.0]]).double()
    ids, pi, v = likeliest(row, torch.tensor([4]), 3)
    assert sorted(ids[0].tolist()) == [0, 2, 4]
    want = row[0, ids[0]].softmax(0)
    torch.testing.assert_close(pi[0], want)
    torch.testing.assert_close(v[0], (ids[0] == 4).double() - want)
    ids, pi, _ = likeliest(row, torch.tensor([2]), 3)
    assert sorted(ids[0].tolist()) == [0, 1, 2]
    ids, pi, v = likeliest(row, torch.tensor([4]), 50)
    torch.testing.assert_close(pi.sum(), torch.tensor(1.0).double())
    torch.testing.assert_close(energy(row, torch.tensor([4]))[0], v.square().sum())


def test_moments_over_all_words_are_adams():
    weight = W.clone().requires_grad_()
    adam = torch.optim.Adam([weight], lr=0.1, betas=(0.8, 0.95), eps=1e-6)
    moments, by_hand = Moments(W, (0.8, 0.95), 1e-6), W.clone()
    for i in range(4):
        gradient = normal(V, H, seed=10 + i)
        if i:  # the step that it foresees for every row is the one that comes
            foreseen = moments.direction(gradient[None], torch.arange(V)[None])[0]
        weight.grad = gradient.clone()
        adam.step()
        step = moments.update(gradient, torch.ones(V, dtype=torch.bool))
        by_hand = by_hand - 0.1 * step
        torch.testing.assert_close(by_hand, weight.detach(), atol=1e-12, rtol=1e-10)
        if i:
            torch.testing.assert_close(foreseen, step, atol=1e-12, rtol=1e-10)


def test_untouched_words_keep_their_moments_and_the_first_step_is_the_gradient():
    moments, gradient = Moments(W), normal(1, 2, H)
    assert torch.equal(moments.direction(gradient, torch.tensor([[1, 2]])), gradient)
    moments.update(normal(V, H, seed=3), torch.arange(V) < 3)
    assert (moments.first[3:] == 0).all()
    assert (moments.first[:3] != 0).all()
    assert (moments.second[:3] > 0).all()
    before = moments.second.clone()
    moments.update(normal(V, H, seed=4), torch.arange(V) >= 3)
    assert torch.equal(moments.second[:3], before[:3])


# in training


def learner(settings=None, name="capo", **options):
    given = {"prompts": 4, "group": 4, "lr": 1e-2, "task": "t2", **options}
    method, o = load_method(name), LLMOptions(**given)
    task = load_task(o.task)
    return Learner(method, method.config(**(settings or {})), task, load_model(o.model, task, 0).double(), o)


def weights(made):
    return torch.cat([p.detach().flatten() for p in made.policy.parameters()])


def batch_of(made):
    batch = made._prepared(made._collect()[0])
    return batch.replace(advantages=normal(len(batch.rewards), seed=5))


OFF = {"tau_f": 1e9, "tau_h": 1e9}


@pytest.mark.parametrize("base", ["grpo", "dr_grpo"])
def test_without_bounds_it_is_the_base_method(base):
    one, other = learner(OFF | {"base": base}, minibatches=2), learner(name=base, minibatches=2)
    start = weights(one)
    for made in (one, other):
        for _ in range(3):
            made.update()
    assert torch.equal(weights(one), weights(other))
    assert not torch.equal(weights(one), start)


@pytest.mark.parametrize("bound", ["tau_f", "tau_h"])
def test_a_bound_of_zero_leaves_nothing(bound):
    made = learner(OFF)
    made.update()
    before = weights(made)
    made.settings = made.companion.settings = load_method("capo").config(**OFF | {bound: 0.0})
    found = made.update()
    assert torch.equal(weights(made), before)
    assert float(found["rejected"]) == 1.0
    assert all(torch.isfinite(x).all() for x in found.values())


def test_the_moments_make_no_step_where_the_optimizer_makes_none():
    made = learner({"tau_f": 0.0})
    made.update()
    moments = made.companion.moments
    assert moments.steps == 0
    gradients = torch.randn(2, 3, moments.first.shape[1])
    assert moments.direction(gradients, torch.zeros(2, 3).long()) is gradients  # as before the first step


def test_with_plain_gradients_the_move_is_in_closed_form():
    """(lr A)^2 / 2 |v|^4 |h|^4, and its bound."""
    made = learner(OFF | {"optimizer": "sgd"}, temperature=0.7)
    made.policy.bias.add_(normal(len(made.policy.bias), seed=6))
    batch = batch_of(made)
    scores = made._score(batch, made.policy)
    hidden = scores.hidden.detach() / 0.7
    rows = (scores.hidden.detach() @ made.policy.head.T.detach() + made.policy.bias) / 0.7
    square = energy(rows.flatten(0, 1), batch.tokens.flatten()).view(batch.mask.shape)
    want = (0.5 * (1e-2 * batch.advantages[:, None] * square * hidden.square().sum(2)).square()).detach()
    bound = 1.0001 * float(want[batch.mask].median())
    made.companion.settings = load_method("capo").config(optimizer="sgd", tau_f=bound, tau_h=1e9)
    kept, metrics = made.companion.masked(batch)
    assert torch.equal(kept.mask, batch.mask & (want < bound))
    assert float(metrics["rejected"]) == pytest.approx(0.5, abs=0.02)
    assert float(metrics["m_f_95"]) == pytest.approx(float(want[batch.mask].quantile(0.95)), rel=1e-6)
    pi = rows.detach().softmax(2)
    v = torch.eye(pi.shape[2], dtype=pi.dtype)[batch.tokens] - pi
    a, size = batch.advantages[:, None], hidden.square().sum(2)
    spread = (pi * v.square()).sum(2) - (pi * v).sum(2).square()
    first, second = a.square() * square * size, a * (a * size).square() * (square.square() - spread)
    want = (1e-2 * first + 0.5e-4 * second).abs().detach()
    assert float(metrics["m_h_95"]) == pytest.approx(float(want[batch.mask].quantile(0.95)), rel=1e-6)


def bounded(made, batch):
    """Settings that keep about 95 of 100 tokens of this batch."""
    bound = float(made.companion.masked(batch)[1]["m_f_95"])
    return load_method("capo").config(optimizer="sgd", tau_f=bound, tau_h=1e9)


def test_rare_tokens_and_large_advantages_are_left_out_first():
    made = learner(OFF | {"optimizer": "sgd"})
    batch = batch_of(made)
    made.companion.settings = bounded(made, batch)
    kept = made.companion.masked(batch)[0].mask
    log_p = made._score(batch, made.policy).log_probs.detach()
    a = batch.advantages.abs()[:, None].expand(batch.mask.shape)
    gone = batch.mask & ~kept
    assert a[gone].mean() > 1.5 * a[kept].mean()
    sure = torch.tensor([[9.0, 0.0, 0.0]]).double()
    _, pi, v = likeliest(sure, torch.tensor([0]), 3)
    assert float(predicted(v, pi, torch.ones(1), torch.zeros(1), v, 1.0)[1]) < 1e-12
    one = batch.replace(advantages=torch.full_like(batch.advantages, 0.5))
    made.companion.settings = bounded(made, one)
    kept = made.companion.masked(one)[0].mask
    assert log_p[kept].mean() > log_p[batch.mask & ~kept].mean()


def test_the_moments_take_in_means_over_kept_tokens():
    made = learner(OFF | {"optimizer": "sgd"}, micro_batch=2)
    batch = batch_of(made)
    settings = bounded(made, batch)
    made.companion = type(made.companion)(settings, made)
    scores = made._score(batch, made.policy)
    hidden, head = scores.hidden.detach(), made.policy.head.detach()
    kept = made.companion.masked(batch)[0].mask
    total, times = torch.zeros_like(head), 0
    for i, t in kept.nonzero().tolist():
        pi = (hidden[i, t] @ head.T + made.policy.bias).softmax(0)
        e = torch.zeros(len(head)).double()
        e[batch.tokens[i, t]] = 1.0
        total, times = total + batch.advantages[i] * torch.outer(e - pi, hidden[i, t]), times + 1
    torch.testing.assert_close(made.companion.moments.first, 0.1 * total / times, atol=1e-12, rtol=1e-9)
    assert made.companion.moments.steps == 1


def test_a_row_divides_by_its_kept_tokens_and_rows_without_any_count():
    made = learner(OFF | {"base": "grpo"})
    batch = batch_of(made)
    keep = batch.mask.clone()
    keep[0], keep[1, 0] = False, False
    made.companion.masked = lambda batch: (batch.replace(mask=keep), {"rejected": torch.tensor(0.1)})
    made.options.__dict__["max_grad_norm"] = 1e9
    found = made._update(batch)
    assert float(found["surrogate"]) == pytest.approx(-float(batch.advantages[1:].sum()) / len(keep))


def test_moves_go_with_the_learning_rate_and_adam_remembers():
    made = learner(OFF, warmup=10)
    batch = batch_of(made)
    first = made.companion.masked(batch)[1]
    made.updates = 9
    made.companion.moments.steps = 0
    last = made.companion.masked(batch)[1]
    assert float(last["m_f_95"]) == pytest.approx(100 * float(first["m_f_95"]), rel=1e-6)
    remembered = made.companion.masked(batch)[1]
    assert float(remembered["m_f_95"]) != pytest.approx(float(last["m_f_95"]), rel=0.01)


def test_the_quantile_is_torchs_also_of_more_than_it_takes():
    for size in (1, 2, 7, 100):
        torch.testing.assert_close(high(normal(size)), normal(size).quantile(0.95))
    assert float(high(torch.arange(2**24 + 1) % 100 / 99.0)) == pytest.approx(0.95, abs=0.01)


def test_bounds_below_zero_are_refused():
    with pytest.raises(ConfigError, match="0 or more"):
        load_method("capo").config(tau_f=-1.0)
    with pytest.raises(ConfigError, match="top_k"):
        load_method("capo").config(top_k=1)


def test_bounds_hold_on_both_sides():
    moves = torch.tensor([-0.02, -0.005, 0.005, 0.02])
    made = learner({"tau_f": 1e-4, "tau_h": 0.01})
    assert made.companion.kept(moves, torch.zeros(4)).tolist() == [False, True, True, False]
    assert made.companion.kept(torch.zeros(3), torch.tensor([0.0, 1e-4, 2e-4])).tolist() == [
        True,
        False,
        False,
    ]


@pytest.mark.parametrize("base", ["grpo", "dr_grpo", "reinforce"])
def test_reinforce_compares_no_responses_and_takes_groups_of_one(base):
    """Its advantages are rewards, so that a batch of single responses moves the weights."""
    one = LLMOptions(task="t2", prompts=8, group=1, lr=1e-2, device="cpu")
    fewer = LLMOptions(task="t2", prompts=8, group=4, pool=9, allocator="knapsack", budget_low=1)
    settings = load_method("capo").config(base=base, tau_f=1e9, tau_h=1e9)
    if base != "reinforce":
        for given in (one, fewer):
            with pytest.raises(
                ConfigError, match=f"capo: base {base} compares the responses of a group: --group"
            ):
                build("capo", settings, given)
        return
    build("capo", settings, fewer)
    made = build("capo", settings, one)
    before = made.policy.head.detach().clone()
    shape = {"rewards": lambda prompts, responses: {"length": responses.mask.sum(dim=1).float()}}
    made.task.__dict__.update(shape)
    assert float(made.update()["grad_norm"]) > 0
    assert not torch.equal(made.policy.head, before)
