"""Sampling and learning where the model is on another device than the CPU, without having one."""

import importlib.util
from pathlib import Path

import pytest
import torch

from offrl.llm.evaluate import evaluate
from offrl.llm.learner import Learner
from offrl.llm.methods import load_method
from offrl.llm.models import load_model
from offrl.llm.options import LLMOptions
from offrl.llm.tasks import task_for
from offrl.training.loop import MetricMeans

_specification = importlib.util.spec_from_file_location("far", Path(__file__).with_name("far.py"))
far = importlib.util.module_from_spec(_specification)
_specification.loader.exec_module(far)

PARTS = {
    **{"pool": 16, "sampler": "vas", "vas_every": 1, "vas_rollouts": 2, "allocator": "knapsack"},
    **{"curriculum": "stages", "stage_bounds": (4, 8), "stage_replay": 0.5},
}


def test_it_refuses_what_a_gpu_refuses():
    with far.pretended():
        there, here = torch.arange(3, device="meta"), torch.arange(3)
        assert (there + 1).tolist() == [1, 2, 3]
        assert there[here].device.type == "meta"
        for wrong in (
            lambda: there + here,
            lambda: here[there],
            lambda: here.add_(there),
            lambda: torch.zeros(()).add_(there.sum()),
            lambda: torch._foreach_add_([torch.zeros(())], [there.sum().float()]),
        ):
            with pytest.raises(RuntimeError, match="device"):
                wrong()
        assert float(there.sum() + torch.tensor(1.0)) == 4.0


@pytest.mark.parametrize(
    ("name", "settings", "how"),
    [
        ("grpo", {"kl": 0.1}, {"task": "t6", "context": "supo", "context_window": 32, "summaries": 2}),
        ("grpo", {}, {"task": "t2", "scaffold": "hints", "hint_exempt": 0.25}),
        ("grpo", {}, {"task": "t2", **PARTS}),
        ("ppo", {}, {"task": "t4a", "engine": "int8", "delay": 1}),
        ("polychromic", {"states": 1, "vines": 4}, {"task": "t4b"}),
        ("d3s", {"entropy": 0.1}, {"task": "t5", "minibatches": 2}),
        ("sft", {"noise": 0.2}, {"task": "gui", "group": 1}),
    ],
)
def test_a_step_an_evaluation_and_a_resume(name, settings, how):
    method = load_method(name)
    options = LLMOptions(**{"prompts": 4, "group": 4, "steps": 3, **how})
    task = task_for(options)
    policy = far.moved(load_model(options.model, task, 0))
    with far.pretended():
        learner = Learner(method, method.config(**settings), task, policy, options)
        means = MetricMeans(learner.metrics)
        for _ in range(2):
            means.add(learner.update())
        assert all(map(torch.isfinite, map(torch.tensor, means.pop()["loss"])))
        assert 0.0 <= evaluate(policy, task, prompts=4, samples=2, seed=0, name="x").accuracy <= 1.0
        learner.load_state_dict(learner.state_dict())
        learner.update()
    assert learner.device.type == "meta"
