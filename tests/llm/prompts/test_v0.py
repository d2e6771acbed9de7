"""V_0: the adapter at its start, both losses, and what a head knows of policies it never saw."""

import math

import pytest
import torch

from offrl.errors import ConfigError
from offrl.llm.prompts import v0
from offrl.llm.prompts.v0 import QueryAdapter, auc, logistic
from offrl.llm.text import Prompts


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def adapter(seed=0, **sizes):
    torch.manual_seed(seed)
    return QueryAdapter(**{"width": 12, "queries": 4, "hidden": 8, **sizes})


def test_at_first_features_depend_on_the_set_of_tokens_alone():
    """The generator's last layer starts at 0, so that which token is last does not matter."""
    made, states = adapter(), torch.randn(3, 5, 12, generator=generator())
    mask = torch.ones(3, 5, dtype=torch.bool)
    order = torch.tensor([4, 2, 0, 1, 3])
    torch.testing.assert_close(made(states, mask), made(states[:, order], mask), atol=1e-6, rtol=0)
    torch.nn.init.normal_(made.generator[-1].weight)
    assert not torch.allclose(made(states, mask), made(states[:, order], mask), atol=1e-3)


def test_features_do_not_depend_on_padding_on_the_left():
    made, states = adapter(), torch.randn(2, 5, 12, generator=generator())
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]).bool()
    torch.nn.init.normal_(made.generator[-1].weight)
    alone = made(states[:1, 2:], mask[:1, 2:])
    torch.testing.assert_close(made(states, mask)[:1], alone, atol=1e-6, rtol=0)


def test_the_head_is_the_penalized_maximum():
    """Gradient of the penalized likelihood is 0 at the weights found; on standardized features."""
    x = torch.randn(60, 3, generator=generator(), dtype=torch.float64)
    r = (x[:, 0] + 0.3 * torch.randn(60, generator=generator(1), dtype=torch.float64)).sigmoid()
    z = torch.cat([torch.ones(60, 1).double(), (x - x.mean(0)) / (x.std(0) + 1e-6)], dim=1)
    scores = logistic(x, r, x)
    w = torch.linalg.lstsq(z, scores[:, None]).solution[:, 0]
    torch.testing.assert_close(z @ w, scores, atol=1e-8, rtol=0)
    penalty = torch.tensor([0.01, 1.0, 1.0, 1.0]).double() * w
    assert float((z.T @ (scores.sigmoid() - r) + penalty).abs().max()) < 1e-8


def test_gradients_flow_through_the_head():
    x = torch.randn(40, 2, generator=generator(), dtype=torch.float64).requires_grad_()
    r = (torch.rand(40, generator=generator(1)) < 0.5).double()
    q = torch.randn(3, 2, generator=generator(2), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: logistic(x, r, q), (x,), eps=1e-6, atol=1e-6)


def test_what_a_context_adds_to_all_scores_does_not_count_in_the_ranking():
    above, below = (torch.randn(6, generator=generator(i), requires_grad=True) for i in (0, 1))
    shift = torch.tensor(3.7)
    for a, b in ((above, below), (above + shift, below + shift)):
        gradients = torch.autograd.grad(v0.rank_loss(a, b), (above, below))
        if shift == 3.7:
            first, shift = gradients, torch.tensor(3.70001)
            want = -(below - above).sigmoid() / 6
            torch.testing.assert_close(first[0], want.detach())
        else:
            torch.testing.assert_close(gradients, first)
    assert float(first[0].sum() + first[1].sum()) == pytest.approx(0.0, abs=1e-6)


def test_both_losses_are_weighted():
    above, below = torch.tensor([1.0, 0.5]), torch.tensor([0.0, -1.0])
    rates = torch.tensor([[1.0, 0.8], [0.0, 0.1]])
    scores = torch.stack([above, below])
    rank = sum(math.log(1 + math.exp(-float(a - b))) for a, b in zip(above, below, strict=True)) / 2
    p = scores.sigmoid()
    entropy = float(-(rates * p.log() + (1 - rates) * (1 - p).log()).mean())
    assert float(v0.both_losses(above, below, rates)) == pytest.approx(0.25 * rank + 0.75 * entropy, abs=1e-6)
    assert float(v0.both_losses(above, below, rates, 1.0)) == pytest.approx(rank, abs=1e-6)


def skilled(seed, prompts, width=16):
    """A policy of logistic skill: phi (N, D), success (N,)."""
    g = generator(seed)
    theta = torch.randn(width, generator=g, dtype=torch.float64) * 1.2 / math.sqrt(width)
    phi = torch.randn(prompts, width, generator=g, dtype=torch.float64)
    p = (2.0 * phi @ theta + torch.randn((), generator=g)).sigmoid()
    return phi, (torch.rand(prompts, generator=g) < p).double()


def area(seed, known):
    phi, r = skilled(seed, known + 400)
    scores = logistic(phi[:known], r[:known], phi[known:])
    return auc(scores, r[known:] > 0)


def test_policies_never_seen_are_ranked_and_better_with_a_longer_context():
    """The mean of a context ranks at 0.5; no weight is changed from policy to policy."""
    means = [sum(area(seed, n) for seed in range(12)) / 12 for n in (32, 128, 256, 512)]
    assert means[0] > 0.55
    assert means == sorted(means)
    assert means[-1] > 0.8


def test_auc_counts_pairs():
    scores, right = torch.tensor([0.1, 0.4, 0.4, 0.9]), torch.tensor([0, 1, 0, 1]).bool()
    assert auc(scores, right) == pytest.approx(3.5 / 4)


def worlds(count, seed, prompts=160, width=12, tokens=3):
    """Skills are logistic in two hidden directions of the states, and policies differ in how good they are at all."""
    g = generator(seed)
    found = []
    for _ in range(count):
        states = torch.randn(prompts, tokens, width, generator=g)
        theta = torch.randn(2, generator=g) * 2.0
        level = 1.5 * torch.randn((), generator=g)
        p = (states.mean(dim=1)[:, :2] * math.sqrt(tokens) @ theta + level).sigmoid()
        rates = (torch.rand(prompts, generator=g) < p).float()
        mask = torch.ones(prompts, tokens, dtype=torch.bool)
        found.append(v0.Outcomes(states, mask, rates))
    return found


def within(made, episodes, known=96):
    areas = []
    for e in episodes:
        with torch.no_grad():
            f = made(e.states, e.mask)
        areas.append(auc(logistic(f[:known], e.rates[:known], f[known:]), e.rates[known:] > 0))
    return sum(areas) / len(areas)


def test_training_lowers_the_loss_and_ranks_better():
    made = adapter()
    fresh = worlds(12, 99)
    before = within(made, fresh)
    losses = v0.train(made, worlds(20, 1), steps=120, generator=generator(), context=96, lr=1e-2)
    assert sum(losses[-30:]) < sum(losses[:30])
    assert within(made, fresh) > before + 0.02


def test_what_is_asked_is_no_part_of_the_context():
    """Nor are there more pairs in it than asked for; each side gives as many, the shorter one again and again."""
    contexts = []

    def head(known, rates, asked):
        contexts.append((known.detach(), asked.detach()))
        return logistic(known, rates, asked)

    (world,) = worlds(1, 5)
    few = torch.cat([(world.rates > 0).nonzero()[:3, 0], (world.rates == 0).nonzero()[:40, 0]])
    some = v0.Outcomes(world.states[few], world.mask[few], world.rates[few])
    v0.train(adapter(), [some], steps=5, generator=generator(), context=30, head=head)
    for known, asked in contexts:
        assert len(known) <= 30
        assert len(asked) == 8
        assert int((torch.cdist(asked[:4], asked[:4]) < 1e-3).sum()) == 4 + 2  # one of three comes twice
        assert float(torch.cdist(known, asked).min()) > 1e-2
    v0.train(adapter(), [some], steps=1, generator=generator(), context=300, head=head)
    assert len(contexts[-1][0]) == 43 - 3 - 4


def test_policies_of_one_class_are_passed_over():
    empty = [v0.Outcomes(torch.zeros(4, 2, 12), torch.ones(4, 2).bool(), torch.ones(4))]
    with pytest.raises(ConfigError, match="both right and wrong"):
        v0.train(adapter(), empty, steps=1, generator=generator())


def test_routing_goes_to_the_policy_that_can_until_its_cost_counts():
    """One policy solves prompts with x > 0, the other all of them at cost 0.4."""
    x = torch.linspace(-2, 2, 80)[:, None].double()
    cheap, dear = (x[:, 0] > 0).double(), torch.ones(80).double()
    asked = torch.tensor([[-1.5], [1.5]]).double()

    def chosen(beta):
        labels = [v0.labels_with_cost(r, c, beta) for r, c in ((cheap, 0.0), (dear, 0.4))]
        return v0.route(asked, [(x, label) for label in labels]).tolist()

    assert v0.labels_with_cost(torch.tensor(1.0), 0.4, 0.75) == pytest.approx(0.75 + 0.25 * 0.6)
    assert chosen(0.75) == [1, 0]
    assert chosen(0.05) == [0, 0]


class Backbone(torch.nn.Module):
    """States are the tokens' own numbers."""

    def __init__(self):
        super().__init__()
        self.head, self.bias = torch.zeros(5, 12), torch.zeros(5)

    def prompt_states(self, tokens, mask):
        g = torch.randn(50, 12, generator=generator(3))
        return g[tokens]


def prompts(count, seed=0):
    tokens = torch.randint(50, (count, 3), generator=generator(seed))
    return Prompts(tokens, torch.ones(count, 3).bool(), tokens[:, 0], tokens[:, 0], tokens[:, 0])


def test_a_run_predicts_from_the_last_pairs_of_its_own(tmp_path):
    made = v0.V0(Backbone(), 64)
    first = prompts(10)
    assert bool(made.predict(first, None).isnan().all())
    solved = lambda p: (Backbone().prompt_states(p.tokens, None)[:, -1, 0] > 0).float()  # noqa: E731
    for seed in range(12):
        made.observe(prompts(10, seed), None, 8 * solved(prompts(10, seed)), torch.full((10,), 8))
    assert made.known.shape == (64, 12)
    fresh = prompts(200, 77)
    assert auc(made.predict(fresh, None), solved(fresh) > 0) > 0.8
    other = v0.V0(Backbone(), 64)
    other.load_state_dict(made.state_dict())
    assert torch.equal(other.predict(fresh, None), made.predict(fresh, None))


def test_a_trained_adapter_comes_back_from_its_file(tmp_path):
    made = adapter()
    torch.nn.init.normal_(made.generator[-1].weight)
    v0.save_adapter(made, tmp_path / "a.safetensors")
    used = v0.V0(Backbone(), 64, str(tmp_path / "a.safetensors"))
    states = Backbone().prompt_states(prompts(4).tokens, None)
    torch.testing.assert_close(used.features(prompts(4)), made(states, prompts(4).mask).detach())
    with pytest.raises(ConfigError, match="states of width 12, this model has 7"):
        v0.load_adapter(tmp_path / "a.safetensors", 7)
    (tmp_path / "b").write_text("x")
    with pytest.raises(ConfigError, match="is no adapter of V_0"):
        v0.load_adapter(tmp_path / "b", 12)


def test_a_table_has_no_states():
    with pytest.raises(ConfigError, match="tiny:table has none"):
        v0.V0(torch.nn.Linear(2, 2), 64)
