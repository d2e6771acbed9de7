"""Exact nearest neighbours of (s, p) among the rows (beta s_i, a_i) of a dataset: the search behind PRDC.

Equal distances go to the lowest row. Distances are compared in float64 on direct differences of float32 keys.
"""

import time

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from offrl.errors import ConfigError

CANDIDATES = 4  # kept by the tree in its own precision, then compared in float64


class NeighbourIndex:
    """An index over ``(beta s_i, a_i)``.

    Args:
        observations: (N, O) float32, normalized.
        actions: (N, A) float32.
        beta: weight of the states, >= 0.
        threads: threads of a query.

    Attributes:
        build_seconds: CPU seconds that the build took.
    """

    def __init__(self, observations: Tensor, actions: Tensor, beta: float, *, threads: int = 1) -> None:
        if len(observations) != len(actions) or len(actions) == 0:
            raise ConfigError(
                f"{len(observations)} observations and {len(actions)} actions: need as many, at least 1"
            )
        began = time.process_time()
        states = observations.detach().cpu().numpy().astype(np.float32, copy=False)
        self.actions = actions.detach().cpu().numpy().astype(np.float32, copy=False)
        keys = np.ascontiguousarray(np.concatenate([np.float32(beta) * states, self.actions], axis=1))
        if not np.isfinite(keys).all():
            raise ConfigError("keys must be finite")
        self.obs_dim, self.threads = states.shape[1], threads
        packed = keys.view(np.dtype((np.void, keys.dtype.itemsize * keys.shape[1])))[:, 0]
        _, first = np.unique(packed, return_index=True)  # the first of equal rows stands for them all
        self.rows = np.sort(first)
        self.keys, self.unique = keys, keys[self.rows]
        self.tree = cKDTree(self.unique, balanced_tree=False, compact_nodes=False)
        self.build_seconds = time.process_time() - began

    def query(self, rows: Tensor, actions: Tensor) -> Tensor:
        """Nearest rows (B,) int64 of (s_r, p) for dataset rows ``rows`` (B,) and actions ``actions`` (B, A)."""
        keys = self.keys[rows.cpu().numpy()]
        keys[:, self.obs_dim :] = actions.detach().cpu().numpy()
        return torch.from_numpy(self.nearest(keys)[1]).to(actions.device)

    def nearest(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Distances (B,) float64 and rows (B,) int64 for keys (B, O + A)."""
        if not np.isfinite(keys).all():
            raise ConfigError("the keys of a neighbour search must be finite: has the actor diverged?")
        k = min(CANDIDATES, len(self.unique))
        _, found = self.tree.query(keys, k=range(1, k + 1), workers=self.threads)
        found = np.sort(found, axis=1)
        gaps = self.unique[found].astype(np.float64) - keys[:, None].astype(np.float64)
        distances = np.einsum("bkd,bkd->bk", gaps, gaps)
        best = distances.argmin(axis=1)
        take = np.arange(len(keys))
        return np.sqrt(distances[take, best]), self.rows[found[take, best]]
