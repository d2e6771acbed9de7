"""Guidance: its gradient in closed form, what it leaves alone, and the laws that it leads to on Gaussians."""

import math

import pytest
import torch

from offrl.diffusion import sampler as sampler_module
from offrl.diffusion.guidance import (
    Guidance,
    Target,
    code_guide,
    policy_log_prob,
    score_denoiser,
    unit_norm,
)
from offrl.diffusion.sampler import Sampler, sample_rows
from offrl.diffusion.trajectory import TrajectoryModel
from offrl.errors import ConfigError, PolicyError
from offrl.nn.mixture import SquashedMixturePolicy
from offrl.nn.policy import DeterministicPolicy, GaussianPolicy, SquashedGaussianPolicy
from offrl.nn.random_policy import RandomPolicy

OBS, ACT = 3, 2


def model(obs=OBS, act=ACT, low=None, high=None):
    """A trajectory model whose rows are not standardized and whose data are standard normal."""
    made = TrajectoryModel(obs, act, low, high, hidden=32, blocks=1, length=4)
    made.denoise = lambda u, rho: u / (1 + rho * rho)
    return made


def scaled_model():
    made = model(low=[-2.0, 0.0], high=[2.0, 1.0])
    made.row_mean.copy_(torch.tensor([1.0, -1.0, 0.5, 0.1, -0.2, 0.0, 0.0]))
    made.row_std.copy_(torch.tensor([2.0, 0.5, 1.0, 0.7, 1.3, 1.0, 1.0]))
    return made


def policies(low=(-2.0, 0.0), high=(2.0, 1.0)):
    torch.manual_seed(3)
    gaussian = GaussianPolicy(OBS, ACT, (8,), low, high)
    gaussian.log_std.data = torch.tensor([-0.5, 0.3])
    return {
        "deterministic": DeterministicPolicy(OBS, ACT, (8,), low, high),
        "gaussian": gaussian,
        "squashed_gaussian": SquashedGaussianPolicy(OBS, ACT, (8,), low, high),
    }


@pytest.mark.parametrize("kind", ["deterministic", "gaussian", "squashed_gaussian"])
def test_the_gradient_is_the_closed_form(kind):
    """(1 - a^2) sd half (mu - a) / std^2 in the box's units, a = tanh(.); before the tanh for a squashed Gaussian.

    sd is the standard deviation of the action columns, half the box's half-range (pgd sheet 12.5).
    """
    made, policy = scaled_model(), policies()[kind]
    rows = torch.randn(5, 4, OBS + ACT + 2)
    got = Target(made, policy_log_prob(policy)).gradient(rows)
    a = made.action_columns
    latent = rows[..., a] * made.row_std[a] + made.row_mean[a]
    observations = rows[..., :OBS] * made.row_std[:OBS] + made.row_mean[:OBS]
    unit, half = latent.tanh(), made.half_range
    with torch.no_grad():
        if kind == "squashed_gaussian":
            mean, std = policy.moments(observations)
            wanted = made.row_std[a] * (mean - latent) / std.square()
        else:
            mean, std = policy.moments(observations) if kind == "gaussian" else (policy(observations), half)
            wanted = made.row_std[a] * (1 - unit**2) * half * (mean - made.to_box(unit)) / std**2
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_a_policys_density_is_that_of_its_distribution():
    """A Gaussian policy is asked for log pi of the action in the box; nats, constants included."""
    policy = policies()["gaussian"]
    observations, latent = torch.randn(6, OBS), torch.randn(6, ACT)
    got = policy_log_prob(policy)(observations, latent)
    wanted = policy.distribution(observations).log_prob(policy.to_box(latent.tanh()))
    torch.testing.assert_close(got, wanted)


def test_a_trajectorys_unit_gradient_has_norm_one_as_a_whole_and_zero_stays_zero():
    """The norm goes over steps and action dims together; 0 / 0 is 0 and not NaN."""
    gradient = torch.randn(3, 4, 2)
    gradient[1] = 0.0
    unit = unit_norm(gradient)
    assert unit.flatten(1).norm(dim=1).tolist() == pytest.approx([1.0, 0.0, 1.0], abs=1e-6)
    assert torch.isfinite(unit).all()
    torch.testing.assert_close(unit[0] * gradient[0].norm(), gradient[0])


def test_the_strengths_are_the_published_schedule():
    """Their sum is 177.4 coef for 256 steps, the last one 0 (pgd sheet 4)."""
    strengths = Guidance(1.0).strengths(256)
    assert sum(strengths) == pytest.approx(177.4, abs=0.05)
    assert strengths[-1] == 0.0
    assert strengths[0] == pytest.approx(1 + 0.3 * math.sin(math.pi / 256))
    assert strengths[127] == pytest.approx((1 - 127 / 256) + 0.3)
    for steps in (32, 1024):
        whole = sum(Guidance(1.0, step_independent=True).strengths(steps))
        assert whole == pytest.approx(177.4, rel=0.05)
        assert sum(Guidance(1.0).strengths(steps)) == pytest.approx(177.4 * steps / 256, rel=0.05)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("denoised", [False, True])
def test_only_actions_move_in_a_guided_step(normalize, denoised):
    """Observations, rewards and ends are bit-equal; actions move by lambda_n g (pgd sheet 12.4)."""
    made = scaled_model()
    target = Target(made, policy_log_prob(policies()["gaussian"]))
    guidance = Guidance(0.5, normalize=normalize, denoised=denoised)
    rows = torch.randn(5, 4, OBS + ACT + 2)
    moved = code_guide(target, guidance, 8, made.denoise)(rows, 2.0, 3)
    a = made.action_columns
    others = [0, 1, 2, 5, 6]
    assert torch.equal(moved[..., others], rows[..., others])
    gradient = target.gradient(rows / 5 if denoised else rows)
    gradient = unit_norm(gradient) if normalize else gradient
    torch.testing.assert_close(moved[..., a] - rows[..., a], guidance.strengths(8)[3] * gradient)
    assert torch.equal(code_guide(target, guidance, 8, made.denoise)(rows, 2.0, 7), rows)


def test_the_score_guide_adds_rho_squared_times_the_gradient_through_the_denoiser():
    """Data N(0, 1), so that dD / dx = 1 / (1 + rho^2) multiplies the policy's gradient at D."""
    made, rho = scaled_model(), 0.7
    target = Target(made, policy_log_prob(policies()["gaussian"]))
    rows = torch.randn(5, 4, OBS + ACT + 2)
    plain, guided = made.denoise(rows, rho), score_denoiser(target, 0.3, made.denoise)(rows, rho)
    a, others = made.action_columns, [0, 1, 2, 5, 6]
    assert torch.equal(guided[..., others], plain[..., others])
    wanted = rho**2 * 0.3 * target.gradient(plain) / (1 + rho**2)
    torch.testing.assert_close(guided[..., a] - plain[..., a], wanted, rtol=1e-4, atol=1e-6)


def toy(monkeypatch, guidance, count=2000, length=4, act=1, seed=0, mean=2.0, **options):
    """Mean and std of actions of data N(0, 1) drawn with a policy N(mean, 1) before the tanh; and of observations."""
    monkeypatch.setattr(
        sampler_module,
        "policy_log_prob",
        lambda policy: lambda o, latent: -0.5 * (latent - mean).square().sum(-1),
    )
    rows = sample_rows(
        model(1, act),
        count,
        length,
        torch.Generator().manual_seed(seed),
        Sampler(guidance=guidance, **options),
        policy=RandomPolicy(1, act),
    )
    actions = rows[..., 1 : 1 + act]
    return actions.mean().item(), actions.std().item(), rows[..., 0].std().item()


@pytest.mark.parametrize(("coef", "mean", "std"), [(0.01, 0.44, 0.83), (0.1, 1.80, 0.17), (1.0, 2.0, 0.0)])
def test_raw_guidance_slides_to_the_mode(monkeypatch, coef, mean, std):
    """N(0, 1) guided towards N(2, 1), N = 256, the official step (pgd sheet 12.6); adding scores would be N(1, 0.5)."""
    got = toy(monkeypatch, Guidance(coef), legacy_euler_base=True)
    assert got[0] == pytest.approx(mean, abs=0.03)
    assert got[1] == pytest.approx(std, abs=0.02)
    assert got[2] == pytest.approx(1.03, abs=0.03)


def test_the_strength_of_normalized_guidance_grows_with_the_steps_unless_told_not_to(monkeypatch):
    """96 action numbers, coef 1: mean 0.70 for N = 64 and 2.00 for N = 256; step-independent 2.00 for both."""

    def mean(steps, **options):
        guidance = Guidance(1.0, normalize=True, **options)
        return toy(monkeypatch, guidance, count=30, length=32, act=3, steps=steps)[0]

    assert mean(64) == pytest.approx(0.70, abs=0.05)
    assert mean(256) == pytest.approx(2.0, abs=0.02)
    assert mean(64, step_independent=True) == pytest.approx(2.0, abs=0.02)


def test_the_score_guide_comes_near_the_product_of_the_densities(monkeypatch):
    """N(0, 1) times N(2, 1) is N(1, 0.5). The ODE's guide at D, with its Jacobian, gives 1.43 and 0.61 (pgd sheet 4);

    with churn, which corrects, we measure 1.08 and 0.70.
    """
    mean, std, others = toy(monkeypatch, Guidance(1.0, "score"), churn=0.0)
    assert mean == pytest.approx(1.43, abs=0.03)
    assert std == pytest.approx(0.61, abs=0.02)
    assert others == pytest.approx(1.0, abs=0.03)
    mean, std, _ = toy(monkeypatch, Guidance(1.0, "score"))
    assert mean == pytest.approx(1.08, abs=0.04)
    assert std == pytest.approx(0.70, abs=0.02)


def test_likelihood_rises_with_the_coefficient(monkeypatch):
    """E -(a - 2)^2 / 2 over coefficients, same noise (pgd sheet 12.7)."""

    def likelihood(coef, **options):
        scale = 0.1 if options.get("normalize") else 1.0  # two action numbers: a unit push is a large one
        guidance = Guidance(scale * coef, **options)
        mean, std, _ = toy(monkeypatch, guidance, count=300, steps=64)
        return -0.5 * ((mean - 2) ** 2 + std**2)

    for options in ({}, {"normalize": True}, {"mode": "score"}):
        values = [likelihood(coef, **options) for coef in (0.0, 0.25, 0.5, 1.0, 2.0)]
        assert values == sorted(values), options
        assert values[-1] > values[0] + 0.3


def test_without_guidance_the_policy_changes_nothing():
    """coef 0 is the unguided sampler bit for bit (pgd sheet 12.4)."""
    draws = [
        sample_rows(model(), 6, 4, torch.Generator().manual_seed(1), Sampler(steps=12, guidance=g), policy)
        for g, policy in ((Guidance(), None), (Guidance(0.0, normalize=True), policies()["gaussian"]))
    ]
    assert torch.equal(*draws)


def test_what_cannot_guide_is_refused():
    rows = torch.randn(2, 4, OBS + ACT + 2)
    with pytest.raises(PolicyError, match="a random policy guides nowhere"):
        Target(model(), policy_log_prob(RandomPolicy(OBS, ACT))).gradient(rows)
    with pytest.raises(PolicyError, match="observations have shape"):
        Target(model(), policy_log_prob(DeterministicPolicy(OBS + 1, ACT, (8,)))).gradient(rows)
    with pytest.raises(ConfigError, match="guidance needs a target policy"):
        sample_rows(model(), 2, 4, torch.Generator(), Sampler(guidance=Guidance(1.0)))
    for wrong in ({"normalize": True}, {"denoised": True}, {"step_independent": True}):
        with pytest.raises(ConfigError, match="options of mode 'code'"):
            Guidance(1.0, "score", **wrong)
    with pytest.raises(ConfigError, match="'code' or 'score'"):
        Guidance(1.0, "kl")
    with pytest.raises(ConfigError, match="finite"):
        Guidance(float("nan"))


def test_a_policy_far_outside_its_data_gives_finite_gradients():
    """At rho = 80 the observations are wild and tanh is flat: no NaN."""
    rows = 80.0 * torch.randn(4, 8, OBS + ACT + 2)
    mixture = SquashedMixturePolicy(OBS, ACT, (8,), (-2.0, 0.0), (2.0, 1.0), experts=2)
    for policy in [*policies().values(), mixture]:
        gradient = Target(scaled_model(), policy_log_prob(policy)).gradient(rows)
        assert torch.isfinite(gradient).all()
        assert torch.isfinite(unit_norm(gradient)).all()
