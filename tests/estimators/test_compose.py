"""The composed estimator: weights, aggregation with global counts, parts by name, second derivatives."""

import pytest
import torch

from offrl.estimators.aggregation import aggregate, sequence_sum
from offrl.estimators.compose import compose, functional, score_loss
from offrl.estimators.group_losses import group_loss
from offrl.estimators.groups import solved_gate
from offrl.estimators.masks import ppo_clip
from offrl.estimators.recipes import recipe
from offrl.estimators.regularizers import REGULARIZERS
from offrl.estimators.rollouts import Rollouts, count

MODES = ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "fixed-length"]


def length(mode):
    return 9 if mode == "fixed-length" else None


def ragged(rows=7, steps=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, steps, generator=g) < 0.6
    mask[:, 0] = True
    mask[3] = False  # a row without any chosen step
    x = -torch.rand(rows, steps, generator=g, dtype=torch.float64)
    rollouts = Rollouts(
        mask=mask,
        old_log_probs=x + 0.5 * torch.randn(rows, steps, generator=g, dtype=torch.float64),
        advantages=torch.randn(rows, steps, generator=g, dtype=torch.float64),
    )
    return x, rollouts


@pytest.mark.parametrize("mode", MODES)
def test_the_textbook_clip_has_the_gradient_of_masked_weights(mode):
    """Property 1: min-clip with dual clip, both signs of A, ratios across all three bounds."""
    x, rollouts = ragged(rows=40, steps=30)
    m, a = rollouts.mask, rollouts.advantages
    leaf = x.clone().requires_grad_()
    r = (leaf - rollouts.old_log_probs).exp()
    surrogate = torch.min(r * a, r.clamp(0.8, 1.28) * a)
    surrogate = torch.where(a < 0, torch.max(surrogate, 1.6 * a), surrogate)
    (want,) = torch.autograd.grad(-aggregate(surrogate, m, mode, length=length(mode)), leaf)
    for sign in (a > 0, a < 0):
        for bound in (r > 1.6, r < 0.8, (r > 0.8) & (r < 1.28)):
            assert (sign & bound & m).any()
    estimator = compose(
        mask=["clip_higher", ("dual_clip", {"limit": 1.6})], aggregation=mode, length=length(mode)
    )
    (got,) = torch.autograd.grad(estimator.loss(leaf, rollouts), leaf)
    torch.testing.assert_close(got, want, atol=1e-12, rtol=1e-6)
    weights = estimator.weights(leaf, rollouts)
    assert not weights.requires_grad
    moving = weights * leaf / leaf.detach()  # computed with gradient, constants all the same
    (again,) = torch.autograd.grad(score_loss(moving, leaf, m, mode, length=length(mode)), leaf)
    torch.testing.assert_close(again, want, atol=1e-12, rtol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_any_split_has_the_gradient_of_the_whole(mode):
    """Property 5, regularizers included."""
    x, rollouts = ragged()
    rollouts = rollouts.replace(ref_log_probs=rollouts.old_log_probs + 0.3)
    estimator = compose(mask="ppo_clip", aggregation=mode, length=length(mode), regularizers=[("k3", 0.1)])
    leaf = x.clone().requires_grad_()
    whole = estimator.loss(leaf, rollouts)
    (want,) = torch.autograd.grad(whole, leaf)
    counts = count(rollouts.mask)
    for split in ([7], [1] * 7, [2, 5], [4, 1, 2]):
        parts = torch.randperm(7, generator=torch.Generator().manual_seed(len(split))).split(split)
        losses = [estimator.loss(leaf[i], rollouts.rows(i), counts) for i in parts]
        torch.testing.assert_close(sum(losses), whole)
        (got,) = torch.autograd.grad(sum(losses), leaf)
        torch.testing.assert_close(got, want)
    if mode in ("token-mean", "seq-mean-token-mean"):  # the trap: means of parts are not parts of the mean
        local = sum(estimator.loss(leaf[i], rollouts.rows(i)) for i in torch.arange(7).split([2, 5]))
        assert not torch.allclose(torch.autograd.grad(local / 2, leaf)[0], want)


def test_aggregations_by_hand():
    x = torch.tensor([[1.0, 2.0, torch.nan], [4.0, torch.nan, torch.inf], [torch.nan] * 3])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0]]).bool()
    values = [aggregate(x, mask, mode, length=length(mode)).item() for mode in MODES]
    assert values == pytest.approx([7 / 3, (1.5 + 4) / 2, 7 / 2, 7 / 18])
    y = torch.arange(6.0).view(2, 3)
    assert [aggregate(y, None, mode, length=length(mode)).item() for mode in MODES] == pytest.approx(
        [2.5, 2.5, 7.5, 7.5 / 9]
    )
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    assert [aggregate(y, nothing, mode, length=length(mode)).item() for mode in MODES] == [0.0] * 4


def test_what_stands_outside_the_mask_has_no_influence():
    x, rollouts = ragged()
    hole = ~rollouts.mask
    dirty = rollouts.replace(
        old_log_probs=rollouts.old_log_probs.masked_fill(hole, torch.nan),
        advantages=rollouts.advantages.masked_fill(hole, torch.inf),
    )
    for name in ("dapo", "gspo", "gmpo", "sapo", "vespo", "cispo"):
        gradients = []
        for given in (rollouts, dirty):
            leaf = x.clone().requires_grad_()
            given = given.replace(advantages=rollouts.advantages[:, 0]) if name != "dapo" else given
            gradients.append(torch.autograd.grad(recipe(name).loss(leaf, given), leaf)[0])
        assert torch.equal(*gradients), name
        assert (gradients[0][hole] == 0).all()
    (gradient,) = torch.autograd.grad(
        score_loss(dirty.advantages, leaf.masked_fill(hole, -torch.inf), rollouts.mask), leaf
    )
    assert gradient.isfinite().all()


def outcome(estimator, rollouts, said, **options):
    """The loss and its gradients by what the policy says: log pi, entropy, values."""
    log_probs, entropy, predicted = leaves = [t.clone().requires_grad_() for t in said]
    loss = estimator.loss(log_probs, rollouts, entropy=entropy, predicted_values=predicted, **options)
    return [loss.detach(), *torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)]


def rows(log_probs, mask):
    """A group loss of nothing but the sums of rows."""
    return sequence_sum(log_probs, mask)


def even(entropy):
    """A regularizer of one's own."""
    return (entropy - 0.5).square()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["none", *REGULARIZERS, even])
def test_regularizers_do_not_see_what_stands_outside_the_mask(name, bad):
    """Loss and gradients bit for bit, in either form of the score; stored fields and what the policy says."""
    x, rollouts = ragged()
    hole, said = ~rollouts.mask, torch.stack([x, x.square(), x.cos()])
    fields = {
        "old_log_probs": rollouts.old_log_probs,
        "ref_log_probs": rollouts.old_log_probs + 0.3,
        "returns": x.sin(),
        "values": 0.5 * x,
    }
    spoilt = {field: value.masked_fill(hole, bad) for field, value in fields.items()}
    terms = [] if name == "none" else [(name, 0.1)]
    estimator, group = compose(mask="ppo_clip", regularizers=terms), group_loss(rows, regularizers=terms)
    for kind, options in ((estimator, {}), (estimator, {"twice": True}), (group, {})):
        clean = outcome(kind, rollouts.replace(**fields), said, **options)
        dirty = outcome(kind, rollouts.replace(**spoilt), said.masked_fill(hole, bad), **options)
        assert all(torch.equal(a, b) for a, b in zip(clean, dirty, strict=True))
        assert all(bool(a.isfinite().all()) for a in dirty)
        assert all(bool((a[hole] == 0).all()) for a in dirty[1:])
        assert name == "none" or any(bool(a.any()) for a in clean[1:])


def test_second_derivatives_do_not_see_it_either():
    x, rollouts = ragged()
    zero, found = torch.zeros((), dtype=x.dtype), []
    for start in (x, x.masked_fill(~rollouts.mask, -torch.inf)):
        loss = functional(compose(mask="ppo_clip"), lambda theta, _, s=start: theta * x.cos() + s, twice=True)
        found.append(torch.func.hessian(loss)(zero, rollouts))
    assert torch.equal(*found)
    assert found[0] != 0


def test_supervised_fine_tuning_is_cross_entropy():
    """Property 4, first half."""
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 4, 11, generator=g, dtype=torch.float64, requires_grad=True)
    tokens = torch.randint(11, (5, 4), generator=g)
    mask = torch.rand(5, 4, generator=g) < 0.7
    log_probs = logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    estimator = recipe("sft")
    loss = estimator.loss(log_probs, estimator.prepare(Rollouts(mask=mask)))
    targets = tokens.masked_fill(~mask, -100)
    want = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)
    torch.testing.assert_close(loss, want)
    (got,), (expected,) = torch.autograd.grad(loss, logits), torch.autograd.grad(want, logits)
    torch.testing.assert_close(got, expected)


def test_luffy_weighs_most_where_p_is_gamma():
    """Property 4, second half."""
    p = torch.tensor([[1e-4, 0.02, 0.1, 0.3, 0.999]], dtype=torch.float64)
    estimator = recipe("luffy")
    w = estimator.weights(p.log(), Rollouts(advantages=torch.ones(1, 5)))
    torch.testing.assert_close(w, p * 0.1 / (p + 0.1).square())
    assert w.argmax() == 2
    assert w.max().item() == pytest.approx(0.25)


def hpt_gradient(x, rollouts, gate):
    """HPT as a composition: one rule for the rows, two estimators."""
    keep = solved_gate(rollouts.rewards, rollouts.group_ids, rollouts.demo, gate=gate)
    counts = count(rollouts.mask)
    total = 0.0
    for name, rows in (("grpo", ~rollouts.demo), ("sft", rollouts.demo)):
        index = torch.where(rows)[0]
        estimator = recipe(name, aggregation="seq-mean-token-mean")
        given = estimator.prepare(rollouts.rows(index))
        given = given.replace(mask=given.mask & keep[index, None])
        total = total + estimator.loss(x[index], given, counts)
    return torch.autograd.grad(total, x)[0]


def test_hpt_switches_between_grpo_and_sft():
    """Property 6."""
    g = torch.Generator().manual_seed(2)
    x = (-torch.rand(12, 5, generator=g, dtype=torch.float64)).requires_grad_()
    mask = torch.ones(12, 5, dtype=torch.bool)
    mask[::3, 3:] = False
    rollouts = Rollouts(
        mask=mask,
        old_log_probs=x.detach() + 0.1,
        rewards=torch.tensor([0, 0, 1, 0, 0, 0, 1, 1, 0, 1, 0, 0]).double(),
        group_ids=torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 2, 1, 1]),
        demo=torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0]).bool(),
    )
    samples, demos = ~rollouts.demo, rollouts.demo
    grpo, sft = hpt_gradient(x, rollouts, -1), hpt_gradient(x, rollouts, 8)
    assert (grpo[demos] == 0).all()
    assert (sft[samples] == 0).all()
    alone = recipe("grpo")
    batch = alone.prepare(rollouts.rows(samples))
    (want,) = torch.autograd.grad(alone.loss(x[samples], batch, count(mask)), x)
    torch.testing.assert_close(grpo, want)
    lengths = mask.sum(dim=1, keepdim=True)
    torch.testing.assert_close(sft[demos], (-mask.double() / lengths / 12.0)[demos])
    mixed = hpt_gradient(x, rollouts, 0)  # groups 0 and 1 are unsolved, group 2 has two successes
    solved = rollouts.group_ids == 2
    torch.testing.assert_close(mixed, torch.where(solved[:, None], grpo, sft))
    assert (mixed[samples & ~solved] == 0).all()
    assert (mixed[demos & ~solved] != 0).any()


def test_gaussian_bandit():
    """Property 8: E[A (a - mu) / sigma^2], on (B, 1) log-probabilities of a continuous action."""
    mu, sigma = torch.tensor(0.3, dtype=torch.float64, requires_grad=True), 0.7
    a = torch.linspace(-3, 3, 2001, dtype=torch.float64)[:, None]
    log_probs = -0.5 * ((a - mu) / sigma) ** 2
    estimator = recipe("reinforce")
    rollouts = estimator.prepare(Rollouts(rewards=(a - 1.0).square(), group_ids=torch.arange(2001)))
    (got,) = torch.autograd.grad(-estimator.loss(log_probs, rollouts), mu)
    torch.testing.assert_close(got, ((a - 1.0).square() * (a - mu.detach()) / sigma**2).mean())


def test_expected_gradient_of_a_softmax_bandit():
    """sum_a pi_a A_a grad log pi_a = pi_a (A_a - E A): in closed form over the logits, by old-policy ratios too."""
    logits = torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64, requires_grad=True)
    a = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    old = torch.full((3, 1), 1 / 3, dtype=torch.float64).log()  # one action each, drawn uniformly
    rollouts = Rollouts(old_log_probs=old, advantages=a)
    (got,) = torch.autograd.grad(-compose().loss(logits.log_softmax(0)[:, None], rollouts), logits)
    pi = logits.detach().softmax(0)
    torch.testing.assert_close(got, pi * (a - (pi * a).sum()))


def test_second_derivatives_hold_the_outer_product_on_request():
    """One step: the Hessian of E[A] is E[A (grad log pi grad log pi^T + Hess log pi)]; without ``twice`` half is lost."""
    theta = torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64)
    a = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    pi = theta.softmax(0)
    hessian = torch.autograd.functional.hessian
    truth = hessian(lambda t: -(t.softmax(0) * a).sum(), theta)

    def log_probs(t, rollouts):
        return t.log_softmax(0)[:, None]

    rollouts = Rollouts(advantages=3 * pi * a)  # an infinite sample: every action with its probability
    estimator = compose(denominator="current")
    once, twice = (functional(estimator, log_probs, twice=flag) for flag in (False, True))
    torch.testing.assert_close(hessian(lambda t: twice(t, rollouts), theta), truth)
    assert not torch.allclose(hessian(lambda t: once(t, rollouts), theta), truth)
    gradients = [torch.func.grad(lambda t, f=f: f(t, rollouts))(theta) for f in (once, twice)]
    torch.testing.assert_close(*gradients)


def test_masks_and_shapings_multiply():
    x, rollouts = ragged()
    rollouts = rollouts.replace(rollout_log_probs=rollouts.old_log_probs - 0.2)
    both = compose(mask=["ppo_clip", "icepop"], shaping=[("mismatch", {"cap": 1.1}), "sapo"])
    r = (x - rollouts.old_log_probs).exp()
    tau = torch.where(rollouts.advantages > 0, torch.ones_like(r), torch.full_like(r, 1.05))
    gate = torch.sigmoid(tau * (r - 1))
    want = r * rollouts.advantages * ppo_clip(r, rollouts.advantages) * 1.1 * 4 * gate * (1 - gate)
    torch.testing.assert_close(both.weights(x, rollouts), want.where(rollouts.mask, 0.0))


def test_a_function_of_ones_own_reads_fields_by_name():
    def parity(advantages, group_ids, *, factor=1.0):
        return advantages * (group_ids % 2) * factor

    rollouts = ragged()[1]
    rollouts = rollouts.replace(rewards=torch.rand(7), group_ids=torch.arange(7), advantages=None)
    estimator = compose(advantage=["outcome", (parity, {"factor": 2.0})], denominator="current")
    got = estimator.advantages(rollouts)
    torch.testing.assert_close(got, rollouts.rewards * 2.0 * torch.tensor([0, 1, 0, 1, 0, 1, 0]))
    assert estimator.needs() == {"rewards", "group_ids"}


def test_diagnostics_count_stopped_steps():
    x, rollouts = ragged()
    r = (x - rollouts.old_log_probs).exp()
    stopped = ~ppo_clip(r, rollouts.advantages) & rollouts.mask
    got = compose(mask="ppo_clip").diagnostics(x, rollouts)
    assert got["clip_fraction"].item() == pytest.approx((stopped.sum() / rollouts.mask.sum()).item())
    d = (x - rollouts.old_log_probs)[rollouts.mask]
    torch.testing.assert_close(got["approx_kl"], (d.exp() - 1 - d).mean())


def test_diagnostics_and_losses_stay_finite_at_any_ratio():
    d = torch.tensor([[-1e3, 1e3, 0.1]])
    rollouts = Rollouts(old_log_probs=torch.zeros(1, 3), group_ids=torch.zeros(1), advantages=torch.ones(1))
    for estimator in (compose(mask="ppo_clip"), group_loss(rows)):
        given = rollouts.replace(mask=torch.ones(1, 3, dtype=torch.bool))
        assert all(bool(x.isfinite()) for x in estimator.diagnostics(d, given).values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_log_probs_count_in_float32(dtype):
    """A ratio of 1.001 is 1 in bfloat16, and a sum of many steps overflows in float16: trl's may come so."""
    g = torch.Generator().manual_seed(0)
    x, mask = (-3.0 * torch.rand(64, 512, generator=g)).to(dtype), torch.rand(64, 512, generator=g) < 0.9
    rollouts = Rollouts(
        mask=mask,
        old_log_probs=x + (0.01 * torch.randn(64, 512, generator=g)).to(dtype),
        ref_log_probs=x,
        group_ids=torch.arange(64) % 8,
        advantages=torch.randn(64, generator=g),
    )
    for estimator in (recipe("gspo", regularizers=[("k3", 0.1)]), group_loss(rows)):
        leaves = [x.clone().requires_grad_(), x.float().requires_grad_()]
        half, full = (estimator.loss(leaf, rollouts) for leaf in leaves)
        assert half.dtype == torch.float32
        assert torch.equal(half, full)
        (got,), (want,) = (
            torch.autograd.grad(loss, leaf) for loss, leaf in zip((half, full), leaves, strict=True)
        )
        assert torch.equal(got, want.to(dtype))
        assert estimator.diagnostics(x, rollouts) == estimator.diagnostics(x.float(), rollouts)
        assert torch.equal(estimator.surrogate(x, rollouts), estimator.surrogate(x.float(), rollouts))
        assert torch.equal(estimator.weights(x, rollouts), estimator.weights(x.float(), rollouts))


def test_a_positive_coefficient_adds_its_term_to_the_loss():
    x, rollouts = ragged()
    x.requires_grad_()
    rollouts = rollouts.replace(ref_log_probs=rollouts.old_log_probs)
    entropy = x.exp()
    with_terms = compose(regularizers=[("negative_entropy", 0.3), ("k2", 0.2)]).loss(
        x, rollouts, entropy=entropy
    )
    terms = 0.1 * (x - rollouts.ref_log_probs).square() - 0.3 * entropy
    torch.testing.assert_close(
        with_terms - compose().loss(x, rollouts), aggregate(terms, rollouts.mask, "token-mean")
    )


def test_the_dual_clip_bounds_the_surrogate_of_bad_steps_alone():
    rollouts = Rollouts(old_log_probs=torch.zeros(2, 1), advantages=torch.tensor([1.0, -1.0]))
    x = torch.full((2, 1), 5.0).log()
    value = compose(mask=("dual_clip", {"limit": 3.0})).surrogate(x, rollouts)
    assert value.item() == pytest.approx(-(5.0 - 3.0) / 2)


def test_several_advantages_a_step_are_added_up_each_clipped_by_its_own_sign():
    x, rollouts = ragged()
    x.requires_grad_()
    both = torch.stack([rollouts.advantages, -0.5 * rollouts.advantages.flip(0)], dim=-1)
    estimator, whole = compose(mask="ppo_clip"), rollouts.replace(advantages=both)
    parts = [rollouts.replace(advantages=a) for a in both.unbind(-1)]
    for of in (estimator.loss, estimator.surrogate, estimator.weights):
        torch.testing.assert_close(of(x, whole), sum(of(x, part) for part in parts))
    shares = [estimator.diagnostics(x, part)["clip_fraction"] for part in parts]
    torch.testing.assert_close(estimator.diagnostics(x, whole)["clip_fraction"], sum(shares) / 2)


def test_a_composed_loss_compiles_into_one_graph():
    x, rollouts = ragged()
    estimator = compose(mask=["clip_higher", "dual_clip"])
    compiled = torch.compile(estimator.loss, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x, rollouts), estimator.loss(x, rollouts))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask": "ppo"}, "unknown mask 'ppo'; known are .*ppo_clip"),
        ({"denominator": "nobody"}, "unknown denominator"),
        ({"mask": ("ppo_clip", {"epsilon": 0.2})}, "ppo_clip has no setting 'epsilon'; it has: high, low"),
        ({"aggregation": "mean"}, "unknown aggregation 'mean'"),
        ({"aggregation": "fixed-length"}, "takes a length"),
        ({"length": 3}, "takes a length"),
        ({"aggregation": "fixed-length", "length": 0}, "1 or more"),
        ({"regularizers": [("k4", 0.1)]}, "unknown regularizer"),
    ],
)
def test_mistakes_are_found_when_composing(arguments, message):
    with pytest.raises(ValueError, match=message):
        compose(**arguments)


def test_settings_of_a_function_of_ones_own_are_keyword_only():
    def loose(advantages, factor=2.0):
        return advantages * factor

    with pytest.raises(ValueError, match="'factor' must be keyword-only"):
        compose(advantage=loose)


def test_a_missing_field_is_named():
    x, rollouts = ragged()
    with pytest.raises(ValueError, match="'icepop' needs rollout_log_probs"):
        compose(mask="icepop").loss(x, rollouts)
    with pytest.raises(ValueError, match="no advantages"):
        compose().loss(x, rollouts.replace(advantages=None))
    with pytest.raises(ValueError, match="no advantage part"):
        compose().prepare(rollouts.replace(advantages=None))
    with pytest.raises(ValueError, match="needs rewardz, which is missing"):
        compose(advantage=lambda rewardz: rewardz).prepare(rollouts)


@pytest.mark.parametrize(
    "column", ["log_probs", "old_log_probs", "advantages", "returns", "predicted_values"]
)
def test_a_column_beside_flat_steps_is_refused(column):
    """(B, 1) with (B,) makes (B, B), of which a mean can be taken all the same."""
    given = {name: torch.randn(5) for name in ("log_probs", "old_log_probs", "advantages", "returns")}
    given["predicted_values"] = torch.randn(5)
    given[column] = given[column][:, None]
    log_probs, predicted = given.pop("log_probs").requires_grad_(), given.pop("predicted_values")
    estimator = compose(advantage="whiten", mask="ppo_clip", regularizers=[("value_loss", 0.5)])
    with pytest.raises(ValueError, match=r"the parts together \(5, 5\): look for a tensor \(B, 1\)"):
        estimator.loss(log_probs, estimator.prepare(Rollouts(**given)), predicted_values=predicted)


def test_a_regularizer_needs_its_coefficient():
    for wrong in ("k3", "k1+", ("k3",)):
        with pytest.raises(ValueError, match=r"regularizers are pairs \(part, coefficient\)"):
            compose(advantage="ones", regularizers=[wrong])


@pytest.mark.parametrize("wrong", [["old", "one"], ()])
def test_there_is_one_denominator(wrong):
    """The others of a list would be dropped without a word."""
    with pytest.raises(ValueError, match=f"there is one denominator, got {len(wrong)}"):
        compose(denominator=wrong)


@pytest.mark.parametrize("name", ["gae", "returns_to_go", "n_step"])
def test_outcomes_are_no_rewards_of_steps(name):
    given = Rollouts(rewards=torch.ones(3), values=torch.zeros(3, 2), next_values=torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"one a step, \(B, T\), got shape \(3,\)"):
        compose(advantage=name).prepare(given)


@pytest.mark.parametrize("name", ["group_mean", "group_std", "group_leave_one_out"])
@pytest.mark.parametrize("shape", [(4, 1), (4, 3), ()])
def test_groups_compare_one_value_a_row(name, shape):
    given = Rollouts(rewards=torch.ones(shape), group_ids=torch.tensor([0, 0, 1, 1]))
    with pytest.raises(ValueError, match="groups compare one value a row"):
        compose(advantage=name).prepare(given)


def test_no_steps_are_none():
    given = Rollouts(rewards=torch.ones(1, 2), values=torch.zeros(1, 2), next_values=torch.zeros(1, 2))
    with pytest.raises(ValueError, match="n_step needs 1 step or more, got 0"):
        compose(advantage=("n_step", {"steps": 0})).prepare(given)
