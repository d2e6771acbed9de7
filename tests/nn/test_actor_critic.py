"""TD3's machinery: the target, both gradients, the schedule of the updates and the order within one."""

import copy
import dataclasses

import pytest
import torch
from torch import nn

from offrl.errors import ConfigError
from offrl.nn.actor_critic import TD3, ActionBox, TD3Settings
from offrl.nn.mlp import unstack
from offrl.training.check import source_of, tiny_problem
from offrl.training.seeding import normal, streams

LOW, HIGH = torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 4.0])  # center (0, 2), half-range (1, 2)
SETTINGS = TD3Settings(hidden=8, batch_size=16, discount=0.9, tau=0.1, lr=1e-2)


def plain_loss(q, pi, anchor):
    """Any actor loss will do here: minus mean Q_1 plus half the squared distance to the anchor."""
    return -q.mean(dim=1) + 0.5 * (pi - anchor).square().mean(dim=(1, 2)), {}


def make(seeds=(0,), settings=SETTINGS, low=LOW, high=HIGH):
    init, noise = streams(seeds, "init"), streams(seeds, "noise")
    return TD3(3, ActionBox(low, high), settings, plain_loss, init=init, noise=noise)


def draw(seeds=(0,), size=16, index=0):
    problem = tiny_problem(seeds)
    actions = 2 + 2 * problem.actions  # anything: the critic does not ask where actions come from
    problem = dataclasses.replace(
        problem, actions=actions, terminated=(problem.terminated + problem.rewards > 0).float()
    )
    generators = problem.streams("data")
    return [source_of(problem, size).sample(generators) for _ in range(index + 1)][-1]


def sequential(params, g):
    """Network ``g`` as torch's own modules."""
    layers = []
    for weight, bias in unstack(params, g):
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        linear.load_state_dict({"weight": weight, "bias": bias})
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def perturbed(params, members=None):
    """Add noise in place, to networks ``members`` of the stack or all."""
    with torch.no_grad():
        for p in params:
            (p if members is None else p[members]).add_(0.3)


def snapshot(td3):
    nets = {"actor": td3.actor.params, "critic": td3.critic.params}
    targets = {"actor_target": td3.actor.target, "critic_target": td3.critic.target}
    return {name: [p.detach().clone() for p in params] for name, params in (nets | targets).items()}


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# The action box


def test_squash_maps_minus_one_and_one_to_the_ends_of_the_box():
    """center + half-range tanh(u): u = 0 is the center, u -> +-inf the ends; in the unit box it is tanh
    itself.
    """
    box = ActionBox(LOW, HIGH)
    raw = torch.tensor([[0.0, 0.0], [50.0, 50.0], [-50.0, -50.0], [0.5, 0.5]])
    t = torch.tensor(0.5).tanh()
    torch.testing.assert_close(
        box.squash(raw), torch.stack([(LOW + HIGH) / 2, HIGH, LOW, torch.stack([t, 2 + 2 * t])])
    )
    unit = ActionBox(-torch.ones(2), torch.ones(2))
    assert unit.is_unit
    assert not box.is_unit
    assert torch.equal(unit.squash(raw), raw.tanh())


def test_clip_stops_at_each_dimensions_own_bounds():
    far = torch.tensor([[9.0, 9.0], [-9.0, -9.0], [0.5, 3.0]])
    assert ActionBox(LOW, HIGH).clip(far).tolist() == [[1.0, 4.0], [-1.0, 0.0], [0.5, 3.0]]
    assert ActionBox(-torch.ones(2), torch.ones(2)).clip(far).tolist() == [
        [1.0, 1.0],
        [-1.0, -1.0],
        [0.5, 1.0],
    ]


def test_act_and_values_are_those_of_the_single_networks():
    """pi is network s, Q_j network 2 s + j on the observation followed by the action; shapes (S, B, A), (S,
    E, B).
    """
    td3, batch = make((0, 1, 2)), draw((0, 1, 2))
    actions, values = td3.act(td3.actor.params, batch.observations), None
    values = td3.values(td3.critic.params, batch.observations, batch.actions)
    assert actions.shape == (3, 16, 2)
    assert values.shape == (3, 2, 16)
    for s in range(3):
        raw = sequential(td3.actor.params, s)(batch.observations[s])
        torch.testing.assert_close(actions[s], (LOW + HIGH) / 2 + (HIGH - LOW) / 2 * raw.tanh())
        pairs = torch.cat([batch.observations[s], batch.actions[s]], dim=1)
        for j in range(2):
            torch.testing.assert_close(values[s, j], sequential(td3.critic.params, 2 * s + j)(pairs)[:, 0])


# The target


def test_the_target_is_td3s():
    """y = r + gamma (1 - d) min_j Q'_j(s', clip(pi'(s') + half clip(.2 eps, +-.5))), with torch's own
    modules.

    Online and target networks differ, the box is not [-1, 1], and the noise is large enough to be clipped.
    """
    td3, batch = make((0, 1)), draw((0, 1))
    perturbed(td3.actor.target)
    perturbed(td3.critic.target, members=slice(1, 2))
    eps = 3 * torch.randn(batch.actions.shape, generator=torch.Generator().manual_seed(0))
    got = td3.target(batch, eps)
    for s in range(2):
        following = batch.next_observations[s]
        pi = (LOW + HIGH) / 2 + (HIGH - LOW) / 2 * sequential(td3.actor.target, s)(following).tanh()
        noise = torch.clamp(0.2 * eps[s], -0.5, 0.5) * (HIGH - LOW) / 2
        pairs = torch.cat([following, torch.minimum(torch.maximum(pi + noise, LOW), HIGH)], dim=1)
        q = [sequential(td3.critic.target, 2 * s + j)(pairs)[:, 0] for j in range(2)]
        y = batch.rewards[s] + 0.9 * (1 - batch.terminated[s]) * torch.minimum(*q)
        torch.testing.assert_close(got[s], y)
    assert not got.requires_grad


def test_the_target_does_not_look_at_the_online_networks():
    td3, batch = make(), draw()
    eps = torch.randn(batch.actions.shape)
    before = td3.target(batch, eps)
    perturbed(td3.actor.params)
    perturbed(td3.critic.params)
    assert torch.equal(td3.target(batch, eps), before)
    for target in (td3.actor.target, td3.critic.target):
        now = td3.target(batch, eps)
        perturbed(target)
        assert not torch.equal(td3.target(batch, eps), now)


@pytest.mark.parametrize("member", [0, 1])
def test_the_target_takes_the_lower_twin(member):
    """A twin that is far above the other has no say, however far; one that is 1000 below takes all of y with
    it.
    """
    td3, batch = make(), draw()
    bias, y = td3.critic.target[-1][member], {}
    start = bias.clone()
    for offset in (100.0, 1100.0, -1000.0):
        bias.copy_(start + offset)
        y[offset] = td3.target(batch, torch.zeros_like(batch.actions))
    assert torch.equal(y[100.0], y[1100.0])
    fall = (y[100.0] - y[-1000.0])[batch.terminated == 0]
    assert ((fall > 0.9 * 990) & (fall < 0.9 * 1010)).all()


def test_termination_stops_the_bootstrap_and_a_time_limit_does_not():
    """A cut by a time limit arrives as terminated = 0: its target holds the next value like any row's."""
    td3, batch = make(), draw()
    td3.critic.target[-1] += 100.0
    y = td3.target(batch, torch.zeros_like(batch.actions))
    ended = batch.terminated == 1
    assert 0 < ended.sum() < ended.numel()
    assert torch.equal(y[ended], batch.rewards[ended])
    assert (y[~ended] - batch.rewards[~ended] > 0.9 * 95).all()


def test_the_target_noise_is_clipped_in_units_of_the_half_range():
    """Any draw beyond noise_clip / policy_noise = 2.5 stds acts like one of exactly 2.5; a smaller one does
    not.
    """
    td3, batch = make(), draw()
    y = {z: td3.target(batch, torch.full_like(batch.actions, z)) for z in (-1e9, -2.5, -1.0, 1.0, 2.5, 1e9)}
    torch.testing.assert_close(y[1e9], y[2.5])
    torch.testing.assert_close(y[-1e9], y[-2.5])
    going_on = batch.terminated == 0
    assert (y[1.0] != y[2.5])[going_on].any()
    assert (y[-1.0] != y[-2.5])[going_on].any()


@pytest.mark.parametrize("high", [HIGH, torch.ones(2)], ids=["own box", "unit box"])
def test_the_target_action_stays_inside_the_box(high):
    """A saturated target policy plus noise would leave the box; clipped, upward noise changes nothing."""
    low = LOW if high is HIGH else -torch.ones(2)
    td3, batch = make(low=low, high=high), draw()
    td3.actor.target[-1] += 50.0  # tanh = 1 exactly
    at_the_end = td3.target(batch, torch.zeros_like(batch.actions))
    torch.testing.assert_close(td3.target(batch, torch.ones_like(batch.actions)), at_the_end)
    assert not torch.allclose(td3.target(batch, -torch.ones_like(batch.actions)), at_the_end)


# The gradients


def test_the_critics_gradient_is_that_of_the_summed_squared_errors():
    """L_Q = sum_j mean_B (Q_j - y)^2 for each seed apart; y is a constant. By autograd through torch's
    modules.
    """
    td3, batch = make((0, 1)), draw((0, 1))
    noise = normal(batch.actions.shape[1:], streams((0, 1), "eps"))
    grads, metrics = td3.critic_gradients(batch, noise)
    y = td3.target(batch, noise)
    for s in range(2):
        nets = [sequential(td3.critic.params, 2 * s + j) for j in range(2)]
        pairs = torch.cat([batch.observations[s], batch.actions[s]], dim=1)
        q = torch.stack([net(pairs)[:, 0] for net in nets])
        loss = ((q - y[s]) ** 2).mean(dim=1).sum()
        torch.testing.assert_close(metrics["critic_loss"][s], loss.detach())
        torch.testing.assert_close(metrics["q_data"][s], q.mean().detach())
        loss.backward()
        for j in range(2):
            assert_gradient(grads, 2 * s + j, nets[j])


def test_the_actors_gradient_goes_through_the_first_critic():
    """dL/d(actor) of -mean Q_1(s, pi(s)) + (pi - anchor)^2 / 2, per seed, by autograd through torch's
    modules.
    """
    td3, batch = make((0, 1)), draw((0, 1))
    grads, metrics = td3.actor_gradients(batch.observations, batch.actions)
    for s in range(2):
        actor, q1 = sequential(td3.actor.params, s), sequential(td3.critic.params, 2 * s)
        pi = (LOW + HIGH) / 2 + (HIGH - LOW) / 2 * actor(batch.observations[s]).tanh()
        q = q1(torch.cat([batch.observations[s], pi], dim=1))
        loss = -q.mean() + 0.5 * ((pi - batch.actions[s]) ** 2).mean()
        torch.testing.assert_close(metrics["actor_loss"][s], loss.detach())
        torch.testing.assert_close(metrics["q_policy"][s], q.mean().detach())
        loss.backward()
        assert_gradient(grads, s, actor)


def assert_gradient(grads, g, net):
    linears = [m for m in net if isinstance(m, nn.Linear)]
    for layer, linear in enumerate(linears):
        want = linear.weight.grad if linear is linears[-1] else linear.weight.grad.T
        torch.testing.assert_close(grads[2 * layer][g], want, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(grads[2 * layer + 1][g].flatten(), linear.bias.grad, rtol=1e-4, atol=1e-6)


def test_the_second_critic_plays_no_part_in_the_actors_gradient():
    td3, batch = make((0, 1)), draw((0, 1))
    before, _ = td3.actor_gradients(batch.observations, batch.actions)
    perturbed(td3.critic.params, members=slice(1, None, 2))
    unchanged, _ = td3.actor_gradients(batch.observations, batch.actions)
    assert same(before, unchanged)
    perturbed(td3.critic.params, members=slice(0, None, 2))
    changed, _ = td3.actor_gradients(batch.observations, batch.actions)
    assert not same(before, changed)


def test_one_seeds_rows_do_not_reach_the_others():
    """Losses are summed over seeds, so changing seed 1's batch leaves the gradients of seeds 0 and 2 bit-
    equal.
    """
    td3, batch = make((0, 1, 2)), draw((0, 1, 2))
    other = draw((0, 1, 2), index=1)
    fields = {name: value for name, value in vars(batch).items() if value is not None}
    mixed = {
        name: torch.stack([value[0], getattr(other, name)[1], value[2]]) for name, value in fields.items()
    }
    noise = normal(batch.actions.shape[1:], streams((0, 1, 2), "eps"))
    for function in (
        lambda b: td3.critic_gradients(b, noise)[0],
        lambda b: td3.actor_gradients(b.observations, b.actions)[0],
    ):
        for a, b in zip(function(batch), function(dataclasses.replace(batch, **mixed)), strict=True):
            k = len(a) // 3
            assert torch.equal(a[:k], b[:k])
            assert torch.equal(a[2 * k :], b[2 * k :])
            assert not torch.equal(a[k : 2 * k], b[k : 2 * k])


# The update


def test_the_number_of_hidden_layers_may_be_chosen_for_actor_and_critics():
    """Weight and bias of each hidden and the output layer: 2 (n + 1) tensors; the networks still train."""
    init, noise = streams((0,), "init"), streams((0,), "noise")
    td3 = TD3(
        3, ActionBox(LOW, HIGH), SETTINGS, plain_loss, init=init, noise=noise, actor_layers=1, critic_layers=4
    )
    assert [len(td3.actor.params), len(td3.critic.params)] == [4, 10]
    assert {p.shape[-1] for p in td3.critic.params[2:-2]} == {8}
    for index in range(2):
        td3.update(draw(index=index), draw(index=index).actions)
    assert td3.updates == 2


def test_actor_and_both_targets_move_only_every_policy_delay_updates():
    """policy_delay = 3: updates 1 and 2 move the critics alone; update 3 moves all, and says so in its
    metrics.
    """
    td3 = make(settings=dataclasses.replace(SETTINGS, policy_delay=3))
    for update in range(1, 7):
        before, batch = snapshot(td3), draw(index=update)
        metrics = td3.update(batch, batch.actions)
        after = snapshot(td3)
        acts = update % 3 == 0
        assert not same(before["critic"], after["critic"])
        for name in ("actor", "actor_target", "critic_target"):
            assert same(before[name], after[name]) is not acts, (update, name)
        assert ("actor_loss" in metrics) is acts
        assert "critic_loss" in metrics
    assert td3.updates == 6


def test_targets_step_by_tau_towards_the_networks_just_updated():
    """target <- (1 - tau) target + tau online with the online networks *after* their steps of this update."""
    td3, batch = make(settings=dataclasses.replace(SETTINGS, policy_delay=1)), draw()
    before = snapshot(td3)
    td3.update(batch, batch.actions)
    after = snapshot(td3)
    for net in ("actor", "critic"):
        for old, online, new in zip(before[f"{net}_target"], after[net], after[f"{net}_target"], strict=True):
            torch.testing.assert_close(new, 0.9 * old + 0.1 * online)


def test_the_actor_step_uses_the_critic_just_updated():
    """The critic's step comes first: the actor's gradient is that of the new critic at the old actor."""
    td3, batch = make(settings=dataclasses.replace(SETTINGS, policy_delay=1)), draw()
    twin = copy.deepcopy(td3)
    td3.update(batch, batch.actions)
    noise = normal(batch.actions.shape[1:], twin.noise)
    twin.critic.apply(twin.critic_gradients(batch, noise)[0])
    twin.actor.apply(twin.actor_gradients(batch.observations, batch.actions)[0])
    assert same(td3.actor.params, twin.actor.params)
    assert same(td3.critic.params, twin.critic.params)


def test_an_anchor_may_be_found_from_the_policys_action_which_reaches_it_as_a_constant():
    seen = []
    td3, batch = make(settings=dataclasses.replace(SETTINGS, policy_delay=1)), draw()
    twin = copy.deepcopy(td3)

    def anchor(pi):
        seen.append(pi)
        return 0.5 * pi

    pi = td3.act(td3.actor.constant, batch.observations)
    td3.update(batch, anchor)
    twin.update(batch, 0.5 * pi)
    assert len(seen) == 1
    assert not seen[0].requires_grad
    assert torch.equal(seen[0], pi)
    assert same(td3.actor.params, twin.actor.params)


def test_every_update_draws_fresh_noise_for_each_seed_from_its_own_stream():
    """A stack of two draws what two single runs draw; the second update does not repeat the first's noise."""
    drawn = {seeds: [] for seeds in ((0,), (1,), (0, 1))}
    for seeds, list_of in drawn.items():
        td3 = make(seeds)
        gradients = td3.critic_gradients
        td3._critic_gradients = lambda b, noise, log=list_of, go=gradients: log.append(noise) or go(b, noise)
        for index in range(2):
            batch = draw(seeds, index=index)
            td3.update(batch, batch.actions)
    for update in range(2):
        assert torch.equal(drawn[0, 1][update], torch.cat([drawn[0,][update], drawn[1,][update]]))
    assert not torch.equal(drawn[0,][0], drawn[0,][1])


def test_restored_training_goes_on_bit_for_bit():
    """Networks, targets, moments, noise, and the counter of updates, which decides the next actor step."""

    def run(td3, indices):
        for index in indices:
            batch = draw(index=index)
            td3.update(batch, batch.actions)
        return td3

    settings = dataclasses.replace(SETTINGS, policy_delay=2)
    whole, half = run(make(settings=settings), range(7)), run(make(settings=settings), range(3))
    resumed = run(make((5,), settings=settings), range(2))
    resumed.load_state_dict(copy.deepcopy(half.state_dict()))
    run(resumed, range(3, 7))
    a, b = snapshot(whole), snapshot(resumed)
    for name in a:
        assert same(a[name], b[name]), name


def test_noise_streams_are_restored_from_a_state_on_another_device(elsewhere):
    saved = make()
    state = saved.state_dict()
    state["noise"] = [elsewhere(s) for s in state["noise"]]
    restored = make((5,))
    restored.load_state_dict(state)
    assert torch.equal(normal((2,), restored.noise), normal((2,), saved.noise))


def test_the_form_that_is_compiled_makes_the_same_updates(monkeypatch):
    """Compiled, gradients come from torch.func and the anchor is found outside the graph; both agree."""
    eager = make((0, 1), settings=dataclasses.replace(SETTINGS, policy_delay=1))
    twin = copy.deepcopy(eager)
    twin.compiled = True
    anchor = lambda pi: (0.5 * pi + 0.1).detach()  # noqa: E731
    for index in range(3):
        batch = draw((0, 1), index=index)
        with monkeypatch.context() as patch:
            patch.setattr(torch.compiler, "is_compiling", lambda: True)
            metrics = twin.update(batch, anchor)
        torch.testing.assert_close(metrics, eager.update(batch, anchor))
    for a, b in zip(eager.actor.params, twin.actor.params, strict=True):
        torch.testing.assert_close(a, b)


# The settings


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("discount", 0.0, r"discount must be in \(0, 1\], got 0.0"),
        ("discount", 1.01, r"discount must be in \(0, 1\], got 1.01"),
        ("discount", float("nan"), "discount"),
        ("tau", 0.995, r"tau must be in \(0, 0.5\], got 0.995: .* did you mean 0.005\?"),
        ("tau", 0.0, r"tau must be in \(0, 0.5\], got 0.0"),
        ("policy_noise", float("nan"), "policy_noise must be a finite number, got nan"),
        ("policy_noise", -0.1, "policy_noise and noise_clip must be 0 or more, got -0.1 and 0.5"),
        ("noise_clip", -0.5, "policy_noise and noise_clip must be 0 or more, got 0.2 and -0.5"),
        ("policy_delay", 0, "policy_delay must be 1 or more, got 0"),
        ("lr", 0.0, r"lr must be in \(0, 1\), got 0.0; the usual value is 3e-4"),
        ("lr", 3.0, r"lr must be in \(0, 1\), got 3.0"),
        ("hidden", 0, "hidden must be 1 or more, got 0"),
        ("batch_size", 0, "batch_size must be 1 or more, got 0"),
    ],
)
def test_an_impossible_setting_is_refused_with_value_and_rule(setting, value, message):
    with pytest.raises(ConfigError, match=message):
        TD3Settings(**{setting: value})


@pytest.mark.parametrize("tau", [-0.1, 0.0, 1.0, 1.5])
def test_the_hint_about_tau_is_given_only_where_it_helps(tau):
    """1 - tau is a possible setting only for tau in [0.5, 1): a hint of 1.1 or -0.5 would be refused too."""
    with pytest.raises(ConfigError, match=rf"tau must be in \(0, 0.5\], got {tau}") as refused:
        TD3Settings(tau=tau)
    assert "did you mean" not in str(refused.value)


@pytest.mark.parametrize("setting", ["discount", "tau", "policy_delay", "lr", "hidden", "batch_size"])
def test_the_ends_of_the_ranges_are_allowed(setting):
    ends = {"discount": 1.0, "tau": 0.5, "policy_delay": 1, "lr": 0.5, "hidden": 1, "batch_size": 1}
    assert getattr(TD3Settings(**{setting: ends[setting]}), setting) == ends[setting]
