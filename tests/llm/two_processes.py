"""What each of two processes does for test_parallel; writes what it found as JSON, process 0 for both."""

import copy
import json
import sys

import torch

from offrl.llm.learner import Learner
from offrl.llm.methods import load_method
from offrl.llm.models import load_model
from offrl.llm.options import LLMOptions
from offrl.llm.parallel import Ranks, join
from offrl.llm.tasks import load_task

METHODS = ("grpo", "reinforce_plus_plus", "ppo", "luffy", "sft", "oblr_po")


def learner(name, ranks, **given):
    method = load_method(name)
    given = {
        "prompts": 4,
        "group": 1 if name == "sft" else 4,
        "max_grad_norm": 1e9,
        "task": "t2",
        "lr": 1e-2,
        **given,
    }
    task, options = load_task("t2"), LLMOptions(**given)
    settings = method.config(**({} if name == "sft" else {"kl": 0.1, "entropy": 0.05}))
    return Learner(method, settings, task, load_model("tiny:dense", task, 0).double(), options, ranks)


def largest_difference(name, ranks, micro):
    """Between the gradients of one and of two processes, relative to the largest; both from the same rollouts."""
    alone, shared = learner(name, Ranks(), micro_batch=micro), learner(name, ranks, micro_batch=micro)
    batch = alone._collect()[0]
    with torch.no_grad():
        for one, other in zip(alone.parameters, shared.parameters, strict=True):
            noise = 0.02 * torch.randn(
                one.shape, generator=torch.Generator().manual_seed(one.numel()), dtype=one.dtype
            )
            one.add_(noise)
            other.add_(noise)
    metrics = [made._update(made._prepared(batch)) for made in (alone, shared)]
    pairs = list(zip(alone.parameters, shared.parameters, strict=True))
    scale = max(float(one.grad.abs().max()) for one, _ in pairs)
    off = max(float((one.grad - other.grad).abs().max()) for one, other in pairs)
    differ = max(abs(float(metrics[0][key]) - float(metrics[1][key])) for key in metrics[0])
    return {"gradient": off / scale, "metrics": differ, "scale": scale}


def weights(made):
    return torch.cat([p.detach().flatten() for p in made.parameters])


def together(ranks):
    """Two steps of sampling and learning, and a third one after a restart."""
    made = learner("grpo", ranks)
    responses = made._collect()[0].tokens
    halves = [responses[rows].tolist() for rows in (slice(0, 8), slice(8, 16))]
    for _ in range(2):
        metrics = made.update()
    state = copy.deepcopy(made.state_dict())
    made.update()
    again = learner("grpo", ranks)
    again.load_state_dict(state)
    again.update()
    return {
        "equal batches": len({json.dumps(item) for item in ranks.gathered(responses.tolist())}),
        "halves differ": halves[0] != halves[1],
        "rollouts": made.rollouts, "tokens": made.tokens, "length": float(metrics["length"]),
        "equal weights": len({json.dumps(item) for item in ranks.gathered(weights(made).tolist())}),
        "exact": torch.equal(weights(made), weights(again)),
    }  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    processes = join()
    found = {name: largest_difference(name, processes, 2) for name in METHODS}
    found |= {"no micro-batches": largest_difference("grpo", processes, 0)}
    found |= {"one part": largest_difference("grpo", processes, 16), "together": together(processes)}
    if processes.rank == 0:
        with open(sys.argv[1], "w", encoding="utf-8") as file:
            json.dump(found, file)
