"""The checks of a method find what they are for: each broken method fails the check that names its fault."""

import pytest
import torch

from offrl.training.check import _unequal, batches, check_algorithm, source_of, tiny_problem
from offrl.training.problem import Algorithm

CHECKS = [
    "update() returns",
    "two runs from one seed",
    "2N updates equal",
    "a saved policy",
    "seed k of a stack",
    "q_values(), where",
]

METHOD = """
import torch
from offrl.algos.bc import BC, BCConfig
from offrl.estimators.pathwise import squared_distance
from offrl.nn.mlp import mlp
from offrl.training.problem import Algorithm

class Mine(BC):
    def __init__(self, problem, config):
        super().__init__(problem, config)
        self.memory = torch.zeros(len(problem.seeds), 1)

    def pi(self, batch):
        return self.box.squash(mlp(self.actor.params, batch.observations).transpose(1, 2))
{body}

ALGORITHM = Algorithm(BCConfig, Mine)
"""

BROKEN = {  # the method's body, the check that must find it, what it must say
    "a metric with a gradient": (
        """
    def update(self, batch):
        loss = squared_distance(self.pi(batch), batch.actions)
        self.actor.minimize(loss.sum())
        return {"bc_loss": loss}
""",
        0,
        "'bc_loss' still carries a gradient: detach it",
    ),
    "a metric that is not one number a seed": (
        """
    def update(self, batch):
        super().update(batch)
        return {"bc_loss": batch.rewards}
""",
        0,
        "must be one finite number a seed",
    ),
    "a metric that is not finite": (
        """
    def update(self, batch):
        super().update(batch)
        return {"bc_loss": torch.full((1,), float("nan"))}
""",
        0,
        "'bc_loss' is \\[nan\\]",
    ),
    "a metric that is not declared": (
        """
    def update(self, batch):
        return super().update(batch) | {"extra": torch.zeros(1)}
""",
        0,
        "updates returned \\['bc_loss', 'extra'\\]",
    ),
    "an exception": (
        """
    def update(self, batch):
        raise KeyError("speed")
""",
        0,
        "KeyError: 'speed'",
    ),
    "randomness of its own": (
        """
    def update(self, batch):
        with torch.no_grad():
            self.actor.params[0].add_(1e-3 * torch.randn(1, generator=GENERATOR))
        return super().update(batch)

GENERATOR = torch.Generator().manual_seed(0)
""",
        1,
        "draw from problem.streams",
    ),
    "no learning": (
        """
    def update(self, batch):
        return {"bc_loss": squared_distance(self.pi(batch), batch.actions).detach()}
""",
        1,
        "the policy does not change in training",
    ),
    "state that is not saved": (
        """
    def update(self, batch):
        self.memory = 0.9 * self.memory + batch.actions.mean(dim=(1, 2))[:, None]
        with torch.no_grad():
            self.actor.params[-1].add_(0.01 * self.memory[..., None])
        return super().update(batch)
""",
        2,
        "differs after a resume: is it in state_dict()",
    ),
    "a state that cannot be loaded": (
        """
    def load_state_dict(self, state):
        raise RuntimeError("not written yet")
""",
        2,
        "RuntimeError: not written yet",
    ),
    "actions outside the box": (
        """
    def policy(self, seed=0):
        from offrl.nn.mlp import unstack
        from offrl.nn.policy import DeterministicPolicy
        low, high = 3 + self.box.low, 3 + self.box.high
        return DeterministicPolicy.from_params(unstack(self.actor.params, seed), low, high)
""",
        3,
        "left the action box",
    ),
    "losses averaged over seeds": (
        """
    def update(self, batch):
        weight = 1.0 + self.memory.mean()
        self.memory = self.memory + squared_distance(self.pi(batch), batch.actions).detach().mean()
        loss = squared_distance(self.pi(batch), weight * batch.actions)
        self.actor.minimize(loss.sum())
        return {"bc_loss": loss.detach()}

    def state_dict(self):
        return super().state_dict() | {"memory": self.memory}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.memory = state["memory"]
""",
        4,
        "of the stack is .* away from its single run: reduce trailing axes only",
    ),
    "values without the axis of critics": (
        """
    def q_values(self, observations, actions):
        return actions.sum(dim=2)
""",
        5,
        r"q_values\(\) returned shape \(2, 9\), not \(2, E, 9\)",
    ),
    "values with a gradient": (
        """
    def q_values(self, observations, actions):
        return self.actor.params[-1].sum() * actions.sum(dim=2)[:, None]
""",
        5,
        "with a gradient",
    ),
}


def findings(path):
    return list(check_algorithm(str(path)))


@pytest.mark.parametrize("fault", BROKEN)
def test_a_fault_is_found_by_the_check_that_is_for_it(tmp_path, fault):
    """The check named by its number finds it and says what to do; the checks before it pass."""
    body, number, message = BROKEN[fault]
    file = tmp_path / "mine.py"
    file.write_text(METHOD.format(body=body))
    found = findings(file)
    assert [problem for _, problem in found[:number]] == [None] * number, found
    name, problem = found[number]
    assert name.startswith(CHECKS[number])
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(problem)


def test_a_sound_method_passes_every_check(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(METHOD.format(body=""))
    found = findings(file)
    assert [problem for _, problem in found] == [None] * len(CHECKS)
    assert all(
        name.startswith(start) and not name.endswith(".")
        for (name, _), start in zip(found, CHECKS, strict=True)
    )


def test_the_global_random_streams_may_be_used(tmp_path):
    """A run seeds them and saves them in its checkpoints, so a method that draws from them is sound."""
    body = """
    def update(self, batch):
        import random
        import numpy as np
        scale = 1.0 + 0.01 * (np.random.rand() + random.random() + torch.rand(1).item())
        loss = scale * squared_distance(self.pi(batch), batch.actions)
        self.actor.minimize(loss.sum())
        return {"bc_loss": loss.detach()}
"""
    file = tmp_path / "mine.py"
    file.write_text(METHOD.format(body=body))
    assert [problem for _, problem in findings(file)] == [None] * len(CHECKS)


def test_a_finding_does_not_hide_the_checks_after_it(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(METHOD.format(body='\n    def policy(self, seed=0):\n        raise KeyError("policy")\n'))
    found = findings(file)
    assert len(found) == len(CHECKS)
    assert [problem for _, problem in found] == [
        None,
        "KeyError: 'policy'",
        None,
        *["KeyError: 'policy'"] * 2,
        None,
    ]


def test_differences_are_found_at_any_depth_and_named():
    a = {"net": [torch.zeros(2), {"steps": 3}], "lr": 0.1}
    assert _unequal(a, {"net": [torch.zeros(2), {"steps": 3}], "lr": 0.1}) is None
    assert _unequal(a, {"net": [torch.ones(2), {"steps": 3}], "lr": 0.1}) == "net.0"
    assert _unequal(a, {"net": [torch.zeros(2), {"steps": 4}], "lr": 0.1}) == "net.1.steps"
    assert _unequal(a, {"net": [torch.zeros(2), {"steps": 3}]}) == "lr"


def test_the_tiny_problem_is_the_same_every_time_and_has_every_kind_of_row():
    a, b = tiny_problem((3,)), tiny_problem((3,))
    for name in ("observations", "actions", "rewards", "next_observations", "terminated", "next_actions"):
        x, y = getattr(a, name), getattr(b, name)
        assert torch.equal(x, y)
        assert x.dtype == torch.float32
        assert len(x) == 400
    assert a.seeds == (3,)
    assert 0 < a.terminated.sum() < 400
    assert a.actions.abs().max() <= 1


def test_batches_give_next_actions_to_the_methods_that_ask():
    problem = tiny_problem()
    with_them, without = (
        next(batches(Algorithm(object, lambda p, c: None, next_actions=asks), problem))
        for asks in (True, False)
    )
    assert torch.equal(with_them.next_actions, problem.next_actions[with_them.rows])
    assert without.next_actions is without.returns_to_go is with_them.returns_to_go is None
    assert torch.equal(with_them.rows, without.rows)
    assert len(source_of(problem)) == 400
    returns = next(batches(Algorithm(object, lambda p, c: None, returns_to_go=True), problem))
    assert torch.equal(returns.returns_to_go, problem.returns_to_go[returns.rows])
