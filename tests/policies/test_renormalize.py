"""Teaching a policy other action units: the loss is its own, the units change, the average acts."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from offrl.cli import main
from offrl.data.normalize import AffineNormalizer
from offrl.diffusion.parameterization import from_x0
from offrl.diffusion.training import GrowingAverage
from offrl.errors import ConfigError
from offrl.nn.policy import load_policy, save_policy
from offrl.policies.chunk import ChunkPolicy
from offrl.policies.composed import ComposedPolicy
from offrl.policies.renormalize import denoising_loss, renormalize

NEW = AffineNormalizer.build(np.array([0.1, 0.0]), np.array([2.0, 0.5]))


def make(family="diffusion", scale=(1.0, 1.0)):
    torch.manual_seed(0)
    policy = ChunkPolicy(
        3, 2, family=family, widths=(8, 16), step_embed=8, horizon=8, n_act=4, denoising_steps=4
    )
    units = AffineNormalizer.build(np.zeros(2), np.array(scale))
    policy.set_normalizers(AffineNormalizer.build(np.zeros(3), np.ones(3)), units)
    return policy.eval()


def demonstrations(n=60):
    rng = np.random.default_rng(0)
    return (
        rng.normal(size=(n, 3)).astype(np.float32),
        rng.uniform(-0.5, 0.5, (n, 2)),
        np.array([0, n // 2, n]),
    )


class Knows(nn.Module):
    """A network that knows the one clean chunk."""

    def __init__(self, policy, clean):
        super().__init__()
        self.policy, self.clean = policy, clean

    def forward(self, x, time, condition):
        if self.policy.family == "flow":
            s = (time / 100)[:, None, None]
            return from_x0("flow", self.clean, x, 1 - s, s)
        abar = self.policy.schedule.abar[time.long()].float()[:, None, None]
        return from_x0("eps", self.clean, x, abar.sqrt(), (1 - abar).sqrt())


@pytest.mark.parametrize("family", ["diffusion", "flow"])
def test_a_network_that_knows_the_answer_has_no_loss(family):
    policy, clean = make(family), torch.randn(1, 8, 2, generator=torch.Generator().manual_seed(1))
    policy.unet = Knows(policy, clean)
    args = (policy, torch.zeros(50, 2, 3), clean.expand(50, -1, -1), torch.Generator().manual_seed(2))
    assert denoising_loss(*args).item() < 1e-6
    policy.unet.clean = clean + 0.1
    assert denoising_loss(*args).item() > 1e-3


@pytest.mark.parametrize("family", ["diffusion", "flow"])
def test_the_units_are_new_the_observations_old_and_the_weights_an_average(family):
    policy, before = make(family), make(family)
    losses = list(renormalize(policy, NEW, *demonstrations(), steps=30, lr=1e-3, seed=0))
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    assert torch.equal(policy.action_scale, NEW.scale)
    assert torch.equal(policy.observation_scale, before.observation_scale)
    again = make(family)
    assert losses == list(renormalize(again, NEW, *demonstrations(), steps=30, lr=1e-3, seed=0))
    first = next(policy.parameters())
    assert torch.equal(first, next(again.parameters()))
    assert not torch.equal(first, next(before.parameters()))


def test_what_acts_is_the_growing_average_of_all_steps():
    policy, average = make(), GrowingAverage()
    kept = next(policy.parameters()).detach().clone()
    for number, _ in enumerate(renormalize(policy, NEW, *demonstrations(), steps=6, lr=1e-2), start=1):
        kept.lerp_(next(policy.parameters()).detach(), 1 - average(number))
    torch.testing.assert_close(next(policy.parameters()).detach(), kept)


def test_a_single_step_without_a_rate_leaves_the_weights_alone():
    """The first step's rate is 0: the average of the weights is the old weights."""
    policy, before = make(), make()
    assert math.isfinite(next(renormalize(policy, NEW, *demonstrations(), steps=1)))
    list(renormalize(policy, NEW, *demonstrations(), steps=1))
    for a, b in zip(policy.parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_what_was_refused_composes_afterwards(tmp_path, capsys):
    pytest.importorskip("gym_pusht")
    for name, scale in (("a", (1 / 256, 1 / 256)), ("b", (1 / 256, 1 / 100))):
        torch.manual_seed(1)
        p = ChunkPolicy(5, 2, [0, 0], [512, 512], widths=(8,), step_embed=4, denoising_steps=2)
        p.set_normalizers(
            AffineNormalizer.build(np.zeros(5), np.ones(5)),
            AffineNormalizer.build(np.zeros(2), np.array(scale)),
        )
        save_policy(p, tmp_path / name)
    with pytest.raises(ConfigError, match=r"policy renormalize.*--matching levels"):
        ComposedPolicy([load_policy(tmp_path / "a"), load_policy(tmp_path / "b")])
    folder, out = str(tmp_path / "b"), str(tmp_path / "c")
    options = ["--like", str(tmp_path / "a"), "--demos", "builtin:pusht-demo", "--steps", "2", "--out", out]
    assert main(["policy", "renormalize", folder, *options]) == 0
    assert "factors in each action dim so far: 1 2.56" in capsys.readouterr().out
    ComposedPolicy([load_policy(tmp_path / "a"), load_policy(tmp_path / "c")])


def test_demonstrations_of_something_else_are_refused(tmp_path, capsys):
    save_policy(make(), tmp_path / "a")
    options = ["--like", str(tmp_path / "a"), "--demos", "builtin:pusht-demo", "--out", str(tmp_path / "b")]
    assert main(["policy", "renormalize", str(tmp_path / "a"), *options]) == 1
    assert "the demonstrations have no 'observation'" in capsys.readouterr().err
    assert main(["policy", "renormalize", str(tmp_path), *options]) == 1
    assert "neither a run directory nor a policy" in capsys.readouterr().err
    assert main(["policy", "renormalise", str(tmp_path / "a")]) == 2
    assert "did you mean 'renormalize'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("out", "why"),
    [("a", "stays as it is: choose another folder"), ("run", "is a run"), ("file", "names a folder")],
)
def test_no_policy_is_written_over(tmp_path, capsys, out, why):
    save_policy(make(), tmp_path / "a")
    save_policy(make(), tmp_path / "run")
    (tmp_path / "run/config.json").write_text("{}")
    (tmp_path / "file").touch()
    before = (tmp_path / "a/policy.safetensors").read_bytes()
    options = ["--like", str(tmp_path / "a"), "--demos", "builtin:pusht-demo", "--out", str(tmp_path / out)]
    assert main(["policy", "renormalize", str(tmp_path / "a"), *options]) == 1
    assert why in capsys.readouterr().err
    assert (tmp_path / "a/policy.safetensors").read_bytes() == before
    if out != "a":
        assert main(["policy", "convert", str(tmp_path / "a"), "--out", str(tmp_path / out)]) == 1
        assert why in capsys.readouterr().err
