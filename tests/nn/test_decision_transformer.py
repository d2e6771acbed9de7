"""The stacked transformer against torch's own modules, its causality and dropout; the policy and what it remembers."""

import pytest
import torch
from torch import nn

from offrl.errors import PolicyError
from offrl.nn.decision_transformer import (
    DecisionTransformerPolicy,
    Sizes,
    dropout_masks,
    init_transformer,
    transformer,
)
from offrl.nn.policy import load_policy, save_policy
from offrl.training.seeding import streams

SIZES = Sizes(3, 2, max_steps=10, hidden=8, layers=2, heads=2)
BATCH, LENGTH = 4, 5
LOW, HIGH = torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 4.0])  # centers 0 and 2, half-ranges 1 and 2


def network(seeds=(0,)):
    """Parameters away from their initial values, so that norms and biases count and attention is not flat."""
    generator = torch.Generator().manual_seed(0)
    params = init_transformer(SIZES, streams(seeds, "init"))
    return [p.detach() + 0.5 * torch.randn(p.shape, generator=generator) for p in params]


def inputs(seeds=1):
    g = torch.Generator().manual_seed(1)
    returns = torch.randn(seeds, BATCH, LENGTH, generator=g)
    observations, actions = (torch.randn(seeds, BATCH, LENGTH, n, generator=g) for n in (3, 2))
    return returns, observations, actions, torch.randint(0, 10, (seeds, BATCH, LENGTH), generator=g)


def reference(params, returns, observations, actions, steps):
    """One network in torch's own modules: a pre-norm encoder with a causal mask."""
    take = iter(params)

    def linear(x):
        weight, bias = next(take), next(take)
        return x @ weight + bias

    embedded = [linear(x) for x in (returns[..., None], observations, actions)]
    time = next(take)[steps]
    x = torch.stack([e + time for e in embedded], dim=2).flatten(1, 2)
    x = nn.functional.layer_norm(x, (8,), next(take)[0], next(take)[0])
    layer = nn.TransformerEncoderLayer(8, 2, 32, 0.0, "relu", batch_first=True, norm_first=True).train()
    mask = nn.Transformer.generate_square_subsequent_mask(3 * LENGTH)
    for _ in range(2):
        p = [next(take) for _ in range(12)]
        names = ("norm1.weight", "norm1.bias", "self_attn.in_proj_weight", "self_attn.in_proj_bias")
        names += ("self_attn.out_proj.weight", "self_attn.out_proj.bias", "norm2.weight", "norm2.bias")
        names += ("linear1.weight", "linear1.bias", "linear2.weight", "linear2.bias")
        shapes = {n: v.shape for n, v in layer.state_dict().items()}
        layer.load_state_dict({n: v.T.reshape(shapes[n]) for n, v in zip(names, p, strict=True)})
        x = layer(x, src_mask=mask)
    x = nn.functional.layer_norm(x[:, 1::3], (8,), next(take)[0], next(take)[0])
    out = linear(x)
    assert next(take, None) is None
    return out


def test_each_network_of_a_stack_is_torchs_own():
    params, given = network((0, 1)), inputs(2)
    out = transformer(params, 2, *given)
    assert out.shape == (2, BATCH, LENGTH, 2)
    for k in range(2):
        torch.testing.assert_close(
            out[k], reference([p[k] for p in params], *(x[k] for x in given)).detach(), rtol=1e-4, atol=1e-5
        )


def test_masks_of_ones_change_nothing():
    """Training attends by explicit products, acting by torch's fused attention."""
    params, given = network(), inputs()
    masks = [torch.ones_like(m) for m in dropout_masks(SIZES, BATCH, LENGTH, 0.5, streams((0,), "noise"))]
    assert len(masks) == 1 + 3 * 2
    torch.testing.assert_close(transformer(params, 2, *given, masks), transformer(params, 2, *given))


def test_under_autocast_outputs_stay_float32():
    with torch.autocast("cpu", torch.bfloat16):
        out = transformer(network(), 2, *inputs())
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, transformer(network(), 2, *inputs()), rtol=0.2, atol=0.2)


@pytest.mark.parametrize("site", range(7))
def test_every_mask_is_used(site):
    params, given = network(), inputs()
    masks = [torch.ones_like(m) for m in dropout_masks(SIZES, BATCH, LENGTH, 0.5, streams((0,), "noise"))]
    masks[site][:, 0] = 0.0
    changed = (
        (transformer(params, 2, *given, masks) - transformer(params, 2, *given)).abs().amax(dim=(0, 2, 3))
    )
    assert changed[0] > 1e-3
    assert changed[1:].max() < 1e-5


def test_masks_keep_the_mean_and_each_seed_draws_its_own():
    masks = dropout_masks(SIZES, 64, LENGTH, 0.25, streams((3, 4), "noise"))
    alone = dropout_masks(SIZES, 64, LENGTH, 0.25, streams((4,), "noise"))
    for mask, own in zip(masks, alone, strict=True):
        assert torch.equal(mask[1:], own)
        torch.testing.assert_close(mask.unique(), torch.tensor([0.0, 4 / 3]))
        assert mask.mean().item() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("masked", [False, True])
def test_what_comes_later_and_the_action_at_a_state_do_not_reach_its_output(masked):
    params, (returns, observations, actions, steps) = network(), inputs()
    masks = [torch.ones_like(m) for m in dropout_masks(SIZES, BATCH, LENGTH, 0.5, streams((0,), "noise"))]
    masks = masks if masked else None
    before = transformer(params, 2, returns, observations, actions, steps, masks)
    later = [x.clone() for x in (returns, observations, actions, steps)]
    for x in later[:2]:
        x[:, :, 3:] += 1.0
    later[2][:, :, 2:] += 1.0
    later[3][:, :, 3:] = 0
    after = transformer(params, 2, *later, masks)
    torch.testing.assert_close(before[:, :, :3], after[:, :, :3])
    assert (before - after)[:, :, 3].abs().max() > 1e-3


@pytest.mark.parametrize("part", range(4))
def test_return_state_earlier_actions_and_step_all_count(part):
    given = list(inputs())
    before = transformer(network(), 2, *given)
    given[part] = given[part].clone()
    given[part][:, :, 0] = given[part][:, :, 0] + 1 if part < 3 else (given[3][:, :, 0] + 1) % 10
    changed = (transformer(network(), 2, *given) - before).abs().amax(dim=(0, 1, 3))
    assert (changed[1:] > 1e-3).all()
    assert changed[0] == 0 if part == 2 else changed[0] > 1e-3  # the action at a state comes after its output


def test_the_initial_weights_are_torchs_outside_and_gpt_2s_inside():
    sizes = Sizes(40, 20, max_steps=200, hidden=64, layers=1, heads=2)
    params = [p.detach()[0] for p in init_transformer(sizes, streams((0,), "init"))]
    for p, bound in zip(params[:6], (1.0, 1.0, 40**-0.5, 40**-0.5, 20**-0.5, 20**-0.5), strict=True):
        assert 0.8 * bound < p.abs().max().item() <= bound
    assert params[6].shape == (200, 64)
    assert params[6].std().item() == pytest.approx(1.0, abs=0.05)
    block = params[9:21]
    for weight in block[2::6] + block[4::6]:
        assert weight.numel() > 64
        assert weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not any(p.any() for p in (params[8], *block[1::2], params[22]))
    assert all((p == 1).all() for p in (params[7], block[0], block[6], params[21]))
    assert 0.9 / 8 < params[23].abs().max().item() <= 1 / 8


# The policy


def make(**settings):
    given = {"context": 3, "target_return": 50.0, "return_scale": 10.0} | settings
    mean, std = torch.tensor([1.0, 0.0, -1.0]), torch.tensor([2.0, 1.0, 0.5])
    return DecisionTransformerPolicy.from_params(
        [p[0] for p in network()], SIZES, LOW, HIGH, mean, std, **given
    )


def play(policy, steps, rewards=1.5):
    """(observations, actions, state) of ``steps`` steps of two episodes, with 1.5 earned at each."""
    g, state, seen, acted = torch.Generator().manual_seed(2), None, [], []
    for t in range(steps):
        if t:
            state = policy.rewarded(state, torch.tensor([rewards, 0.0], dtype=torch.float64))
        seen.append(torch.randn(2, 3, generator=g))
        actions, state = policy.act(seen[-1], state)
        acted.append(actions)
    return torch.stack(seen, 1), torch.stack(acted, 1), state


@torch.no_grad()
@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_the_action_is_the_transformers_on_the_last_steps(steps):
    """Returns-to-go 5, 5 - 0.15, ... in the first episode; actions back in [-1, 1]; observations normalized."""
    policy = make()
    observations, actions, _ = play(policy, steps)
    x = (observations - policy.mean) / policy.std
    unit = (actions - torch.tensor([0.0, 2.0])) / torch.tensor([1.0, 2.0])
    to_go = 5.0 - 0.15 * torch.arange(steps) * torch.tensor([[1.0], [0.0]])
    window = slice(max(0, steps - 3), steps)
    at = torch.arange(steps)[window].expand(1, 2, -1)
    out = transformer(network(), 2, to_go[None, :, window], x[None, :, window], unit[None, :, window], at)
    torch.testing.assert_close(unit[:, -1], out[0, :, -1].tanh(), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_steps_beyond_the_last_vector_count_as_the_last():
    _, actions, state = play(make(), 13)
    assert state.step == 13
    assert torch.isfinite(actions).all()
    assert state.observations.shape == (2, 3, 3)


@torch.no_grad()
def test_forward_is_the_first_action_and_a_state_is_never_changed():
    policy, x = make(), torch.randn(2, 3)
    first, state = policy.act(x, deterministic=False)
    assert torch.equal(policy(x), first)
    kept = [t.clone() for t in (state.observations, state.actions, state.returns, state.to_go)]
    policy.act(x, policy.rewarded(state, torch.ones(2)))
    assert all(
        torch.equal(a, b)
        for a, b in zip(kept, (state.observations, state.actions, state.returns, state.to_go), strict=True)
    )


@torch.no_grad()
def test_the_target_return_and_what_is_earned_change_the_action():
    x = torch.randn(2, 3)
    assert (make()(x) - make(target_return=80.0)(x)).abs().max() > 1e-3
    (_, poor, _), (_, rich, _) = play(make(), 2), play(make(), 2, rewards=40.0)
    assert (poor - rich)[0, 1].abs().max() > 1e-3
    assert torch.equal(poor[1], rich[1])


@torch.no_grad()
def test_it_comes_back_from_disk(tmp_path):
    policy = make()
    save_policy(policy, tmp_path)
    loaded = load_policy(tmp_path)
    assert type(loaded) is DecisionTransformerPolicy
    assert loaded.config() == policy.config()
    assert torch.equal(play(policy, 5)[1], play(loaded, 5)[1])


@pytest.mark.parametrize(
    "wrong", [{"heads": 3}, {"context": 0}, {"return_scale": 0.0}, {"target_return": float("inf")}]
)
def test_impossible_sizes_are_refused(wrong):
    with pytest.raises(PolicyError):
        DecisionTransformerPolicy(3, 2, hidden=8, **wrong)


def test_observations_of_another_size_are_refused():
    with pytest.raises(PolicyError, match="built for O=3"):
        make().act(torch.zeros(2, 4))
