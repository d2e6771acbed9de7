"""Rows of trajectories and back, and the model on disk."""

import pytest
import torch

from offrl.diffusion.trajectory import TrajectoryModel, raw_rows
from offrl.diffusion.unet import UNet
from offrl.errors import PolicyError
from offrl.nn.policy import load_policy, save_policy

LOW, HIGH = torch.tensor([-2.0, 0.0]), torch.tensor([2.0, 1.0])


def model():
    net = UNet(7, 32, 2)
    params = [p.detach() for p in net.init([torch.Generator().manual_seed(0)])]
    mean, std = torch.linspace(-1, 1, 7), torch.linspace(0.5, 2, 7)
    return TrajectoryModel.from_params(params, mean, std, LOW, HIGH, hidden=32, blocks=2, length=8)


def test_steps_survive_the_way_through_the_model():
    """Encoded, standardized, decoded: the same, actions at the bounds only to 0.1 % of the box."""
    made = model()
    o, r = torch.randn(3, 8, 3), torch.randn(3, 8)
    unit = torch.rand(3, 8, 2) * 2 - 1
    unit[0, 0] = torch.tensor([1.0, -1.0])
    d = (torch.rand(3, 8) < 0.3).float()
    rows = (raw_rows(o, unit, r, d) - made.row_mean) / made.row_std
    back = made.decode(rows)
    torch.testing.assert_close(back.observations, o, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(back.rewards, r, rtol=1e-4, atol=1e-5)
    assert torch.equal(back.terminated, d.bool())
    torch.testing.assert_close(back.actions[1:], made.to_box(unit[1:]), rtol=0, atol=2.1e-3)
    assert back.actions[0, 0].tolist() == pytest.approx([2 * 0.999, 0.5 - 0.5 * 0.999], abs=1e-4)


def test_actions_are_taken_through_artanh_of_the_clipped_half_range():
    rows = raw_rows(torch.zeros(1, 3), torch.tensor([[0.5, 7.0]]), torch.tensor([2.0]), torch.ones(1))
    assert rows[0].tolist() == pytest.approx([0, 0, 0, 0.549306, 3.800201, 2.0, 1.0], abs=1e-4)


def test_a_row_has_ended_where_its_number_is_above_one_half():
    made = TrajectoryModel(3, 2, hidden=32, blocks=1, length=8)
    rows = torch.zeros(3, 7)
    rows[:, -1] = torch.tensor([0.49, 0.51, 3.0])
    assert made.decode(rows).terminated.tolist() == [False, True, True]


def test_a_saved_model_denoises_alike_and_does_not_act(tmp_path):
    made = model()
    save_policy(made, tmp_path)
    loaded = load_policy(tmp_path)
    assert isinstance(loaded, TrajectoryModel)
    assert loaded.length == 8
    u = torch.randn(2, 12, 7)
    assert torch.equal(made.denoise(u, 1.3), loaded.denoise(u, 1.3))
    assert torch.equal(loaded.action_high, HIGH)
    with pytest.raises(PolicyError, match="does not act; draw from it with: offrl generate RUN"):
        loaded.act(torch.zeros(1, 3))


def test_actions_of_samples_lie_in_the_box():
    made = model()
    actions = made.decode(50 * torch.randn(4, 8, 7)).actions
    assert (actions >= LOW).all()
    assert (actions <= HIGH).all()


def test_sizes_that_cannot_be_are_refused():
    with pytest.raises(PolicyError, match="features must be a multiple of 8"):
        TrajectoryModel(3, 2, hidden=9, blocks=1, length=8)
