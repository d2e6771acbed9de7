"""Exact nearest neighbours of (s, p) among the rows (beta s_i, a_i) of a dataset: the search behind PRDC.

Keys are float32. Distances are compared in float64, as the sum of squared differences taken first column first, so that
every backend gives the same row to the last bit; equal distances go to the lowest row. An answer depends on the key and
the data alone.
"""

import importlib.util
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor

from offrl.errors import ConfigError

Backend = Literal["auto", "numba", "scipy", "torch"]
FEW_ROWS = 1000  # for fewer, scipy takes milliseconds and nothing has to be compiled
LARGEST_KEY = 1e15  # squares must stay inside float32
BLOCK_ROWS = 1 << 16  # rows that the brute-force search compares at a time
BLOCK_KEYS = 2048  # keys that go down the tree at a time


class Search(Protocol):
    """What a backend does."""

    def points(self, rows: Tensor) -> Tensor:
        """Keys (B, D) of dataset rows (B,), a copy."""

    def __call__(self, keys: Tensor, known: Tensor | None) -> Tensor:
        """Rows (B,) nearest to ``keys`` (B, D); ``known`` rows (B,), where given, are near and bound the search."""


class NeighbourIndex:
    """An index over the keys (beta s_i, a_i).

    Args:
        observations: (N, O) float32, normalized.
        actions: (N, A) float32, on the same device.
        beta: weight of the states, >= 0.
        backend: "numba" (a tree, CPU, extra ``knn``), "scipy" (a tree, CPU, slower), "torch" (brute force, any device),
            or "auto": torch on a GPU; on a CPU numba where installed and worth compiling, else scipy.
        threads: threads of a query (numba, scipy).

    Attributes:
        backend: the one in use.
        build_seconds: CPU seconds that the build took.

    Raises:
        ConfigError: no rows, lengths that differ, keys that are not finite, a negative beta, an unknown backend.
        MissingExtraError: backend "numba" without numba.
    """

    def __init__(
        self,
        observations: Tensor,
        actions: Tensor,
        beta: float,
        *,
        backend: Backend = "auto",
        threads: int = 1,
    ) -> None:
        began = time.process_time()
        if (
            observations.ndim != 2
            or actions.ndim != 2
            or len(observations) != len(actions)
            or not len(actions)
        ):
            raise ConfigError(
                f"neighbours need observations (N, O) and actions (N, A) with N >= 1, got shapes "
                f"{tuple(observations.shape)} and {tuple(actions.shape)}"
            )
        if not beta >= 0:
            raise ConfigError(
                f"beta must be >= 0, got {beta}: it weighs state distance against action distance"
            )
        if backend not in ("auto", "numba", "scipy", "torch"):
            raise ConfigError(f"unknown neighbour backend {backend!r}; choose auto, numba, scipy or torch")
        keys = torch.cat([float(beta) * observations.detach().float(), actions.detach().float()], dim=1)
        if not (keys.abs() <= LARGEST_KEY).all():
            raise ConfigError(
                f"observations, actions or beta give keys that are not finite or above {LARGEST_KEY:g}"
            )
        self.size, self.obs_dim, self.key_dim = len(keys), observations.shape[1], keys.shape[1]
        self.device = keys.device
        self.backend = choose_backend(keys) if backend == "auto" else backend
        self.search: Search
        if self.backend == "torch":
            self.search = BruteForce(keys)
        elif self.backend == "numba":
            self.search = CompiledTree(keys.cpu(), self.obs_dim, threads)
        else:
            self.search = ScipyTree(keys.cpu(), self.obs_dim, threads)
        self.build_seconds = time.process_time() - began

    def query(self, rows: Tensor, actions: Tensor) -> Tensor:
        """Nearest dataset rows of the keys (beta s_r, p).

        Args:
            rows: (B,) int64, the rows r.
            actions: (B, A) the actions p.

        Returns:
            (B,) int64 on the device of ``actions``.

        Raises:
            ConfigError: wrong shapes, rows outside the dataset, actions that are not finite.
        """
        if rows.ndim != 1 or actions.shape != (len(rows), self.key_dim - self.obs_dim):
            raise ConfigError(
                f"a query needs rows (B,) and actions (B, {self.key_dim - self.obs_dim}), got shapes "
                f"{tuple(rows.shape)} and {tuple(actions.shape)}"
            )
        rows = rows.to(self.device)
        if len(rows) and (int(rows.min()) < 0 or int(rows.max()) >= self.size):
            raise ConfigError(f"rows must lie in 0 .. {self.size - 1}")
        refuse_unbounded(actions)
        keys = self.search.points(rows)
        keys[:, self.obs_dim :] = actions.detach()
        return self.search(keys, rows).to(actions.device)

    def points(self, rows: Tensor) -> Tensor:
        """Keys (B, O + A) = (beta s, a) of dataset rows (B,), a copy."""
        return self.search.points(rows)

    def nearest(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Distances (B,) float64 and rows (B,) int64 of the points nearest to any ``keys`` (B, O + A) float32.

        Raises:
            ConfigError: wrong shape, keys that are not finite.
        """
        if keys.ndim != 2 or keys.shape[1] != self.key_dim:
            raise ConfigError(f"keys must be (B, {self.key_dim}), got shape {tuple(keys.shape)}")
        refuse_unbounded(keys)
        local = keys.detach().float().to(self.device)
        rows = self.search(local, None)
        squares = squared_distances(self.search.points(rows), local)
        return squares.sqrt().to(keys.device), rows.to(keys.device)


def refuse_unbounded(values: Tensor) -> None:
    """Raise ConfigError for NaN, infinity and numbers whose squares leave float32."""
    if not (values.abs() <= LARGEST_KEY).all():
        raise ConfigError("the keys of a neighbour search must be finite: has the actor diverged?")


def choose_backend(keys: Tensor) -> Backend:
    """The fastest backend for these keys; all give the same answers."""
    if keys.device.type != "cpu":
        return "torch"
    if len(keys) >= FEW_ROWS and importlib.util.find_spec("numba") is not None:
        return "numba"
    return "scipy"


def principal_axes(keys: NDArray[np.float32], obs_dim: int) -> NDArray[np.float64]:
    """(D, D) orthonormal columns: a third of the states' principal axes, the actions' own axes, the other states'.

    A tree rules a point out by the first coordinates that add up to its bound. The leading axes of the states hold
    most of their variance, and the action is what makes a policy's key differ from the data.
    """
    dim = keys.shape[1]
    states = keys[:, :obs_dim].astype(np.float64)
    states -= states.mean(axis=0)
    axes = np.eye(dim)
    axes[:obs_dim, :obs_dim] = np.linalg.eigh(states.T @ states)[1][:, ::-1]
    leading = -(-obs_dim // 3)
    return axes[:, [*range(leading), *range(obs_dim, dim), *range(leading, obs_dim)]]


def squared_distances(points: Tensor, keys: Tensor) -> Tensor:
    """Sums of squared differences of (M, D) float32 in float64, (M,), added in the order of the columns."""
    total = torch.zeros(len(keys), dtype=torch.float64, device=keys.device)
    for d in range(keys.shape[1]):
        gap = points[:, d].double() - keys[:, d].double()
        total += gap * gap
    return total


def lowest(batch: int, owners: Tensor, squares: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Per key: the least of its candidates' ``squares`` (M,) and the lowest row that attains it.

    ``owners`` (M,) says whose candidate each is; a key without any gets infinity.
    """
    best = squares.new_full((batch,), torch.inf).scatter_reduce(0, owners, squares, "amin")
    tied = squares == best[owners]
    answers = rows.new_full((batch,), torch.iinfo(rows.dtype).max)
    return best, answers.scatter_reduce(0, owners[tied], rows[tied], "amin")


class CompiledTree:
    """The tree of ``offrl.data.box_tree``."""

    def __init__(self, keys: Tensor, obs_dim: int, threads: int) -> None:
        from offrl.data.box_tree import BoxTree

        self.tree = BoxTree(keys.numpy(), principal_axes(keys.numpy(), obs_dim))
        self.threads = threads
        self.pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def points(self, rows: Tensor) -> Tensor:
        """From the tree's own copy, whose place the search reads next."""
        return torch.from_numpy(self.tree.keys[self.tree.places[rows.numpy()]])

    def __call__(self, keys: Tensor, known: Tensor | None) -> Tensor:
        """Search in the order of the known places: neighbouring keys then read the same nodes."""
        points = keys.numpy()
        if known is None:
            order = np.arange(len(points))
            places = None
        else:
            places = self.tree.places[known.numpy()].astype(np.int64)
            order = np.argsort(places)
        size = min(BLOCK_KEYS, -(-len(points) // self.threads)) or 1
        blocks = [order[start : start + size] for start in range(0, len(points), size)]
        answers = np.empty(len(points), np.int64)

        def work(block: NDArray[np.int64]) -> None:
            answers[block] = self.tree.search(points[block], None if places is None else places[block])

        for _ in self.pool.map(work, blocks) if self.pool else map(work, blocks):
            pass
        return torch.from_numpy(answers)


class ScipyTree:
    """SciPy's k-d tree on principal axes; a second search collects all that rounding leaves in doubt."""

    def __init__(self, keys: Tensor, obs_dim: int, threads: int) -> None:
        self.keys, self.threads = keys, threads
        self.axes = principal_axes(keys.numpy(), obs_dim)
        self.tree = cKDTree(keys.numpy() @ self.axes, balanced_tree=False, compact_nodes=False)

    def points(self, rows: Tensor) -> Tensor:
        """From the float32 keys."""
        return self.keys[rows]

    def __call__(self, keys: Tensor, known: Tensor | None) -> Tensor:
        """The nearest distance first, then every row at it; ``known`` does not help."""
        turned = keys.numpy() @ self.axes
        nearest, _ = self.tree.query(turned, workers=self.threads)
        sizes = np.linalg.norm(turned, axis=1)
        radii = nearest * (1 + 1e-9) + 1e-12 * (
            2 * sizes + nearest
        )  # float64 rounding of the axes and the sums
        found = self.tree.query_ball_point(turned, radii, workers=self.threads)
        owners = torch.repeat_interleave(torch.tensor([len(each) for each in found], dtype=torch.int64))
        rows = torch.tensor([row for each in found for row in each], dtype=torch.int64)
        squares = squared_distances(self.keys[rows], keys[owners])
        return lowest(len(keys), owners, squares, rows)[1]


class BruteForce:
    """Every row against every key by one matrix product a block, on any device.

    |x|^2 + |q|^2 - 2 x.q cancels when the distance is small, so it only rules rows out: with the norms shrunk by what
    rounding can add, it is a bound from below. What passes is compared in float64 by differences.
    """

    def __init__(self, keys: Tensor) -> None:
        self.keys = keys
        # unit roundoff times terms of the sums, doubled; TensorFloat-32 products, if allowed, keep 10 bits
        coarse = keys.is_cuda and torch.backends.cuda.matmul.allow_tf32
        self.shrink = 1.0 - (keys.shape[1] + 8) * (2.0**-9 if coarse else 2.0**-22)
        self.norms = self.shrink * keys.square().sum(dim=1)

    def points(self, rows: Tensor) -> Tensor:
        """From the float32 keys."""
        return self.keys[rows]

    def __call__(self, keys: Tensor, known: Tensor | None) -> Tensor:
        """Block by block with the best so far as the bound; ``known`` gives the first."""
        batch, device = len(keys), keys.device
        answers = torch.zeros(batch, dtype=torch.int64, device=device) if known is None else known
        best = squared_distances(self.keys[answers], keys)
        everyone = torch.arange(batch, device=device)
        norms = self.shrink * keys.square().sum(dim=1, keepdim=True)
        for start in range(0, len(self.keys), BLOCK_ROWS):
            block = slice(start, start + BLOCK_ROWS)
            with torch.autocast(device.type, enabled=False):  # bfloat16 products would bound nothing
                bounds = torch.addmm(self.norms[block], keys, self.keys[block].T, alpha=-2.0).add_(norms)
            nearest = start + bounds.argmin(dim=1)
            limits = torch.minimum(best, squared_distances(self.keys[nearest], keys))
            owners, rows = (bounds <= (limits * (1 + 1e-6)).float()[:, None]).nonzero(as_tuple=True)
            owners, rows = torch.cat([everyone, owners]), torch.cat([answers, rows + start])
            squares = squared_distances(self.keys[rows], keys[owners])
            best, answers = lowest(batch, owners, squares, rows)
        return answers
