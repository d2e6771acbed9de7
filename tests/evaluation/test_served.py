"""An environment in another process plays the episodes that it would play in this one."""

import re
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch

from offrl.cli import main
from offrl.data.environments import named_environment
from offrl.errors import ConfigError
from offrl.evaluation.environments import make_env, shown_parts
from offrl.evaluation.rollout import Evaluator
from offrl.evaluation.sources import load_source
from offrl.evaluation.video import record
from offrl.messages import Client


def serving(env):
    command = [sys.executable, "-m", "offrl", "serve", "env", env]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def served():
    with serving("pusht-all") as process:
        line = process.stdout.readline()
        try:
            yield "served:" + line.partition("served:")[2].partition(",")[0]
        finally:
            process.terminate()


def test_the_episodes_are_those_of_the_environment_itself(served):
    policy = load_source("random", "pusht-all")
    results = []
    for env in ("pusht-all", served):
        with Evaluator(env) as evaluator:
            results.append(evaluator(policy, 6, seed=3, max_steps=30, deterministic=False))
    here, there = results
    np.testing.assert_array_equal(there.returns, here.returns)
    np.testing.assert_array_equal(there.max_rewards, here.max_rewards)
    np.testing.assert_array_equal(there.successes, here.successes)


def test_it_shows_the_same_parts_and_takes_the_same_actions(served):
    spec, theirs = named_environment("pusht-all"), named_environment(served)
    here, there = make_env(spec), make_env(theirs)
    assert shown_parts(there, theirs) == shown_parts(here, spec)
    assert there.action_space == here.action_space
    assert there.observation_space.shape == here.observation_space.shape
    assert there.unwrapped.max_episode_steps == 300
    here.close()
    there.close()


def test_what_cannot_be_done_from_here_is_one_clear_line(served, tmp_path):
    with pytest.raises(ConfigError, match="cannot be filmed from here"):
        record(load_source("random", "pusht-all"), served, tmp_path / "film.gif")
    client = Client(int(served.partition(":")[2]))
    with pytest.raises(ValueError, match=r"an action of shape \(2,\)"):
        client("step", {"action": np.zeros(3, np.float32)})
    with pytest.raises(ValueError, match="open, reset and step, not 'render'"):
        client("render")
    client.close()


def test_a_policy_for_another_environment_does_not_fit(served):
    policy = load_source("random", "pusht-state")
    with Evaluator(served) as evaluator, pytest.raises(ValueError, match="shape"):
        evaluator(policy, 1)
    assert torch.equal(policy.action_high, torch.tensor([512.0, 512.0]))


def test_a_port_that_cannot_be_used_is_said_in_a_line(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for number, message in (
            (port, f"--port {port} cannot be used: .*; 0 takes a free one"),
            (99_999, "--port must be in 1 .. 65535, or 0 for a free one, got 99999"),
            (-1, "--port must be in 1 .. 65535, or 0 for a free one, got -1"),
        ):
            assert main(["serve", "env", "Pendulum-v1", "--port", str(number)]) == 1
            assert re.search(message, capsys.readouterr().err)
