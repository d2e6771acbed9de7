"""One policy-gradient estimator from parts that are named once.

    w    = mask * ratio * advantage * shaping          without gradient, one number a step
    loss = -aggregate(w * log pi - sum_k coefficient_k * regularizer_k)

Its gradient is that of the clipped surrogates (PPO, GRPO, ...) exactly; only the loss's value differs, for which
there is ``surrogate``.

A part is a pure function of tensors. Its positional arguments are named after what it reads
(fields of ``Rollouts`` or of a subclass; ``log_probs``, ``ratio``, ``advantages``, ``entropy``, ``predicted_values``
of the step), its keyword-only arguments are its settings, and an argument whose default is None may be missing. Names
are looked up and arguments resolved in ``compose``; a step only calls functions.

Source: the unified view, arXiv:2509.04419.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from offrl.estimators.advantages import ADVANTAGES
from offrl.estimators.aggregation import Aggregation, aggregator, masked_sum
from offrl.estimators.masks import BOUNDS, MASKS
from offrl.estimators.ratios import DENOMINATORS
from offrl.estimators.regularizers import REGULARIZERS, k3
from offrl.estimators.rollouts import Counts, Rollouts
from offrl.estimators.shaping import SHAPINGS

Function = Callable[..., Tensor]
Spec = str | Function | tuple[str | Function, Mapping[str, Any]]
"""A part: its name or the function itself, alone or with settings."""
Specs = Spec | list[Spec] | tuple[()]

STEP_FIELDS = ("log_probs", "ratio", "advantages", "entropy", "predicted_values")


class Step:
    """What the parts read: the rollouts and what the current policy says about them."""

    __slots__ = ("rollouts", *STEP_FIELDS)

    def __init__(
        self,
        rollouts: Rollouts,
        log_probs: Tensor | None = None,
        advantages: Tensor | None = None,
        entropy: Tensor | None = None,
        predicted_values: Tensor | None = None,
    ) -> None:
        self.rollouts, self.log_probs, self.advantages = rollouts, log_probs, advantages
        self.entropy, self.predicted_values = entropy, predicted_values
        self.ratio: Tensor | None = None


class Part:
    """A function with its settings, and where its arguments come from."""

    __slots__ = ("function", "name", "required", "sources")

    def __init__(self, name: str, function: Function, settings: Mapping[str, Any]) -> None:
        parameters = inspect.signature(function).parameters.values()
        options = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
        if unknown := sorted(set(settings) - options):
            raise ValueError(
                f"{name} has no setting {unknown[0]!r}; it has: {', '.join(sorted(options)) or 'none'}"
            )
        inputs = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        if wrong := [p.name for p in inputs if p.default not in (p.empty, None)]:
            raise ValueError(f"{name}: the setting {wrong[0]!r} must be keyword-only (after a *)")
        self.name, self.function = name, partial(function, **settings) if settings else function
        self.required = tuple(p.name for p in inputs if p.default is p.empty)
        self.sources = tuple((p.name, p.name in STEP_FIELDS, p.default is p.empty) for p in inputs)

    def __call__(self, step: Step) -> Tensor:
        """The function's value.

        Raises:
            ValueError: the rollouts lack a field.
        """
        values = []
        for name, of_the_step, required in self.sources:
            value = getattr(step if of_the_step else step.rollouts, name, None)
            if value is None and required:
                raise ValueError(f"{self.name!r} needs {name}, which is missing")
            values.append(value)
        return self.function(*values)


@dataclass(frozen=True)
class Estimator:
    """The parts of a method. Build it with ``compose``."""

    advantage: tuple[Part, ...]
    denominator: Part
    masks: tuple[Part, ...]
    bounds: tuple[Part | None, ...]
    shapings: tuple[Part, ...]
    aggregate: Callable[[Tensor, Tensor | None, Counts | None], Tensor]
    regularizers: tuple[tuple[Part, float], ...]

    @torch.no_grad()
    def advantages(self, rollouts: Rollouts) -> Tensor:
        """Advantages of a whole batch, to be kept in it before it is split: (B,), (B, T), or (B, 1 or T, K).

        Of K terms the surrogates are added up, each clipped by its own sign.
        """
        step = Step(rollouts, advantages=rollouts.advantages)
        for part in self.advantage:
            step.advantages = part(step)
        if step.advantages is None:
            raise ValueError("no advantage part, and the rollouts carry no advantages")
        return step.advantages

    def prepare(self, rollouts: Rollouts) -> Rollouts:
        """The rollouts with their advantages."""
        return rollouts.replace(advantages=self.advantages(rollouts))

    @torch.no_grad()
    def weights(self, log_probs: Tensor, rollouts: Rollouts) -> Tensor:
        """Factors on grad log pi, 0 where a step was not chosen: (B, T), constants.

        Args:
            log_probs: of the current policy, (B, T).
            rollouts: with ``advantages``.
        """
        return self._weights(single(log_probs), rollouts)

    def loss(
        self,
        log_probs: Tensor,
        rollouts: Rollouts,
        counts: Counts | None = None,
        *,
        entropy: Tensor | None = None,
        predicted_values: Tensor | None = None,
        twice: bool = False,
    ) -> Tensor:
        """The scalar to minimise.

        Args:
            log_probs: log pi(a | s) of the current policy, (B, T), with gradient; half precision is taken to float32.
            rollouts: with ``advantages``; a batch, or a part of one.
            counts: of the whole batch, if ``rollouts`` is a part of it.
            entropy: (B, T) with gradient, for regularizers that read it.
            predicted_values: (B, T) with gradient, likewise.
            twice: put pi / stopgrad(pi) in place of log pi. The gradient is the same, second derivatives then hold
                the term grad log pi grad log pi^T of each step, and the value is -aggregate(w).

        What stands outside the mask has no influence, on values and gradients, be it NaN or infinite.

        Raises:
            ValueError: shapes that broadcast to another than that of ``log_probs``.
        """
        log_probs = single(log_probs)
        with torch.no_grad():
            weights = self._weights(log_probs, rollouts)
        score = log_probs
        if twice:
            ratio = log_probs - log_probs.detach()
            score = (ratio if rollouts.mask is None else ratio.where(rollouts.mask, 0.0)).exp()
        steps = weights * score
        if self.regularizers:
            step = Step(rollouts, log_probs, rollouts.advantages, entropy, predicted_values)
            for part, coefficient in self.regularizers:
                steps = torch.sub(steps, regularized(part, step), alpha=coefficient)
        if steps.shape != log_probs.shape:
            raise ValueError(
                f"log_probs have shape {tuple(log_probs.shape)}, the parts together {tuple(steps.shape)}: "
                "look for a tensor (B, 1) beside others (B,)"
            )
        return -self.aggregate(steps, rollouts.mask, counts)

    @torch.no_grad()
    def surrogate(self, log_probs: Tensor, rollouts: Rollouts, counts: Counts | None = None) -> Tensor:
        """The value of the clipped surrogate, to log: -aggregate(bounded ratio * advantage * shaping)."""
        log_probs = single(log_probs)
        if len(terms := _terms(log_probs, rollouts)) > 1:
            return torch.stack([self.surrogate(log_probs, term, counts) for term in terms]).sum()
        step = self._step(log_probs, rollouts)
        kept = torch.ones((), device=log_probs.device)
        factors = [part(step) for part in self.shapings]
        for part, bound in zip(self.masks, self.bounds, strict=True):
            if bound is None:
                kept = kept * part(step)
            else:
                step.ratio = bound(step)
        value: Tensor = step.ratio * step.advantages * kept  # type: ignore[operator]
        for factor in factors:
            value = value * factor
        return -self.aggregate(value.expand_as(log_probs), rollouts.mask, counts)

    @torch.no_grad()
    def diagnostics(self, log_probs: Tensor, rollouts: Rollouts) -> dict[str, Tensor]:
        """Scalars to log: share of chosen steps that the masks stop, and KL(old || current) by k3."""
        log_probs = single(log_probs)
        terms = _terms(log_probs, rollouts)
        kept = torch.zeros_like(log_probs)
        for step in (self._step(log_probs, term) for term in terms):
            both = torch.full_like(log_probs, 1.0 / len(terms))
            for part in self.masks:
                both = both * part(step)
            kept = kept + both
        tokens = log_probs.numel() if rollouts.mask is None else rollouts.mask.sum().clamp(min=1)
        found = {"clip_fraction": masked_sum(1.0 - kept, rollouts.mask) / tokens}
        if rollouts.old_log_probs is not None:
            kl = k3(rollouts.old_log_probs, log_probs)
            found["approx_kl"] = masked_sum(kl, rollouts.mask) / tokens
        return found

    def needs(self) -> set[str]:
        """Fields of the rollouts and outputs of the policy that some part reads."""
        parts = [*self.advantage, self.denominator, *self.masks, *self.shapings]
        parts += [part for part, _ in self.regularizers]
        return {name for part in parts for name in part.required} - {"ratio", "log_probs", "advantages"}

    def _step(self, log_probs: Tensor, rollouts: Rollouts) -> Step:
        advantages = rollouts.advantages
        if advantages is None:
            raise ValueError("the rollouts have no advantages: call prepare on the whole batch first")
        if advantages.dim() < log_probs.dim():
            advantages = advantages[:, None]
        step = Step(rollouts, log_probs, advantages)
        step.ratio = self.denominator(step)
        return step

    def _weights(self, log_probs: Tensor, rollouts: Rollouts) -> Tensor:
        if len(terms := _terms(log_probs, rollouts)) > 1:
            return torch.stack([self._weights(log_probs, term) for term in terms]).sum(dim=0)
        step = self._step(log_probs, rollouts)
        weights: Tensor = step.ratio * step.advantages  # type: ignore[operator]
        for part in self.shapings:
            weights = weights * part(step)
        for part in self.masks:
            weights = weights * part(step)
        if rollouts.mask is not None:
            weights = weights.where(rollouts.mask, 0.0)
        return weights


def single(log_probs: Tensor) -> Tensor:
    """Half-precision log-probabilities in float32, where ratios near 1 and sums of many steps are what they are."""
    return log_probs.float() if log_probs.dtype in (torch.bfloat16, torch.float16) else log_probs


def _terms(log_probs: Tensor, rollouts: Rollouts) -> list[Rollouts]:
    """The rollouts with each of their K advantages, (B, 1 or T, K), or as they are."""
    advantages = rollouts.advantages
    if advantages is None or advantages.dim() <= log_probs.dim():
        return [rollouts]
    return [rollouts.replace(advantages=a) for a in advantages.unbind(-1)]


def compose(
    *,
    advantage: Specs = (),
    denominator: Spec = "old",
    mask: Specs = (),
    shaping: Specs = (),
    aggregation: Aggregation = "token-mean",
    length: int | None = None,
    regularizers: Sequence[tuple[Spec, float]] = (),
) -> Estimator:
    """An estimator from parts by name, ``("name", {settings})``, function or ``(function, {settings})``.

    Args:
        advantage: one, or a list of which the later ones change what the earlier ones gave.
        denominator: what pi_theta is divided by.
        mask: one or a list; a step is kept where all are true.
        shaping: one or a list, multiplied.
        aggregation: of the (B, T) values.
        length: for ``fixed-length``.
        regularizers: (part, coefficient), added to the loss under the same aggregation.

    Raises:
        ValueError: an unknown name or setting, listing the known ones; a regularizer without its coefficient; more
            than one denominator, or none.
    """
    if wrong := [x for x in regularizers if not (isinstance(x, tuple | list) and len(x) == 2)]:
        raise ValueError(f"regularizers are pairs (part, coefficient), got {wrong[0]!r}")
    masks, denominators = parts("mask", MASKS, mask), parts("denominator", DENOMINATORS, denominator)
    if len(denominators) != 1:
        raise ValueError(f"there is one denominator, got {len(denominators)}: other factors are shapings")
    return Estimator(
        advantage=parts("advantage", ADVANTAGES, advantage),
        denominator=denominators[0],
        masks=masks,
        bounds=tuple(_bound(part) for part in masks),
        shapings=parts("shaping", SHAPINGS, shaping),
        aggregate=aggregator(aggregation, length),
        regularizers=tuple((resolve("regularizer", REGULARIZERS, s), weight) for s, weight in regularizers),
    )


def score_loss(
    weights: Tensor,
    log_probs: Tensor,
    mask: Tensor | None,
    aggregation: Aggregation = "token-mean",
    counts: Counts | None = None,
    length: int | None = None,
) -> Tensor:
    """-aggregate(w log pi), w constant: the loss of any score-function estimator, (B, T) -> scalar.

    What stands outside the mask has no influence. Methods with an estimator call ``Estimator.loss``.
    """
    weights = weights.detach()
    if mask is not None:
        weights = weights.where(mask, 0.0)
    return -aggregator(aggregation, length)(weights * log_probs, mask, counts)


def functional(
    estimator: Estimator, log_probs: Callable[[Any, Rollouts], Tensor], *, twice: bool = False
) -> Callable[[Any, Rollouts], Tensor]:
    """``loss(params, rollouts)``, a pure function of parameters, for Hessian-vector products and gradient transforms.

    Args:
        estimator: whose loss.
        log_probs: (params, rollouts) -> (B, T), for instance through ``torch.func.functional_call``.
        twice: as in ``Estimator.loss``.
    """

    def loss(params: Any, rollouts: Rollouts) -> Tensor:
        return estimator.loss(log_probs(params, rollouts), rollouts, twice=twice)

    return loss


def resolve(kind: str, known: Mapping[str, Function], spec: Spec) -> Part:
    """A part from its name in ``known`` or from the function itself, with or without settings."""
    found, settings = spec if isinstance(spec, tuple) else (spec, {})
    if not isinstance(found, str):
        return Part(getattr(found, "__name__", kind), found, settings)
    if found not in known:
        raise ValueError(f"unknown {kind} {found!r}; known are {', '.join(sorted(known))}")
    return Part(found, known[found], settings)


def parts(kind: str, known: Mapping[str, Function], specs: Specs) -> tuple[Part, ...]:
    """Parts from one specification, a list of them, or none."""
    listed: Sequence[Any] = specs if isinstance(specs, list) else [specs] if specs else []
    return tuple(resolve(kind, known, spec) for spec in listed)


def regularized(part: Part, step: Step) -> Tensor:
    """A regularizer's values, (B, T), whose gradients outside the mask are no NaN.

    Where some value is not finite, it is computed again with zeros outside the mask in what the policy says: to choose
    among losses afterwards does not help, as 0 times NaN is NaN on the way back.
    """
    value, mask = part(step), step.rollouts.mask
    if mask is None or bool(value.detach().sum().isfinite()):
        return value
    for name in ("log_probs", "entropy", "predicted_values"):
        if (said := getattr(step, name)) is not None:
            setattr(step, name, said.where(mask, 0.0))
    return part(step)


def _bound(part: Part) -> Part | None:
    function, settings = _unwrap(part.function)
    return Part(part.name, BOUNDS[function], settings) if function in BOUNDS else None


def _unwrap(function: Function) -> tuple[Function, dict[str, Any]]:
    if not isinstance(function, partial):
        return function, {}
    inner, settings = _unwrap(function.func)
    return inner, settings | function.keywords
