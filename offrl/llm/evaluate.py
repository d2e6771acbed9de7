"""How good a policy is: share of right responses, greedy and sampled, pass@k, per difficulty, with intervals."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offrl.llm.episodes import respond
from offrl.llm.tasks.task import Task
from offrl.training.seeding import stream

ROWS, FEW_ROWS, LARGE = 2048, 128, 10_000_000
"""Responses that are sampled at once, those of a model of many parameters, and how many are many."""


@dataclass(frozen=True)
class Evaluation:
    """N prompts, k responses each; on the CPU."""

    success: Tensor
    """(N, k) bool."""
    rewards: Tensor
    """(N, k)."""
    lengths: Tensor
    """(N, k)."""
    greedy: Tensor
    """(N,) bool, of the most probable response."""
    levels: Tensor
    """(N,) difficulties."""

    @property
    def accuracy(self) -> float:
        """Share of right responses, avg@k."""
        return float(self.success.float().mean())

    def pass_at(self, k: int) -> float:
        """Mean probability that one of k responses is right, without bias for any k up to the number sampled."""
        return float(self.pass_each(k).mean())

    def pass_each(self, k: int) -> Tensor:
        """(N,) the same a prompt: 1 - C(n - c, k) / C(n, k). Source: arXiv:2107.03374."""
        n, wrong = self.success.shape[1], (~self.success).sum(dim=1).double()
        miss = torch.ones_like(wrong)
        for i in range(k):
            miss = miss * ((wrong - i).clamp(min=0) / (n - i))
        return 1.0 - miss

    def by_level(self) -> dict[int, float]:
        """Accuracy of each difficulty that occurs."""
        mean, levels = self.success.double().mean(dim=1), self.levels.unique().tolist()
        return {level: float(mean[self.levels == level].mean()) for level in levels}


def evaluate(
    policy: Any, task: Task, *, prompts: int, samples: int, seed: int, name: str, temperature: float = 1.0
) -> Evaluation:
    """Sample from the policy on random prompts, the same ones for the same seed.

    Args:
        policy: the model.
        task: prompts and rewards.
        prompts: how many; all of a data set that has fewer.
        samples: responses to each.
        seed: of the run.
        name: of the sampling stream, such as the step.
        temperature: of sampling.
    """
    device = policy.bias.device
    prompts = min(prompts, getattr(task, "size", prompts))
    at_once = FEW_ROWS if sum(p.numel() for p in policy.parameters()) > LARGE else ROWS
    drawn = task.prompts(prompts, stream(seed, "evaluation prompts")).to(device)
    generator = stream(seed, f"evaluation {name}", device)
    success, rewards, lengths, greedy = [], [], [], []
    for rows in torch.arange(prompts).split(max(at_once // samples, 1)):
        part = drawn.rows(rows.to(device))
        best = respond(policy, task, part, temperature=0.0)
        greedy.append(task.success(part, best))
        responses = respond(policy, task, part, copies=samples, temperature=temperature, generator=generator)
        many = part.repeat(samples)
        success.append(task.success(many, responses).view(-1, samples))
        outcome = torch.stack([*task.rewards(many, responses).values()]).sum(dim=0)
        rewards.append(outcome.view(-1, samples))
        lengths.append(responses.lengths.view(-1, samples))
    found = {"success": success, "rewards": rewards, "lengths": lengths, "greedy": greedy}
    joined = {name: torch.cat(parts).cpu() for name, parts in found.items()}
    return Evaluation(**joined, levels=drawn.levels.cpu())


def interval(values: Tensor, level: float = 0.95, repeats: int = 2000) -> tuple[float, float]:
    """Bootstrap interval of the mean over prompts: (N,) -> low, high."""
    rng = np.random.default_rng(0)
    x = values.double().numpy()
    means = x[rng.integers(len(x), size=(repeats, len(x)))].mean(axis=1)
    tail = 50 * (1 - level)
    low, high = np.percentile(means, [tail, 100 - tail])
    return float(low), float(high)
