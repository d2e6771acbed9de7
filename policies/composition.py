"""General policy composition: frozen diffusion and flow policies denoise one chunk of actions together.

    u = x / alpha, rho = sigma / alpha     the noisy chunk, in the first policy's normalized actions
    D_i = D_i(u, rho)                      clean chunk according to policy i, S_i = (D_i - u) / rho^2 its score
    convex     D = sum_i w_i D_i,  w_i >= 0, sum w_i = 1
    product    D = u + sum_i w_i (D_i - u), w_i = 1: the sum of the scores
    or         D = sum_i softmax_i(T log p_i + l_i) D_i                         (SuperDiff)
    and        D = sum_i k_i D_i, sum k_i = 1, d log p_i the same for all i      (SuperDiff)

One step goes from rho to rho' < rho; v = rho^2 - rho'^2 and g = rho' sqrt(1 - rho'^2 / rho^2) are the drift's and the
noise's sizes in the posterior step (2 rho d and sqrt(2 rho d) for small d = rho - rho'), and without divergences

    du = v S + g z,   d log p_i = <S_i, du> - v |S_i|^2 / 2
    two policies, and:  k_1 = 1/2 - g <S_1 - S_2, z> / (v |S_1 - S_2|^2)

Policies may differ in schedule, parameterization, length and history of their chunks, and in one scalar factor between
their action normalizers z_i = r_i z + o_i: policy i is asked at (r_i u + o_i, r_i rho). Rows are aligned in time, "now"
on "now"; a row that only some policies cover is theirs alone. Ratios that differ between action dims stretch the noise,
which no isotropic network was trained on; if allowed, policy i is asked

    mean     once, at the geometric mean of the ratios
    levels   once for each ratio r, at r rho; of each answer the dims of that ratio count: exact for independent dims
    top_up   once, at the largest ratio, after noise was added in the other dims: D for a noisier chunk

Where a policy has trained levels only, these make the
grid; a second one's are the nearest in ln rho, and how far they are is reported.

Source: GPC, arXiv:2510.01068; SuperDiff, arXiv:2412.17762; (u, rho): arXiv:2206.00364.
Departures: exact v and g instead of their limits, so that steps may be as long as those of a hundred-level schedule.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from offrl.data.normalize import AffineNormalizer
from offrl.diffusion.schedules import VP, Flow
from offrl.diffusion.steppers import ode_step, sde_step
from offrl.errors import ConfigError

Operator: TypeAlias = Literal["convex", "product", "or", "and"]
OPERATORS: tuple[Operator, ...] = get_args(Operator)
Matching: TypeAlias = Literal["mean", "levels", "top_up"]
MATCHINGS: tuple[Matching, ...] = get_args(Matching)
Noise: TypeAlias = Callable[[Tensor], Tensor]
RATIO_TOLERANCE = 1e-5  # relative, between the columns' ratios of two normalizers


@dataclass(frozen=True)
class Denoiser:
    """The face that any diffusion or flow policy shows to a composition.

    Args:
        denoise: (u (B, H, A), rho, condition) -> D (B, H, A), all in the policy's own normalized actions; rho may be
            inf for a flow, u is then the pure noise.
        rows: H, steps of a chunk.
        now: row of the step to come.
        actions: normalizer of the actions.
        levels: the schedule, where only its levels were trained; None for any level.
    """

    denoise: Callable[[Tensor, float, Any], Tensor]
    rows: int
    now: int
    actions: AffineNormalizer
    levels: VP | None = None


@dataclass(frozen=True)
class Alignment:
    """Where a policy's chunk lies in the common one: rows, and z_i = ratio z + offset."""

    rows: slice
    ratio: Tensor  # (A,)
    offset: Tensor  # (A,)
    scale: float  # the ratio as one number
    matching: Matching = "mean"  # where the ratio is no single number

    @property
    def same(self) -> bool:
        """Whether both spaces are one, to the bit."""
        return bool((self.ratio == 1).all() and (self.offset == 0).all())

    @property
    def scales(self) -> list[float]:
        """Ratios of the noise levels at which the policy is asked: several only if levels are matched per dim."""
        one = _one_number(self.ratio) or self.matching != "levels"
        return [self.scale] if one else sorted(set(self.ratio.tolist()))

    def ask(self, parent: Denoiser, u: Tensor, rho: float, condition: Any, draw: Noise) -> Tensor:
        """D of the policy in the common space, on its rows (B, H_i, A).

        Args:
            parent: the policy.
            u: noisy chunk in the common space.
            rho: its level there.
            condition: of the policy.
            draw: noise for ``top_up``.
        """
        own = u[:, self.rows]
        if self.same:
            return parent.denoise(own, nearest(parent, rho * self.scale)[0], condition)
        shift = 0.0 if math.isinf(rho) else self.offset  # pure noise has no place
        scale = 1.0 if math.isinf(rho) else self.ratio
        own = own * scale + shift
        if self.matching == "top_up" and not math.isinf(rho):
            missing = (self.scale**2 - self.ratio**2).clamp(min=0.0).sqrt()
            own = own + rho * missing * draw(own)
        answers = [parent.denoise(own, nearest(parent, rho * scale)[0], condition) for scale in self.scales]
        out = answers[0]
        for scale, answer in zip(self.scales[1:], answers[1:], strict=True):
            out = torch.where(self.ratio == scale, answer, out)
        return (out - self.offset) / self.ratio


def nearest(parent: Denoiser, rho: float) -> tuple[float, float]:
    """The level at which a policy can be asked, and how far it is in ln rho: the nearest trained one."""
    if parent.levels is None:
        return rho, 0.0
    index, gap = parent.levels.nearest(rho)
    return float(parent.levels.rho[index]), gap


def align(
    parents: Sequence[Denoiser], allow_anisotropic: bool = False, matching: Matching = "mean"
) -> list[Alignment]:
    """Rows and units of each policy in the common chunk: the union of their steps, in the first one's units.

    Args:
        parents: two or more policies.
        allow_anisotropic: go on where the ratio of the normalizers differs between action dims: no longer exact.
        matching: how then; see the module's text.

    Raises:
        ConfigError: other numbers of action dims, or ratios that differ.
    """
    if matching not in MATCHINGS:
        raise ConfigError(f"unknown matching {matching!r}; known are {', '.join(MATCHINGS)}")
    widths = [len(p.actions.scale) for p in parents]
    if len(set(widths)) > 1:
        raise ConfigError(f"the policies have different numbers of action dims: {widths}")
    first, reference = max(p.now for p in parents), parents[0].actions
    base = reference.offset - reference.shift * reference.scale
    out = []
    for number, parent in enumerate(parents):
        n = parent.actions
        ratio = n.scale / reference.scale
        if not allow_anisotropic and not _one_number(ratio):
            raise ConfigError(_ratio_table(number, ratio))
        offset = (n.offset - n.shift * n.scale) - ratio * base
        same = torch.equal(ratio, torch.ones_like(ratio)) and offset.abs().max() <= RATIO_TOLERANCE
        offset = torch.zeros_like(offset) if same else offset
        begin = first - parent.now
        mean, most = float(ratio.double().log().mean().exp()), float(ratio.max())
        scale = most if matching == "top_up" and not _one_number(ratio) else mean
        rows = slice(begin, begin + parent.rows)
        out.append(Alignment(rows, ratio, offset, 1.0 if same else scale, matching))
    return out


def normalizer_ratios(actions: Sequence[AffineNormalizer]) -> list[Tensor]:
    """Scale of each normalizer over that of the first, (A,) each."""
    return [n.scale / actions[0].scale for n in actions]


def _one_number(ratio: Tensor) -> bool:
    return float(ratio.max() / ratio.min()) <= 1 + RATIO_TOLERANCE


def _ratio_table(number: int, ratio: Tensor) -> str:
    table = ", ".join(f"{i}: {x:.4g}" for i, x in enumerate(ratio.tolist()))
    return (
        f"the action normalizers of policies 1 and {number + 1} differ by another factor in each action dim "
        f"({table}): their noise has different shapes and cannot be matched exactly; "
        "best retrain one on the other's units ('offrl policy renormalize'), or go on with --allow-anisotropic, which "
        "is not exact (--matching levels, top_up or mean)"
    )


@dataclass(frozen=True)
class Level:
    """One level of the grid, and the level at which each policy is asked there (in its own units)."""

    rho: float
    asked: tuple[float, ...]


def common_grid(
    parents: Sequence[Denoiser], alignments: Sequence[Alignment], steps: int | None
) -> tuple[list[Level], list[float]]:
    """The noise levels of a composition, and for each policy the worst |ln rho| by which it is asked elsewhere.

    The first policy with trained levels gives them; without one the grid is a flow's, equal steps in s.

    Args:
        parents: the policies.
        alignments: as from ``align``.
        steps: number of levels; None is all of the trained ones, 10 for flows.

    Raises:
        ConfigError: fewer than one level, or more than were trained.
    """
    owner = next((i for i, p in enumerate(parents) if p.levels is not None), None)
    trained = None if owner is None else parents[owner].levels
    if steps is not None and (steps < 1 or (trained is not None and steps > len(trained.rho))):
        most = "1 or more" if trained is None else f"in 1 .. {len(trained.rho)}, the trained levels"
        raise ConfigError(f"the noise levels of a composition must be {most}, got {steps}")
    if owner is None or trained is None:
        rhos = Flow().grid(10 if steps is None else steps)
    else:
        rhos = [rho / alignments[owner].scale for rho in trained.grid(steps)]
    grid, worst = [], [0.0] * len(parents)
    for rho in rhos[:-1]:
        asked = []
        for i, (parent, a) in enumerate(zip(parents, alignments, strict=True)):
            worst[i] = max(worst[i], *(nearest(parent, rho * scale)[1] for scale in a.scales), 0.0)
            asked.append(nearest(parent, rho * a.scale)[0])
        grid.append(Level(rho, tuple(asked)))
    return [*grid, Level(0.0, ())], worst


class Composition:
    """Policies that denoise together.

    Args:
        parents: two or more.
        operator: how their clean chunks are combined.
        weights: of ``convex`` (0 or more, summing to 1) and ``product`` (default 1 each); log-weights l of ``or``.
        steps: levels of the grid, see ``common_grid``.
        stochastic: posterior steps (DDPM) instead of the ODE's; ``or`` and ``and`` always take them.
        clip: bound of the combined clean chunk in normalized actions; None for none.
        temperature: T of ``or``.
        allow_anisotropic, matching: see ``align``.

    Attributes:
        grid: the levels.
        mismatch: per policy, the worst |ln rho| between a level of the grid and the one it was asked at.
        rows, now: of the common chunk.

    Raises:
        ConfigError: what cannot be composed, or weights that are none.
    """

    def __init__(
        self,
        parents: Sequence[Denoiser],
        operator: Operator = "convex",
        weights: Sequence[float] | None = None,
        *,
        steps: int | None = None,
        stochastic: bool = False,
        clip: float | None = 1.0,
        temperature: float = 1.0,
        allow_anisotropic: bool = False,
        matching: Matching = "mean",
    ) -> None:
        if len(parents) < 2:
            raise ConfigError(f"a composition needs two or more policies, got {len(parents)}")
        self.parents, self.operator = list(parents), operator
        self.weights = check_weights(operator, weights, len(parents))
        self.alignments = align(parents, allow_anisotropic, matching)
        self.grid, self.mismatch = common_grid(parents, self.alignments, steps)
        self.stochastic = stochastic or operator in ("or", "and")
        if self.stochastic and math.isinf(self.grid[0].rho):
            raise ConfigError("stochastic steps need a policy with trained levels: flows begin at rho = inf")
        self.clip, self.temperature = clip, temperature
        self.now = max(p.now for p in parents)
        self.rows = max(a.rows.stop for a in self.alignments)
        self.cover = torch.zeros(len(parents), self.rows, dtype=torch.bool)
        for i, a in enumerate(self.alignments):
            self.cover[i, a.rows] = True
        needed = self.cover.new_tensor([w != 0 or operator != "convex" for w in self.weights])
        alone = (self.cover & ~(self.cover & needed[:, None]).any(0)).any(1)
        self.asked = (needed | alone).tolist()  # a policy of weight 0 is not, unless a row is its alone

    def sample(self, conditions: Sequence[Any], noise: Tensor, draw: Noise = torch.randn_like) -> Tensor:
        """Clean chunks (B, H, A) in the first policy's normalized actions.

        Args:
            conditions: one a policy, as its ``denoise`` takes them.
            noise: standard normal draws (B, H, A), shared by all policies.
            draw: later draws of stochastic steps.
        """
        u = noise if math.isinf(self.grid[0].rho) else self.grid[0].rho * noise
        log_p = u.new_zeros(len(self.parents), len(u))
        for level, after in pairwise(self.grid):
            clean = self.clean(u, level, conditions, draw)
            z = draw(u) if self.stochastic else torch.zeros_like(u)
            x0 = self.combine(clean, u, level.rho, after.rho, z, log_p)
            x0 = x0 if self.clip is None else x0.clamp(-self.clip, self.clip)
            if not self.stochastic:
                u = ode_step(u, x0, level.rho, after.rho)
                continue
            moved = sde_step(u, x0, level.rho, after.rho, z)
            if self.operator == "or":
                log_p = log_p + self._log_p_change(clean, u, moved - u, level.rho, after.rho)
            u = moved
        return u

    def clean(
        self, u: Tensor, level: Level, conditions: Sequence[Any], draw: Noise = torch.randn_like
    ) -> Tensor:
        """D_i on the common rows (n, B, H, A), 0 where a policy covers none or is not asked."""
        out = u.new_zeros(len(self.parents), *u.shape)
        for i, (parent, a) in enumerate(zip(self.parents, self.alignments, strict=True)):
            if self.asked[i]:
                out[i, :, a.rows] = a.ask(parent, u, level.rho, conditions[i], draw)
        return out

    def combine(
        self, clean: Tensor, u: Tensor, rho: float, rho_next: float, z: Tensor, log_p: Tensor
    ) -> Tensor:
        """The combined clean chunk (B, H, A), not clipped.

        Args:
            clean: (n, B, H, A), as from ``clean``.
            u: noisy chunk at ``rho``.
            rho: its level.
            rho_next: level after the step.
            z: noise of the step (``and``).
            log_p: (n, B), log-densities up to a common constant (``or``).
        """
        cover = self.cover.to(u.device)[:, None, :, None]
        weights = u.new_tensor(self.weights)
        if self.operator == "product":
            return u + (weights.view(-1, 1, 1, 1) * cover * (clean - u)).sum(0)
        if self.operator == "convex":
            return _average(clean, weights.view(-1, 1, 1, 1).expand(-1, len(u), 1, 1), cover)
        shared = cover.all(0)
        if self.operator == "or":
            k = torch.softmax(self.temperature * log_p + weights[:, None], dim=0)
            return _average(clean, k[:, :, None, None], cover)
        k = and_weights((clean - u) * shared, z * shared, rho, rho_next)
        alone = _average(clean, torch.ones_like(k)[:, :, None, None], cover)
        return torch.where(shared, (k[:, :, None, None] * clean).sum(0), alone)

    def _log_p_change(self, clean: Tensor, u: Tensor, du: Tensor, rho: float, rho_next: float) -> Tensor:
        v, _ = _sizes(rho, rho_next)
        shared = self.cover.to(u.device).all(0)[:, None]
        scores = ((clean - u) * shared / rho**2).flatten(2)
        return (scores * du.flatten(1)).sum(2) - v / 2 * scores.square().sum(2)


def _sizes(rho: float, rho_next: float) -> tuple[float, float]:
    """V and g of the posterior step."""
    v = rho**2 - rho_next**2
    return v, rho_next * math.sqrt(max(v, 0.0)) / rho


def _average(clean: Tensor, weights: Tensor, cover: Tensor) -> Tensor:
    """Weighted mean over the policies that cover a row; exact where they agree, or one has all the weight.

    Args:
        clean: (n, B, H, A).
        weights: (n, B, 1, 1), 0 or more.
        cover: (n, 1, H, 1) bool.
    """
    held = weights * cover
    total = held.sum(0)
    held = torch.where(total > 0, held, cover.to(held.dtype))
    share = held / held.sum(0)
    first = (share > 0).to(torch.uint8).argmax(0, keepdim=True).expand(1, *clean.shape[1:])
    base = clean.gather(0, first)[0]
    return base + (share * (clean - base)).sum(0)


def and_weights(pulls: Tensor, z: Tensor, rho: float, rho_next: float) -> Tensor:
    """K (n, B), summing to 1, with which all log-densities change alike in the step from ``rho`` to ``rho_next``.

    Args:
        pulls: D_i - u (n, B, H, A).
        z: noise of the step (B, H, A).
        rho: level before the step.
        rho_next: level after it.

    Two policies whose scores agree get 1/2 each; more are solved by least squares.
    """
    (v, g), n = _sizes(rho, rho_next), len(pulls)
    scores, flat = pulls.flatten(2) / rho**2, z.flatten(1)
    if n == 2:
        delta = scores[0] - scores[1]
        square = delta.square().sum(1)
        push = g * (delta * flat).sum(1) / (v * square.clamp(min=1e-12))
        k = torch.where(square < 1e-12, 0.5, 0.5 - push)
        return torch.stack((k, 1 - k))
    s = scores.double().transpose(0, 1)  # (B, n, N)
    matrix = s.new_zeros(
        len(s), n + 1, n + 1
    )  # <S_i, v sum_j k_j S_j + g z> - v |S_i|^2 / 2 = c, sum_j k_j = 1
    matrix[:, :n, :n] = v * s @ s.transpose(1, 2)
    matrix[:, :n, n] = -1.0
    matrix[:, n, :n] = 1.0
    right = s.new_ones(len(s), n + 1)
    right[:, :n] = v / 2 * s.square().sum(2) - g * (s @ flat.double()[:, :, None])[..., 0]
    solution: Tensor = torch.linalg.pinv(matrix, rtol=1e-10) @ right[..., None]
    return solution[:, :n, 0].transpose(0, 1).to(pulls.dtype)


def check_weights(operator: str, weights: Sequence[float] | None, count: int) -> list[float]:
    """The weights of ``count`` policies, filled in where None.

    Raises:
        ConfigError: another number of them, not finite, or for ``convex`` negative or not summing to 1.
    """
    if operator not in OPERATORS:
        raise ConfigError(f"unknown operator {operator!r}; known are {', '.join(OPERATORS)}")
    if operator == "and" and weights is not None:
        raise ConfigError("the operator 'and' finds its weights itself; leave --weights out")
    if weights is None:
        return [{"convex": 1 / count, "product": 1.0, "or": 0.0, "and": 0.0}[operator]] * count
    given = [float(w) for w in weights]
    if len(given) != count or not all(math.isfinite(w) for w in given):
        raise ConfigError(f"weights must be {count} finite numbers, one a policy, got {given}")
    if operator == "convex" and (min(given) < 0 or abs(sum(given) - 1) > 1e-6):
        raise ConfigError(
            f"weights of a convex composition must be 0 or more and sum to 1, got {given}: another sum would "
            "change the noise level"
        )
    return given
