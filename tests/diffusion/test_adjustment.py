"""Adjusted policies with scores in closed form: the rule itself, units, bounds, what is saved and what is refused."""

import dataclasses
import math

import pytest
import torch

from offrl.diffusion.adjustment import Adjustment, CDSAModel, CDSAPolicy
from offrl.errors import ConfigError, PolicyError
from offrl.nn.policy import (
    DeterministicPolicy,
    SquashedGaussianPolicy,
    load_policy,
    save_policy,
)
from offrl.nn.random_policy import RandomPolicy

LOW, HIGH = [-2.0, 0.0], [2.0, 4.0]  # center (0, 2), half-range 2


class Exact(CDSAModel):
    """A model with functions in place of networks; ``asked`` records the displacements given to the inverse."""

    def __init__(self, step, inverse=None, ahead=None, obs_dim=3, box=(LOW, HIGH)):
        sizes = {"hidden": 8, "blocks": 1, "dynamics_hidden": 4}
        super().__init__(obs_dim, len(box[0]), *box, **sizes, target="joint", sigma_min=0.01, sigma_max=1.0)
        self.step, self.invert, self.move, self.asked = step, inverse, ahead, []

    def denoising_step(self, states, actions, sigma):
        return self.step(states, actions, sigma)

    def inverse(self, states, displacements):
        self.asked.append(displacements)
        return self.invert(states, displacements)

    def ahead(self, states, actions):
        return self.move(states, actions)


def random_model(box=(LOW, HIGH), **changes):
    """A model with random networks and statistics."""
    settings = {"hidden": 16, "blocks": 2, "dynamics_hidden": 8, "target": "joint"}
    settings |= {"sigma_min": 0.01, "sigma_max": 0.5} | changes
    model = CDSAModel(3, 2, *box, **settings)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    model.state_mean.copy_(torch.tensor([1.0, -2.0, 0.0]))
    model.state_std.copy_(torch.tensor([0.5, 2.0, 1.0]))
    model.step_std.copy_(torch.tensor([0.05, 1.0, 0.0]))
    model.step_limit.fill_(1.5)
    return model.eval().requires_grad_(False)


def base_policy(box=(LOW, HIGH)):
    policy = DeterministicPolicy(3, 2, (8,), *box)
    policy.set_normalizer(torch.tensor([0.3, 0.1, -1.0]), torch.tensor([2.0, 0.7, 1.3]))
    return policy.eval().requires_grad_(False)


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["deterministic", "squashed", "random"])
def test_without_alpha_and_beta_it_is_the_base_policy_bit_for_bit(kind):
    """Samples too: the streams are the base's. In this box, to half-ranges and back is not exact."""
    box = ([-0.7, 0.1], [1.9, 3.3])
    made = {"deterministic": base_policy, "squashed": lambda box: SquashedGaussianPolicy(3, 2, (8,), *box)}
    base = made.get(kind, lambda box: RandomPolicy(3, 2, *box))(box)
    policy, o = CDSAPolicy(base, random_model(box), alpha=0.0, beta=0.0, steps=3), numbers(50, 3)
    for deterministic in (True, False):
        own, theirs = (
            p.act(o, deterministic=deterministic, generator=torch.Generator().manual_seed(5))[0]
            for p in (policy, base)
        )
        assert torch.equal(own, theirs)
    assert torch.equal(policy(o), base(o))


@pytest.mark.parametrize("settings", [{"alpha": 50.0}, {"alpha": 3.0, "beta": 2.0, "steps": 3}])
def test_actions_stay_in_the_box_and_do_not_depend_on_the_batch(settings):
    policy, o = CDSAPolicy(base_policy(), random_model(), **settings), 3 * numbers(40, 3)
    actions = policy.act(o)[0]
    assert (actions >= torch.tensor(LOW)).all()
    assert (actions <= torch.tensor(HIGH)).all()
    single = torch.cat([policy.act(row[None])[0] for row in o])
    torch.testing.assert_close(single, actions, rtol=0, atol=1e-3)  # alpha makes rounding 50 times larger


def test_the_step_is_sigma_squared_times_the_score_of_the_network():
    """Against the shared converter: the network puts out noise, alpha of the path is 1."""
    from offrl.diffusion.parameterization import convert

    model, sigma = random_model(), 0.2
    s, a = numbers(6, 3), numbers(6, 2, seed=1)
    z = torch.cat((s, a), dim=1)
    told = torch.full((1, 6), math.log(sigma) / 4)
    noise = model.net(list(model.score_weights), z[None], told)[0]
    score = convert(noise, z, 1.0, sigma, source="eps", target="score")
    found = torch.cat(model.denoising_step(s, a, sigma), dim=1)
    torch.testing.assert_close(found, sigma**2 * score, rtol=1e-4, atol=1e-6)


def test_one_step_at_alpha_one_lands_on_the_only_point_of_the_data():
    """The score of one point z0 is (z0 - z) / sigma^2 (cdsa sheet 8.3); alpha 0.25 goes a quarter of the way."""
    unit0 = torch.tensor([0.5, -0.25])
    model = Exact(lambda s, a, sigma: (torch.zeros_like(s), unit0 - a))
    o, base = numbers(9, 3), base_policy()
    landed = CDSAPolicy(base, model, alpha=1.0).act(o)[0]
    target = torch.tensor([0.0, 2.0]) + 2 * unit0
    torch.testing.assert_close(landed, target.expand(9, 2))
    quarter = CDSAPolicy(base, model, alpha=0.25).act(o)[0]
    torch.testing.assert_close(quarter, base(o) + 0.25 * (target - base(o)))
    twice = CDSAPolicy(base, model, alpha=0.25, steps=2).act(o)[0]
    torch.testing.assert_close(twice, base(o) + (1 - 0.75**2) * (target - base(o)))


def two_clusters(sigma):
    """E[a clean | a] - a for clusters at -1 and 1 of sd 0.1."""
    total = 0.01 + sigma**2

    def step(s, a, _):
        score = (torch.tanh(a / total) - a) / total
        return torch.zeros_like(s), sigma**2 * score

    return step


def test_repeated_steps_seek_a_mode_and_do_not_average():
    """From 0.3 to the cluster at 1, from -0.1 to that at -1; from exactly 0 nowhere (cdsa sheet 8.4)."""

    class Constant(RandomPolicy):
        def forward(self, observations):
            return observations[:, :1]

        def act(self, observations, state=None, **_):
            return self.forward(observations), state

    box = ([-1.0], [1.0])
    policy = CDSAPolicy(
        Constant(1, 1), Exact(two_clusters(0.3), obs_dim=1, box=box), alpha=1.0, sigma=0.3, steps=40
    )
    starts = torch.tensor([[0.3], [-0.1], [0.0]])
    assert policy.act(starts)[0].flatten().tolist() == pytest.approx([1.0, -1.0, 0.0], abs=1e-3)
    assert policy.act(torch.zeros(1, 1))[0].item() == 0.0


def test_actions_are_cut_after_the_whole_step_only():
    """d_a = +4 and d_s = -4 in units of the half-range cancel; cut in between they would not."""
    model = Exact(
        lambda s, a, sigma: (torch.zeros_like(s), torch.full_like(a, 4.0)),
        lambda s, d: torch.full((len(s), 2), -4.0),
    )
    base, o = RandomPolicy(3, 2, LOW, HIGH), numbers(5, 3)  # forward: the center, unit action 0
    moved = CDSAPolicy(base, model, alpha=1.0, beta=1.0)(o)
    torch.testing.assert_close(moved, base(o))


def test_the_inverse_is_asked_for_the_raw_displacement_in_its_own_units():
    """s_tgt - s = eta sd_s sigma^2 g_s, divided by the sd of a step; nothing where no step is ever made."""
    of_states = torch.tensor([[0.2, -0.1, 3.0]])
    model = Exact(lambda s, a, sigma: (of_states, torch.zeros_like(a)), lambda s, d: torch.zeros(len(s), 2))
    model.state_std.copy_(torch.tensor([0.5, 2.0, 1.0]))
    model.step_std.copy_(torch.tensor([0.05, 1.0, 0.0]))
    model.step_limit.fill_(100.0)
    CDSAPolicy(base_policy(), model, alpha=0.0, beta=0.5, eta=0.3)(numbers(1, 3))
    torch.testing.assert_close(model.asked[0], 0.3 * torch.tensor([[0.2 * 10, -0.1 * 2, 0.0]]))


def test_a_displacement_is_bounded_and_a_short_one_untouched():
    model = random_model()
    d = torch.tensor([[3.0, 4.0, 0.0], [0.3, 0.4, 0.0], [0.0, 0.0, 0.0]])
    wanted = torch.tensor([[0.9, 1.2, 0.0], [0.3, 0.4, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(model.bounded(d), wanted)
    exact = Exact(
        lambda s, a, sigma: (torch.full_like(s, 9.0), torch.zeros_like(a)),
        lambda s, d: torch.zeros(len(s), 2),
    )
    exact.step_limit.fill_(0.7)
    CDSAPolicy(base_policy(), exact, beta=0.1)(numbers(4, 3))
    torch.testing.assert_close(exact.asked[0].norm(dim=1), torch.full((4,), 0.7))
    model.step_limit.zero_()  # states that stand still in 99 % of the rows
    assert model.bounded(d).eq(0).all(), "0 / 0 is no number"


def linear(box=([-1.0] * 2, [1.0] * 2)):
    """s' = s + B a with its pseudo-inverse; the score pulls states to 0 by a fifth."""
    b = torch.tensor([[0.1, 0.0], [0.0, 0.2], [0.1, 0.1]])
    model = Exact(
        lambda s, a, sigma: (-0.2 * s, torch.zeros_like(a)),
        lambda s, d: d @ torch.linalg.pinv(b).T,
        lambda s, a: a @ b.T,
        box=box,
    )
    model.step_limit.fill_(1e6)
    return model, b


@pytest.mark.parametrize("state_ref", ["current", "next"])
def test_the_state_correction_is_the_pseudo_inverse_of_the_displacement(state_ref):
    """current: I(s, s + d) = B^+ d; next: I(s, f(s, a) + d) - a = B^+ d (cdsa sheet 4.3), d the pull on that state."""
    model, b = linear()
    base, o = RandomPolicy(3, 2), 0.1 * numbers(7, 3)
    moved = CDSAPolicy(base, model, alpha=0.0, beta=0.5, state_ref=state_ref)(o)
    pinv = torch.linalg.pinv(b)
    torch.testing.assert_close(moved, 0.5 * (-0.2 * o) @ pinv.T)

    class Fixed(RandomPolicy):
        def forward(self, observations):
            return torch.full((len(observations), 2), 0.2)

    moved = CDSAPolicy(Fixed(3, 2), model, alpha=0.0, beta=1.0, state_ref=state_ref)(o)
    a = torch.tensor([0.2, 0.2])
    d = -0.2 * (o if state_ref == "current" else o + a @ b.T)
    torch.testing.assert_close(moved, d @ pinv.T + (0.0 if state_ref == "current" else a))
    half = CDSAPolicy(Fixed(3, 2), model, alpha=0.0, beta=1.0, eta=0.5, state_ref=state_ref)(o)
    torch.testing.assert_close(half, 0.5 * d @ pinv.T + (0.0 if state_ref == "current" else a))


def test_each_component_normalizes_for_itself():
    """Shifting and scaling what the base subtracts changes its action only, not what the model sees."""
    seen = []

    def step(s, a, sigma):
        seen.append(s)
        return torch.zeros_like(s), torch.zeros_like(a)

    model, o = Exact(step), numbers(4, 3)
    model.state_mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
    model.state_std.copy_(torch.tensor([0.5, 2.0, 4.0]))
    base = base_policy()
    actions = CDSAPolicy(base, model, alpha=0.5)(o)
    torch.testing.assert_close(seen[0], (o - model.state_mean) / model.state_std)
    torch.testing.assert_close(actions, base(o))


def test_it_is_saved_with_its_parents_and_acts_the_same(tmp_path):
    policy = CDSAPolicy(base_policy(), random_model(), alpha=0.3, beta=0.2, steps=2, state_ref="next")
    save_policy(policy, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "base",
        "model",
        "policy.json",
        "policy.safetensors",
    ]
    loaded, o = load_policy(tmp_path), numbers(9, 3)
    assert isinstance(loaded, CDSAPolicy)
    assert loaded.adjustment == policy.adjustment
    assert torch.equal(loaded.act(o)[0], policy.act(o)[0])
    assert torch.equal(load_policy(tmp_path / "base").act(o)[0], policy.base.act(o)[0])
    assert (tmp_path / "policy.safetensors").stat().st_size < 1000, "the parents' weights are theirs"


def test_a_policy_of_an_adjusted_policy_is_saved_too(tmp_path):
    once = CDSAPolicy(base_policy(), random_model(), alpha=0.3)
    twice = CDSAPolicy(once, random_model(target="cond_action"), alpha=0.2)
    save_policy(twice, tmp_path)
    o = numbers(9, 3)
    assert torch.equal(load_policy(tmp_path).act(o)[0], twice.act(o)[0])


def test_policies_inside_policies_end(tmp_path):
    policy, model = base_policy(), random_model()
    for _ in range(4):
        policy = CDSAPolicy(policy, model, alpha=0.3)
    save_policy(policy, tmp_path)
    with pytest.raises(PolicyError, match="more than 3 deep"):
        load_policy(tmp_path)
    load_policy(tmp_path / "base")
    (tmp_path / "model/policy.json").unlink()
    (tmp_path / "model/policy.safetensors").unlink()
    (tmp_path / "model").rmdir()
    (tmp_path / "model").symlink_to(tmp_path)
    with pytest.raises(PolicyError, match="more than 3 deep"):
        load_policy(tmp_path)


def test_a_missing_or_foreign_parent_is_refused(tmp_path):
    save_policy(CDSAPolicy(base_policy(), random_model(), alpha=0.3), tmp_path)
    save_policy(DeterministicPolicy(3, 2, (8,), [-1.0] * 2, [1.0] * 2), tmp_path / "base")
    with pytest.raises(PolicyError, match="different action boxes"):
        load_policy(tmp_path)
    save_policy(base_policy(), tmp_path / "model")
    with pytest.raises(PolicyError, match="needs a run of cdsa, not a deterministic policy"):
        load_policy(tmp_path)
    (tmp_path / "model/policy.json").unlink()
    with pytest.raises(FileNotFoundError, match="model/policy.json"):
        load_policy(tmp_path)


def test_the_model_itself_does_not_act_and_comes_back_whole(tmp_path):
    model = random_model()
    save_policy(model, tmp_path)
    loaded = load_policy(tmp_path)
    assert all(torch.equal(a, loaded.state_dict()[n]) for n, a in model.state_dict().items())
    with pytest.raises(PolicyError, match="does not act; .* offrl eval SOURCE --adjust RUN"):
        loaded.act(numbers(1, 3))
    with pytest.raises(PolicyError, match="does not act: adjust a policy with it"):
        CDSAPolicy(model, model)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1, -1])
def test_numbers_out_of_range_are_refused(value):
    for field in dataclasses.fields(Adjustment):
        if field.type in ("float", float):
            with pytest.raises(ConfigError, match=field.name):
                Adjustment(**{field.name: value})


def test_what_does_not_fit_is_refused():
    base = base_policy()
    with pytest.raises(PolicyError, match=r"the policy has O=4, A=2, the CDSA model O=3, A=2"):
        CDSAPolicy(DeterministicPolicy(4, 2, (8,), LOW, HIGH), random_model())
    with pytest.raises(ConfigError, match=r"trained at noise levels 0.01 .. 0.5, not at sigma 0.6"):
        CDSAPolicy(base, random_model(), sigma=0.6)
    with pytest.raises(ConfigError, match=r"levels 0.3 .. 0.3, not at sigma 0.1"):
        CDSAPolicy(base, random_model(sigma_min=0.3, sigma_max=0.3))
    with pytest.raises(ConfigError, match="beta needs scores of the states"):
        CDSAPolicy(base, random_model(target="cond_action"), beta=0.1)
    for wrong in ({"steps": 0}, {"sigma": 0.0}, {"state_ref": "last"}):
        with pytest.raises(ConfigError):
            Adjustment(**wrong)
    for wrong in ({"target": "x"}, {"sigma_min": 0.6}, {"hidden": 0}):
        with pytest.raises(PolicyError):
            random_model(**wrong)
