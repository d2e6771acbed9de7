"""What a network puts out, and the clean sample that it means.

    x = alpha x0 + sigma eps                                  the noisy sample

    eps            eps                        x0 = (x - sigma eps) / alpha
    x0             x0
    v              alpha eps - sigma x0       x0 = (alpha x - sigma v) / (alpha^2 + sigma^2)
    score          grad_x log p(x)            x0 = (x + sigma^2 score) / alpha
    flow           eps - x0                   x0 = (x - sigma flow) / (alpha + sigma)
    flow_reversed  x0 - eps                   x0 = (x + sigma flow) / (alpha + sigma)
    edm            (x0 - c_skip u) / c_out    x0 = c_skip u + c_out F,  u = x / alpha

``flow`` is the velocity of x = (1 - s) x0 + s eps in s, ``flow_reversed`` that of the same path in t = 1 - s. An error
in x0 is rho = sigma / alpha times one in eps: networks for eps are ill-conditioned for x0 at high noise.

Source: v: arXiv:2202.00512; edm: arXiv:2206.00364, table 1; flow: arXiv:2210.02747.
"""

from typing import Literal, TypeAlias, get_args

from torch import Tensor

Level: TypeAlias = float | Tensor  # one number, or a tensor that broadcasts against the samples
Kind: TypeAlias = Literal["eps", "x0", "v", "score", "flow", "flow_reversed", "edm"]
KINDS: tuple[Kind, ...] = get_args(Kind)


def to_x0(
    kind: Kind, output: Tensor, x: Tensor, alpha: Level, sigma: Level, sigma_data: float = 1.0
) -> Tensor:
    """The clean sample that a network's output stands for.

    Args:
        kind: what the network puts out.
        output: its output, shaped as ``x``.
        x: the noisy sample.
        alpha: share of the clean sample in ``x``; above 0, except for v and both flows.
        sigma: share of the noise; above 0 for what divides by it.
        sigma_data: of ``edm`` only.

    Raises:
        ValueError: unknown kind.
    """
    if kind == "x0":
        return output
    if kind == "eps":
        return (x - sigma * output) / alpha
    if kind == "v":
        return (alpha * x - sigma * output) / (alpha * alpha + sigma * sigma)
    if kind == "score":
        return (x + sigma * sigma * output) / alpha
    if kind == "flow":
        return (x - sigma * output) / (alpha + sigma)
    if kind == "flow_reversed":
        return (x + sigma * output) / (alpha + sigma)
    if kind == "edm":
        c_skip, c_out = edm_scales(sigma / alpha, sigma_data)
        return c_skip * (x / alpha) + c_out * output
    raise ValueError(f"unknown parameterization {kind!r}; known are {', '.join(KINDS)}")


def to_eps(
    kind: Kind, output: Tensor, x: Tensor, alpha: Level, sigma: Level, sigma_data: float = 1.0
) -> Tensor:
    """The noise that a network's output stands for; arguments as in ``to_x0``."""
    if kind == "eps":
        return output
    if kind == "v":
        return (sigma * x + alpha * output) / (alpha * alpha + sigma * sigma)
    if kind == "score":
        return -sigma * output
    if kind == "flow":
        return (x + alpha * output) / (alpha + sigma)
    if kind == "flow_reversed":
        return (x - alpha * output) / (alpha + sigma)
    return (x - alpha * to_x0(kind, output, x, alpha, sigma, sigma_data)) / sigma


def from_x0(kind: Kind, x0: Tensor, x: Tensor, alpha: Level, sigma: Level, sigma_data: float = 1.0) -> Tensor:
    """What a network of ``kind`` has to put out so that it means ``x0``; the inverse of ``to_x0``."""
    if kind == "x0":
        return x0
    if kind == "edm":
        c_skip, c_out = edm_scales(sigma / alpha, sigma_data)
        return (x0 - c_skip * (x / alpha)) / c_out
    eps = (x - alpha * x0) / sigma
    if kind == "eps":
        return eps
    if kind == "v":
        return alpha * eps - sigma * x0
    if kind == "score":
        return -eps / sigma
    if kind == "flow":
        return eps - x0
    if kind == "flow_reversed":
        return x0 - eps
    raise ValueError(f"unknown parameterization {kind!r}; known are {', '.join(KINDS)}")


def convert(
    output: Tensor,
    x: Tensor,
    alpha: Level,
    sigma: Level,
    *,
    source: Kind,
    target: Kind,
    sigma_data: float = 1.0,
) -> Tensor:
    """The output of a network of kind ``target`` that means the same as one of kind ``source``."""
    x0 = to_x0(source, output, x, alpha, sigma, sigma_data)
    return from_x0(target, x0, x, alpha, sigma, sigma_data)


def edm_scales(rho: Level, sigma_data: float) -> tuple[Level, Level]:
    """c_skip and c_out of EDM at noise level ``rho``."""
    total = rho * rho + sigma_data**2
    root = total.sqrt() if isinstance(total, Tensor) else total**0.5
    return sigma_data**2 / total, rho * sigma_data / root


def expand(level: Tensor, like: Tensor) -> Tensor:
    """Levels (S, B) with the trailing axes that ``like`` (S, B, ...) has."""
    return level.reshape(level.shape + (1,) * (like.dim() - level.dim()))
