"""A policy in another process composes as it would in this one; what it is sent is checked."""

import contextlib
import gc
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from offrl.cli import run
from offrl.data.normalize import AffineNormalizer
from offrl.errors import ConfigError, PolicyError
from offrl.messages import Client, Server
from offrl.nn.policy import SquashedGaussianPolicy, save_policy
from offrl.policies.chunk import ChunkPolicy
from offrl.policies.composed import ComposedPolicy
from offrl.policies.gaussian import GaussianPlan
from offrl.policies.served import KEPT, PolicyService, ServedPolicy

PARTS = [("agent_pos", [2]), ("block_pose", [3])]


def chunky(seed=0, **settings):
    torch.manual_seed(seed)
    sizes = {"widths": (8, 16), "step_embed": 8, "horizon": 8, "n_obs": 2, "n_act": 4, "denoising_steps": 4}
    policy = ChunkPolicy(5, 2, [0, 0], [512, 512], inputs=PARTS, **(sizes | settings)).eval()
    units = [AffineNormalizer.build(np.full(n, 256.0), np.full(n, 1 / 256)) for n in (5, 2)]
    policy.set_normalizers(*units)
    return policy


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("parents")
    for name, policy in (("a", chunky(0)), ("b", chunky(1, family="flow"))):
        save_policy(policy, base / name, {"env_id": "gym_pusht/PushT-v0"})
    return base


@pytest.fixture(scope="module")
def port(folders):
    """Of a real server process with policy a."""
    command = [sys.executable, "-m", "offrl", "serve", "policy", str(folders / "a"), "--env", "pusht-state"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        try:
            yield int(line.partition("served:")[2].partition(",")[0])
        finally:
            process.terminate()


HISTORY = 512 * torch.rand(3, 2, 5, generator=torch.Generator().manual_seed(0))


def plan(policy, seed=1):
    with torch.no_grad():
        return policy.plan(HISTORY, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("operator", ["convex", "or"])
def test_a_composition_with_a_served_parent_is_the_same_to_the_bit(port, operator):
    served, local = ServedPolicy(port), chunky(0)
    here = plan(ComposedPolicy([local, chunky(1)], operator=operator))
    assert torch.equal(plan(ComposedPolicy([served, chunky(1)], operator=operator)), here)
    assert torch.equal(
        plan(ComposedPolicy([chunky(1), served], operator=operator)),
        plan(ComposedPolicy([chunky(1), local], operator=operator)),
    )
    served.client.close()


def test_a_served_policy_says_what_it_is_and_acts_alone(port):
    served, local = ServedPolicy(port), chunky(0)
    assert served.inputs == local.inputs
    assert torch.equal(served.levels.rho, local.schedule.rho)
    assert (served.action_low.tolist(), served.action_high.tolist()) == ([0, 0], [512, 512])
    assert torch.equal(plan(served), plan(served))
    assert not torch.equal(plan(served), plan(served, seed=2))
    with torch.no_grad():
        torch.testing.assert_close(served.plan(HISTORY, zero=True), local.plan(HISTORY, zero=True))
    back = pickle.loads(pickle.dumps(served))  # as it goes to another process of an evaluation
    assert torch.equal(plan(back), plan(served))
    back.client.close()
    served.client.close()


def test_compose_plays_and_checks_a_served_parent(port, folders, capsys, tmp_path):
    base = ["compose", "--policy", f"served:{port}", "--policy", str(folders / "b"), "--env", "pusht-state"]
    assert run([*base, "--check"]) == 0
    assert f"served:{port}: served, chunks of 8, 2 observations seen" in capsys.readouterr().out
    assert run([*base, "--out", str(tmp_path / "c")]) == 1
    assert "--out needs policies that are files" in capsys.readouterr().err
    assert run(["compose", "--policy", "served:1", *base[3:]]) == 1
    assert "nothing answers on served:1" in capsys.readouterr().err


def connected(policy):
    lock = threading.Lock()
    server = Server(lambda: PolicyService(policy, lock))
    threading.Thread(target=server.run, daemon=True).start()
    return server


@pytest.fixture
def service():
    server = connected(chunky(0))
    yield Client(server.port)
    server.threads.shutdown()
    server.close()


def test_calls_that_do_not_fit_are_refused_with_what_would(service):
    u, history = np.zeros((1, 8, 2), np.float32), np.zeros((1, 2, 5), np.float32)
    known = service("encode", {"history": history}).values["obs_id"]
    for call, arrays, values, what in (
        ("encode", {"history": history[0]}, {}, "takes float32 'history'"),
        ("encode", {"history": history.astype(np.float64)}, {}, "takes float32"),
        ("encode", {"history": history[:0]}, {}, "takes float32"),
        ("denoise", {"u": u[:, :4]}, {"rho": 1.0, "obs_id": known}, "takes float32 'u'"),
        ("denoise", {"u": u}, {"rho": 1.0, "obs_id": known + 1}, "a known obs_id"),
        ("denoise", {"u": u}, {"rho": -1.0, "obs_id": known}, "a rho above 0"),
        ("denoise", {"u": u}, {"rho": float("nan"), "obs_id": known}, "a rho above 0"),
        ("denoise", {"u": u}, {"rho": "1", "obs_id": known}, "a rho above 0"),
        ("load", {}, {}, "not 'load'"),
    ):
        with pytest.raises(PolicyError, match=what):
            service(call, arrays, **values)
    assert service("denoise", {"u": u}, rho=1.0, obs_id=known).arrays["clean"].shape == (1, 8, 2)


def test_only_the_last_observations_are_remembered(service):
    u, history = np.zeros((1, 8, 2), np.float32), np.zeros((1, 2, 5), np.float32)
    ids = [service("encode", {"history": history}).values["obs_id"] for _ in range(KEPT + 1)]
    assert service("denoise", {"u": u}, rho=1.0, obs_id=ids[1]).call == "denoise"
    with pytest.raises(PolicyError, match="a known obs_id"):
        service("denoise", {"u": u}, rho=1.0, obs_id=ids[0])


def test_a_policy_without_a_denoiser_is_not_served(capsys):
    assert run(["serve", "policy", "random", "--env", "pusht-state"]) == 1
    assert "has no denoiser" in capsys.readouterr().err
    assert run(["serve", "policy", "random"]) == 1
    assert "pass --env ID" in capsys.readouterr().err


def test_an_environment_is_no_policy():
    class Env:
        def answer(self, message):
            raise ConfigError("this is an environment, not a policy")

        def close(self):
            pass

    server = Server(Env)
    threading.Thread(target=server.run, daemon=True).start()
    with pytest.raises(PolicyError, match="an environment, not a policy"):
        ServedPolicy(server.port)
    server.threads.shutdown()
    server.close()
    gc.collect()


@contextlib.contextmanager
def told(policy):
    """A served policy of this process."""
    server = connected(policy)
    try:
        yield server.port
    finally:
        server.threads.shutdown()
        server.close()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("call", ["denoise", "chunk", "to_actions"])
def test_answers_that_are_not_finite_are_refused_by_name(call, value):
    policy = chunky(0)
    sound = getattr(policy, call)

    def spoilt(*args, **settings):
        answer = sound(*args, **settings).clone()
        answer[-1, -1, -1] = value
        return answer

    with told(policy) as port:
        served = ServedPolicy(port)
        player = ComposedPolicy([chunky(1), served]) if call == "denoise" else served
        assert plan(player).isfinite().all()
        setattr(policy, call, spoilt)
        with pytest.raises(PolicyError) as refused:
            plan(player)
        served.client.close()
    assert str(refused.value) == f"served:{port} answered {call} with numbers that are not finite"


@pytest.mark.parametrize("part", ["action_high", "action_offset", "clip_bound"])
def test_a_description_that_is_not_finite_is_no_policy(part, monkeypatch):
    policy = chunky(0)
    if part == "clip_bound":
        monkeypatch.setattr(type(policy), "clip_bound", float("nan"))
    else:
        getattr(policy, part)[1] = float("inf")
    with told(policy) as port, pytest.raises(PolicyError, match=f"^served:{port} is no policy .*finite"):
        ServedPolicy(port)


def test_served_gaussian_actors_act_deterministically_as_local_ones():
    """Their mixture's middle, whichever of them live elsewhere."""
    actors = [GaussianPlan(actor.eval()) for actor in (gaussian_actor(0), gaussian_actor(1))]
    seen = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    with told(actors[0]) as port, torch.no_grad():
        served = ServedPolicy(port)
        assert torch.equal(served.act(seen)[0], actors[0].act(seen)[0])
        for parents in ([served, actors[1]], [served, served]):
            policy = ComposedPolicy(parents)
            local = ComposedPolicy([actors[0], actors[1] if parents[1] is not served else actors[0]])
            assert policy.draws is False
            assert torch.equal(policy.act(seen)[0], local.act(seen)[0])
        served.client.close()


def gaussian_actor(seed):
    torch.manual_seed(seed)
    return SquashedGaussianPolicy(3, 2, (8,), [-2, -1], [2, 3])
