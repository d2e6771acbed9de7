"""Compositions of policies whose denoisers are known in closed form (what a faithful implementation must show)."""

import math
import re
from pathlib import Path

import pytest
import torch

from offrl.data.normalize import AffineNormalizer
from offrl.diffusion.parameterization import from_x0
from offrl.diffusion.schedules import VE, VP, Flow, cosine_betas
from offrl.diffusion.steppers import denoiser, sample
from offrl.errors import ConfigError
from offrl.policies.composition import Composition, Denoiser, align, and_weights

COSINE = VP.cosine(100)
KINDS = [
    ("eps", COSINE),
    ("x0", COSINE),
    ("v", COSINE),
    ("flow", Flow()),
    ("flow_reversed", Flow()),
    ("edm", VE()),
]


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def noise_from(seed):
    g = torch.Generator().manual_seed(seed)
    return lambda x: torch.randn(x.shape, generator=g, dtype=x.dtype)


def identity(width=1):
    return AffineNormalizer(*(t.double() for t in vars(AffineNormalizer.identity(width)).values()))


def affine(scale, offset):
    scale, offset = (torch.tensor(x, dtype=torch.float64) for x in (scale, offset))
    return AffineNormalizer(torch.zeros_like(scale), scale, offset, 1 / scale)


def best(mean, std):
    """E[x0 | u] for data N(mean, std^2); numbers or tensors."""
    return lambda u, rho: (std**2 * u + rho**2 * mean) / (std**2 + rho**2)


def gaussian(mean=0.0, std=1.0, rows=1, now=0, levels=COSINE, actions=None):
    d = best(torch.as_tensor(mean, dtype=torch.float64), torch.as_tensor(std, dtype=torch.float64))
    actions = actions or identity(d(torch.zeros(1), 1.0).shape[-1])
    return Denoiser(lambda u, rho, _: d(u, rho), rows, now, actions, levels)


def network(kind, schedule, mean, std):
    """A perfect network of that kind, asked through its own x and time."""

    def net(x, time):
        if schedule is COSINE:
            rho = COSINE.rho[round(time)].item()
        elif isinstance(schedule, VE):
            rho = math.exp(4 * time)
        else:
            rho = time / (1 - time)
        alpha = schedule.alpha(rho)
        x = x * (rho**2 + 1) ** 0.5 if kind == "edm" else x
        return from_x0(kind, best(mean, std)(x / alpha, rho), x, alpha, alpha * rho)

    found = denoiser(net, kind, schedule)
    return Denoiser(lambda u, rho, _: found(u, rho), 1, 0, identity(), COSINE if schedule is COSINE else None)


def run(composition, count=4000, width=1, seed=0):
    noise = draws(count, composition.rows, width, seed=seed)
    return composition.sample([None] * len(composition.parents), noise, noise_from(seed + 1))


# 1: parents, self-composition, order


@pytest.mark.parametrize("stochastic", [False, True])
def test_all_the_weight_gives_the_parent_and_a_policy_with_itself_gives_itself(stochastic):
    a, b = gaussian(0.4, 0.2), gaussian(-0.3, 0.5)
    noise, kind = draws(50, 1, 1), "sde" if stochastic else "ode"

    def alone(p):
        clipped = lambda u, rho: p.denoise(u, rho, None).clamp(-1, 1)  # noqa: E731
        return sample(clipped, COSINE.rho[-1].item() * noise, COSINE.grid(), kind=kind, noise=noise_from(1))

    def both(first, second, w):
        c = Composition([first, second], weights=[w, 1 - w], stochastic=stochastic)
        return c.sample([None, None], noise, noise_from(1))

    assert torch.equal(both(a, b, 1.0), alone(a))
    assert torch.equal(both(a, b, 0.0), alone(b))
    for w in (0.1, 0.3, 0.77):
        assert torch.equal(both(a, a, w), both(a, a, 1.0))
        torch.testing.assert_close(both(a, b, w), both(b, a, 1 - w), rtol=0, atol=1e-12)
    assert (both(a, b, 0.5) - alone(a)).abs().max() > 0.05


def test_a_policy_of_no_weight_is_not_asked():
    def fails(u, rho, condition):
        raise AssertionError

    both = Composition([gaussian(), Denoiser(fails, 1, 0, identity(), COSINE)], weights=[1, 0])
    one = Composition([gaussian(), gaussian()], weights=[1, 0])
    torch.testing.assert_close(*(c.sample([None, None], draws(2, 1, 1)) for c in (both, one)), rtol=0, atol=0)


# 2 and 3: any parameterization and schedule, at equal rho


@pytest.mark.parametrize("first", KINDS, ids=[k for k, _ in KINDS])
def test_one_gaussian_in_any_two_parameterizations_composes_to_itself(first):
    reference = network("eps", COSINE, 0.5, 0.3)
    other = network(*first, 0.5, 0.3)
    for rho in COSINE.grid()[:-1:9]:
        u = draws(20, 1, 1) * rho + 0.5
        expected = best(0.5, 0.3)(u, rho)
        torch.testing.assert_close(other.denoise(u, rho, None), expected, rtol=1e-5, atol=1e-5)
    for w in (0.0, 0.5, 1.0):
        got = run(Composition([reference, other], weights=[w, 1 - w], clip=None))
        assert got.mean().item() == pytest.approx(0.5, abs=0.015)
        assert got.std().item() == pytest.approx(0.293, abs=0.01)


def test_asking_at_the_same_share_of_the_steps_fails_visibly():
    """The sheet's reference: 0.442 and 0.194 with equal weights, 0.396 and 0.128 for the flow alone."""
    eps, flow = network("eps", COSINE, 0.5, 0.3), network("flow", Flow(), 0.5, 0.3)
    for w, mean, std in ((0.5, 0.442, 0.194), (0.0, 0.396, 0.128)):
        x = draws(20000, 1, 1)
        for k in range(99, -1, -1):
            a = COSINE.abar[k].item() ** 0.5
            sigma, s, rho = (1 - a * a) ** 0.5, (k + 1) / 100, COSINE.rho[k].item()
            right = (x - a * eps.denoise(x / a, rho, None)) / sigma
            if s < 1:
                clean = flow.denoise(x / (1 - s), s / (1 - s), None)
                wrong = (x - (1 - s) * clean) / s
            else:
                wrong = x
            noise = w * right + (1 - w) * wrong
            x0 = (x - sigma * noise) / a
            a2 = COSINE.abar[k - 1].item() ** 0.5 if k else 1.0
            x = a2 * x0 + (1 - a2 * a2) ** 0.5 * noise
        assert x.mean().item() == pytest.approx(mean, abs=0.02)
        assert x.std().item() == pytest.approx(std, abs=0.01)


def test_the_grid_is_that_of_the_policy_with_trained_levels_and_another_ones_mismatch_is_reported():
    other = VP(cosine_betas(50))
    free, first, second = gaussian(levels=None), gaussian(), gaussian(levels=other)
    c = Composition([free, first])
    assert [level.rho for level in c.grid] == COSINE.grid()
    assert c.mismatch == [0.0, 0.0]
    c = Composition([first, second], steps=10)
    assert [level.rho for level in c.grid] == COSINE.grid(10)
    assert c.mismatch[0] == 0.0
    gaps = [min(abs(math.log(rho / r)) for r in other.rho.tolist()) for rho in COSINE.grid(10)[:-1]]
    assert c.mismatch[1] == pytest.approx(max(gaps))
    assert all(level.asked[1] in other.rho.tolist() for level in c.grid[:-1])
    assert math.isinf(Composition([free, free]).grid[0].rho)
    with pytest.raises(ConfigError, match="rho = inf"):
        Composition([free, free], "or")


def test_two_flows_take_euler_steps_from_pure_noise():
    """x += (s' - s) f in x's own coordinates, f = (f_1 + f_2) / 2, ten steps."""

    def flow(m, s):  # its velocity at share s of noise is eps - x0
        def denoise(u, rho, _):
            return torch.full_like(u, m) if math.isinf(rho) else best(m, s)(u, rho)

        return Denoiser(denoise, 1, 0, identity(), None)

    a, b = flow(0.3, 0.2), flow(-0.1, 0.3)
    x = noise = draws(30, 1, 1)
    for i in range(10):
        s, rho = 1 - i / 10, math.inf if i == 0 else (1 - i / 10) / (i / 10)
        clean = sum(p.denoise(x if i == 0 else x / (1 - s), rho, None) for p in (a, b)) / 2
        x = x - 0.1 * (x - clean) / s
    got = Composition([a, b], clip=None).sample([None, None], noise)
    torch.testing.assert_close(got, x, rtol=0, atol=1e-6)


# 4 and 5: laws


def test_the_composed_ode_has_the_geometric_mean_of_the_spreads_not_the_products_law():
    """Means -1 and 1, spreads 0.5 and 1: mean -0.226, sd 0.7071; the product of the densities has -0.600, 0.6325."""
    grid = VE().grid(400, smallest=1e-3, largest=400.0)
    a, b = best(-1.0, 0.5), best(1.0, 1.0)
    start = torch.special.ndtri((torch.arange(4000, dtype=torch.float64) + 0.5) / 4000) * grid[0]
    got = sample(lambda u, rho: 0.5 * a(u, rho) + 0.5 * b(u, rho), start, grid, heun=True)
    assert got.std().item() == pytest.approx(0.7071, rel=0.01)
    assert got.mean().item() == pytest.approx(-0.226, abs=0.01)
    # the same through the composition, on the hundred levels of a policy (its ODE steps are longer)
    coarse = run(Composition([gaussian(-1.0, 0.5), gaussian(1.0, 1.0)], clip=None), 20000)
    assert coarse.std().item() == pytest.approx(0.7071, rel=0.04)
    assert coarse.mean().item() == pytest.approx(-0.226, abs=0.03)
    equal = run(Composition([gaussian(-0.5, 0.5), gaussian(1.0, 0.5)], weights=[0.2, 0.8], clip=None), 20000)
    assert equal.mean().item() == pytest.approx(0.2 * -0.5 + 0.8 * 1.0, abs=0.02)


def test_the_product_adds_the_scores():
    """Posterior steps with the sum of two equal scores: the variance solves var' = (4 rho var / (s^2 + rho^2) - 2 rho)."""
    c = Composition([gaussian(0.2, 0.5), gaussian(0.2, 0.5)], "product", stochastic=True, clip=None)
    var = c.grid[0].rho ** 2
    for level, after in zip(c.grid, c.grid[1:], strict=False):
        pull = 2 * (1 - after.rho**2 / level.rho**2) * level.rho**2 / (0.25 + level.rho**2)
        var = (1 - pull) ** 2 * var + after.rho**2 * (1 - after.rho**2 / level.rho**2)
    got = run(c, 20000)
    assert got.std().item() == pytest.approx(var**0.5, rel=0.03)
    assert got.std().item() < 0.45  # narrower than either
    u, z = draws(3, 1, 1), torch.zeros(3, 1, 1)
    clean = c.clean(u, c.grid[50], [None, None])
    rho = c.grid[50].rho
    total = (c.combine(clean, u, rho, 0.0, z, torch.zeros(2, 3)) - u) / rho**2
    torch.testing.assert_close(total, ((clean - u) / rho**2).sum(0))


def quadratic(c, a=1.0, b=1.5):
    """w* and Q* of the mean squared error w^2 a + (1 - w)^2 b + 2 w (1 - w) c of two averaged scores."""
    return (b - c) / (a + b - 2 * c), (a * b - c * c) / (a + b - 2 * c)


@pytest.mark.parametrize("c", [-0.5, 0.3, 1.2])
def test_the_error_of_an_average_is_the_quadratic_and_gains_only_if_errors_are_not_aligned(c):
    """Errors with E|e1|^2 = 1, E|e2|^2 = 1.5, E<e1, e2> = c: inside (0, 1) if and only if c < 1."""
    factor = torch.linalg.cholesky(torch.tensor([[1.0, c], [c, 1.5]], dtype=torch.float64))
    e = draws(200_000, 2) @ factor.T
    truth = draws(200_000, seed=3)
    clean = torch.stack((truth + e[:, 0], truth + e[:, 1]))[:, :, None, None]
    q = {}
    for w in [i / 20 for i in range(21)]:
        comp = Composition([gaussian(), gaussian()], weights=[w, 1 - w])
        got = comp.combine(clean, clean[0], 1.0, 0.5, clean[0], torch.zeros(2, 200_000))
        q[w] = (got[:, 0, 0] - truth).square().mean().item()
        assert q[w] == pytest.approx(w * w + 1.5 * (1 - w) ** 2 + 2 * w * (1 - w) * c, rel=0.02)
    w_star, q_star = quadratic(c)
    found = min(q, key=q.get)
    if c < 1:
        assert found == pytest.approx(w_star, abs=0.05)
        assert q[found] == pytest.approx(q_star, rel=0.02)
        assert q[found] < 0.99
    else:
        assert found == 1.0


def test_the_bound_on_the_terminal_error_of_a_linear_flow():
    """6: x' = -x + s with a wrong score s + kappa: the error is kappa (1 - e^-T); the bound holds, tight for T -> 0."""
    for horizon in (0.01, 0.5, 2.0):
        kappa, steps = 0.3, 4000
        h = horizon / steps
        error = 0.0
        for _ in range(steps):
            error += h * (-error + kappa)
        assert error == pytest.approx(kappa * (1 - math.exp(-horizon)), rel=1e-3)
        times = (torch.arange(steps) + 0.5) * h
        bound = (h * torch.exp(2 * (horizon - times)).sum() * kappa**2 * horizon).sqrt().item()
        assert error <= bound
        if horizon == 0.01:
            assert error == pytest.approx(bound, rel=0.02)


# 7: OR, AND, AVG


def test_or_keeps_both_modes_and_their_spreads():
    parents = [gaussian(-2.0, 0.3), gaussian(2.0, 0.3)]
    x = run(Composition(parents, "or", clip=None), 4000)[:, 0, 0]
    right = x > 0
    assert right.double().mean().item() == pytest.approx(0.5, abs=0.04)
    for side, mean in ((right, 2.0), (~right, -2.0)):
        assert x[side].mean().item() == pytest.approx(mean, abs=0.05)
        assert x[side].std().item() == pytest.approx(0.3, rel=0.08)
    more = run(Composition(parents, "or", [0.0, math.log(3)], clip=None), 4000)
    assert (more > 0).double().mean().item() == pytest.approx(0.75, abs=0.04)


def plane(mean):
    return gaussian([mean, 0.0], 0.5, actions=identity(2))


def test_and_lies_between_the_two_and_keeps_the_other_direction():
    """Means +-1.5 on the first axis, spread 0.5: the equidistant plane x = 0, y as before."""
    c = Composition([plane(-1.5), plane(1.5)], "and", clip=None)
    x = run(c, 4000, 2)[:, 0]
    assert x[:, 0].std().item() < 0.05
    assert x[:, 1].std().item() == pytest.approx(0.5, rel=0.06)
    convex = run(Composition([plane(-1.5), plane(1.5)], clip=None), 4000, 2)[:, 0]
    assert convex[:, 0].mean().item() == pytest.approx(0.0, abs=0.03)
    assert convex[:, 0].std().item() == pytest.approx(0.5, rel=0.06)


@pytest.mark.parametrize("n", [2, 3])
def test_ands_weights_change_all_log_densities_alike(n):
    """<S_i, du> - v |S_i|^2 / 2 is the same for all; two equal scores get half each."""
    pulls, z, rho, after = draws(n, 5, 2, 3), draws(5, 2, 3, seed=4), 0.8, 0.6
    k = and_weights(pulls, z, rho, after)
    torch.testing.assert_close(k.sum(0), torch.ones(5, dtype=torch.float64))
    v, g = rho**2 - after**2, after * math.sqrt(1 - after**2 / rho**2)
    s = pulls / rho**2
    du = v * (k[:, :, None, None] * s).sum(0) + g * z
    change = (s * du).flatten(2).sum(2) - v / 2 * s.square().flatten(2).sum(2)
    torch.testing.assert_close(change, change[:1].expand(n, -1), rtol=1e-6, atol=1e-8)
    same = pulls[:1].expand(2, -1, -1, -1)
    torch.testing.assert_close(and_weights(same, z, rho, after), torch.full((2, 5), 0.5).double())


def test_the_small_step_is_superdiffs():
    """k = 1/2 - <Delta, z> / (|Delta|^2 sqrt(2 rho d)) as d -> 0."""
    pulls, z, rho, d = draws(2, 5, 1, 3), draws(5, 1, 3, seed=4), 0.8, 1e-7
    delta = ((pulls[0] - pulls[1]) / rho**2).flatten(1)
    expected = 0.5 - (delta * z.flatten(1)).sum(1) / (delta.square().sum(1) * math.sqrt(2 * rho * d))
    torch.testing.assert_close(and_weights(pulls, z, rho, rho - d)[0], expected, rtol=1e-4, atol=1e-4)


# 8: chunks of other lengths, other normalizers


@pytest.mark.parametrize("operator", ["convex", "product", "or", "and"])
def test_rows_that_one_policy_covers_are_its_alone(operator):
    """A plans rows -1 .. 6, B rows 0 .. 3 of time: A's first and last rows are those of A, the others are not."""
    long, short = gaussian(0.4, 0.2, rows=8, now=1), gaussian(-0.3, 0.5, rows=4, now=0)
    c = Composition([long, short], operator, stochastic=True, clip=None)
    assert (c.rows, c.now) == (8, 1)
    noise = draws(40, 8, 1)
    got = c.sample([None, None], noise, noise_from(1))
    start = COSINE.rho[-1].item() * noise
    alone = sample(
        lambda u, rho: long.denoise(u, rho, None), start, COSINE.grid(), kind="sde", noise=noise_from(1)
    )
    torch.testing.assert_close(got[:, [0, 5, 6, 7]], alone[:, [0, 5, 6, 7]], rtol=0, atol=1e-9)
    assert ((got - alone)[:, 1:5].abs().amax((0, 2)) > 0.05).all()


def test_now_is_laid_on_now():
    a, b = gaussian(rows=4, now=2), gaussian(rows=4, now=0)
    slices = [(x.rows.start, x.rows.stop) for x in align([a, b])]
    assert slices == [(0, 4), (2, 6)]
    assert Composition([a, b]).rows == 6
    assert Composition([b, a]).now == 2


def test_one_scalar_factor_between_normalizers_is_exact():
    """Actions N(3, 2^2); B's units are half of A's and shifted. The common law is A's, B is asked at half the noise."""
    a = gaussian(0.3, 0.2, actions=affine([0.1], [0.0]))
    b = gaussian(0.15 + 0.4, 0.1, levels=None, actions=affine([0.05], [0.4]))
    c = Composition([a, b], weights=[0.3, 0.7])
    assert c.grid[30].asked[1] == pytest.approx(c.grid[30].rho / 2)
    u = draws(20, 1, 1)
    expected = best(0.3, 0.2)(u, c.grid[30].rho)
    clean = c.clean(u, c.grid[30], [None, None])
    torch.testing.assert_close(clean, expected.expand(2, -1, -1, -1).clone(), rtol=1e-9, atol=1e-9)
    swapped = Composition([b, a], weights=[0.7, 0.3])  # the grid is A's in B's units
    assert swapped.grid[30].asked[1] == pytest.approx(COSINE.grid()[30])
    assert swapped.mismatch[1] < 1e-9


def test_another_factor_in_each_dim_is_refused_with_the_ratios_unless_allowed():
    a = gaussian([0.0, 0.0], 1.0, actions=affine([1.0, 1.0], [0.0, 0.0]))
    b = gaussian([0.0, 0.0], 1.0, actions=affine([1.0, 3.0], [0.0, 0.0]))
    with pytest.raises(ConfigError, match=r"0: 1, 1: 3.*allow-anisotropic"):
        Composition([a, b])
    c = Composition([a, b], allow_anisotropic=True)
    assert c.alignments[1].scale == pytest.approx(3**0.5)
    with pytest.raises(ConfigError, match="different numbers of action dims"):
        Composition([a, gaussian()])


@pytest.mark.parametrize(
    ("weights", "message"),
    [([0.5, 0.6], "sum to 1"), ([-0.1, 1.1], "0 or more"), ([1.0], "2 finite"), ([math.nan, 1], "finite")],
)
def test_weights_that_are_none_are_refused(weights, message):
    with pytest.raises(ConfigError, match=message):
        Composition([gaussian(), gaussian()], weights=weights)


@pytest.mark.parametrize("steps", [0, -1, 101])
def test_noise_levels_that_are_none_are_refused(steps):
    """Of flows -1 would be no level at all, and the answer zero."""
    flows = [gaussian(levels=None), gaussian(levels=None)]
    for parents in ([gaussian(), flows[0]], [flows[0], gaussian()], *([flows] if steps < 1 else [])):
        with pytest.raises(ConfigError, match=f"noise levels of a composition must be .*, got {steps}"):
            Composition(parents, steps=steps)


def test_one_policy_is_no_composition():
    with pytest.raises(ConfigError, match="two or more"):
        Composition([gaussian()])
    with pytest.raises(ConfigError, match="leave --weights out"):
        Composition([gaussian(), gaussian()], "and", [0.5, 0.5])


# --- action normalizers with another factor in each dim


def skewed(ratio, correlation):
    """Two faces of one 2-D Gaussian law, the second in units that are ``ratio`` times the first's."""
    cov = torch.tensor([[0.09, correlation * 0.03], [correlation * 0.03, 0.01]], dtype=torch.float64)
    mean, eye = torch.tensor([0.2, -0.1], dtype=torch.float64), torch.eye(2, dtype=torch.float64)

    def face(scale):
        stretch = torch.tensor(scale, dtype=torch.float64)
        own, middle = stretch[:, None] * cov * stretch, stretch * mean

        def denoise(u, rho, condition):
            if math.isinf(rho):
                return middle.expand_as(u)
            return middle + (u - middle) @ torch.linalg.solve(own + rho**2 * eye, own)

        return Denoiser(denoise, 1, 0, affine(scale, [0.0, 0.0]))

    return face([1.0, 1.0]), face(ratio)


def biases(ratio, correlation, matching):
    """Of a law composed with itself: error of the mean, spreads over the true ones, correlation."""
    c = Composition(
        skewed(ratio, correlation), steps=50, clip=None, allow_anisotropic=True, matching=matching
    )
    x = run(c, 8000, 2)[:, 0]
    cov = torch.cov(x.T)
    sd = cov.diagonal().sqrt()
    error = (x.mean(0) - x.new_tensor([0.2, -0.1])).abs().max().item()
    return error, (sd / sd.new_tensor([0.3, 0.1])).tolist(), (cov[0, 1] / sd.prod()).item()


@pytest.mark.parametrize("matching", ["mean", "levels", "top_up"])
def test_one_factor_for_all_dims_is_exact_whatever_the_matching(matching):
    error, spreads, correlation = biases([0.25, 0.25], 0.8, matching)
    assert (error, *spreads, correlation) == pytest.approx(same_units(0.8), abs=1e-6)


def test_levels_for_each_dim_are_exact_where_the_dims_are_independent():
    error, spreads, correlation = biases([0.25, 1.0], 0.0, "levels")
    assert (error, *spreads, correlation) == pytest.approx(same_units(0.0), abs=1e-6)


def same_units(correlation):
    """What fifty Euler steps give without any difference of the units."""
    error, spreads, found = biases([1.0, 1.0], correlation, "mean")
    return error, *spreads, found


def test_the_bias_of_each_remedy_is_what_the_page_says():
    """Spread of either dim over the true one, and the correlation (true: 0 and 0.8), at a ratio of 1 to 4."""
    page = (Path(__file__).parents[2] / "docs/policies.md").read_text()
    for correlation in (0.0, 0.8):
        for matching in ("mean", "levels", "top_up"):
            error, spreads, found = biases([0.25, 1.0], correlation, matching)
            assert error < 0.02, "none of them moves the mean"
            row = re.search(rf"\| `{matching}` \| {correlation:g} \| (\S+), (\S+) \| (\S+) \|", page)
            assert row, (matching, correlation, spreads, found)
            told = [float(x) for x in row.groups()]
            assert [*spreads, found] == pytest.approx(told, abs=0.03), (matching, correlation)


# --- bounds, temperature, and the pure noise that flows begin at


def test_pure_noise_is_told_as_it_is_whatever_the_units():
    """At rho = inf it is u / rho, which has neither a scale nor a place; the answer is in the policy's own units."""
    told = []

    def denoise(u, rho, condition):
        told.append((rho, u))
        return torch.full_like(u, 3.0)

    other = Denoiser(denoise, 1, 0, affine([4.0], [1.0]))
    c = Composition([gaussian(levels=None), other], weights=[0.0, 1.0], steps=2, clip=None)
    noise = draws(5, 1, 1)
    out = c.sample([None, None], noise)
    assert [rho for rho, _ in told] == [math.inf, 4.0]  # s of 1 and 1/2
    assert torch.equal(told[0][1], noise)
    torch.testing.assert_close(told[1][1], 4 * (0.5 + noise) + 1)
    torch.testing.assert_close(out, torch.full_like(out, 0.5))  # (3 - 1) / 4


def test_a_cold_or_is_the_mixture_of_its_weights():
    """At T = 0 densities have no say: softmax(l) are the weights of the stochastic convex composition."""
    parents, noise = [gaussian(0.4, 0.2), gaussian(-0.3, 0.5)], draws(50, 1, 1)
    cold = Composition(parents, "or", [math.log(0.3), math.log(0.7)], temperature=0.0)
    convex = Composition(parents, weights=[0.3, 0.7], stochastic=True)
    warm = Composition(parents, "or", [math.log(0.3), math.log(0.7)])
    drawn = [c.sample([None, None], noise, noise_from(1)) for c in (cold, convex, warm)]
    torch.testing.assert_close(drawn[0], drawn[1])
    assert (drawn[2] - drawn[0]).abs().max() > 0.05


def test_the_bound_is_the_one_that_was_given():
    c = Composition([gaussian(0.9, 0.01), gaussian(0.9, 0.01)], clip=0.5)
    torch.testing.assert_close(c.sample([None, None], draws(5, 1, 1)), torch.full((5, 1, 1), 0.5).double())
