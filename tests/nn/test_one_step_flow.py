"""The one-step flow policy: draws, box, normalizer, saving."""

import pytest
import torch

from offrl.errors import PolicyError
from offrl.nn.one_step_flow import OneStepFlowPolicy
from offrl.nn.policy import load_policy, save_policy

LOW, HIGH = torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 4.0])  # centers 0 and 2, half-ranges 1 and 2
PICK = torch.tensor([[0.5, 0.0, 0.0, 0.1, 0.0], [0.0, 0.0, 0.0, 0.0, 0.25]])  # of (o_0, o_1, o_2, z_0, z_1)


def linear(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)):
    layers = [(PICK, torch.tensor([0.0, 0.5]))]
    return OneStepFlowPolicy.from_params(layers, LOW, HIGH, torch.tensor(mean), torch.tensor(std))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_action_is_the_clipped_output_in_the_box():
    """Row 0: 0.5 * 1 + 0.1 * 2 = 0.7 -> 0.7; 0.5 + 0.25 * 1 = 0.75 -> 2 + 2 * 0.75. Row 1 is beyond both bounds."""
    observations = torch.tensor([[1.0, 0.0, 0.0], [9.0, 0.0, 0.0]])
    noise = torch.tensor([[2.0, 1.0], [0.0, -8.0]])
    torch.testing.assert_close(
        linear().transport(observations, noise), torch.tensor([[0.7, 3.5], [1.0, 0.0]])
    )


def test_observations_are_normalized_and_noise_is_not():
    policy = linear(mean=(1.0, 0.0, 0.0), std=(2.0, 1.0, 1.0))
    got = policy.transport(torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(got, torch.tensor([[0.25 + 0.1, 3.0]]))


@pytest.mark.parametrize("deterministic", [True, False])
def test_it_always_samples_from_the_given_stream(deterministic):
    """An output of 0.5 + 0.25 z in half-ranges of 2 has mean 3 and, cut at 4, a std a little below 0.5."""
    policy, x = linear(), torch.zeros(20_000, 3)
    actions, state = policy.act(x, "kept", deterministic=deterministic, generator=generator())
    assert state == "kept"
    assert actions[:, 1].mean().item() == pytest.approx(3.0, abs=0.02)
    assert 0.45 < actions[:, 1].std().item() < 0.5
    assert actions[:, 0].std().item() == pytest.approx(0.1, rel=0.03)
    again = policy.act(x, deterministic=deterministic, generator=generator())[0]
    assert torch.equal(actions, again)
    assert not torch.equal(actions, policy.act(x, generator=generator(1))[0])


def test_forward_is_the_action_at_zero_noise():
    x = torch.randn(4, 3, generator=generator())
    assert torch.equal(linear()(x), linear().transport(x, torch.zeros(4, 2)))


def test_hidden_layers_have_the_tanh_gelu():
    pairs = [(torch.eye(5), torch.zeros(5)), (PICK, torch.zeros(2))]
    policy = OneStepFlowPolicy.from_params(
        pairs, -torch.ones(2), torch.ones(2), torch.zeros(3), torch.ones(3)
    )
    got = policy.transport(torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[0.0, -1.0]]))
    gelu = torch.nn.GELU(approximate="tanh")(torch.tensor([1.0, -1.0]))
    torch.testing.assert_close(got, torch.stack([0.5 * gelu[0], 0.25 * gelu[1]])[None])


def test_it_comes_back_from_disk(tmp_path):
    policy = OneStepFlowPolicy(3, 2, (8, 5), LOW, HIGH)
    policy.set_normalizer(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 1.0, 2.0]))
    save_policy(policy, tmp_path)
    loaded, x = load_policy(tmp_path), torch.randn(6, 3, generator=generator())
    assert type(loaded) is OneStepFlowPolicy
    assert torch.equal(*(p.act(x, deterministic=True, generator=generator(3))[0] for p in (policy, loaded)))


def test_an_empty_layer_is_refused():
    with pytest.raises(PolicyError, match="hidden layers need 1 or more units"):
        OneStepFlowPolicy(3, 2, (8, 0))
