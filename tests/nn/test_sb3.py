"""Zips and pickles are made by hand, in the layout of stable-baselines3 1.3 to 2.9; it is not needed."""

import contextlib
import io
import itertools
import json
import math
import os
import pickle
import struct
import sys
import types
import zipfile

import numpy as np
import pytest
import torch

from offrl.errors import PolicyError
from offrl.nn import sb3
from offrl.nn.policy import (
    DeterministicPolicy,
    DiagGaussianPolicy,
    SquashedGaussianPolicy,
    load_policy,
    save_policy,
)
from offrl.nn.sb3 import load_sb3_actor
from offrl.nn.vecnormalize import read_vecnormalize

OBS, ACT, H = 3, 2, 4
MODULES = {"sac": "stable_baselines3.sac.policies", "td3": "stable_baselines3.td3.policies"}
RELU = "<class 'torch.nn.modules.activation.ReLU'>"


def layers(prefix, *sizes, seed=0):
    """State-dict entries of nn.Sequential(Linear, activation, Linear, ...) called ``prefix``."""
    g, state = torch.Generator().manual_seed(seed), {}
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        state[f"{prefix}.{2 * i}.weight"] = torch.randn(fan_out, fan_in, generator=g)
        state[f"{prefix}.{2 * i}.bias"] = torch.randn(fan_out, generator=g)
    return state


def single(name, fan_in, fan_out, seed):
    return {key.replace(".0.", "."): value for key, value in layers(name, fan_in, fan_out, seed=seed).items()}


def sac_state():
    state = (
        layers("actor.latent_pi", OBS, H, H)
        | single("actor.mu", H, ACT, 1)
        | single("actor.log_std", H, ACT, 2)
    )
    return state | layers("critic.qf0", OBS + ACT, H, 1) | layers("critic_target.qf0", OBS + ACT, H, 1)


def td3_state():
    return (
        layers("actor.mu", OBS, H, H, ACT)
        | layers("actor_target.mu", OBS, H, H, ACT)
        | layers("critic.qf0", OBS + ACT, H, 1)
    )


def ppo_state():
    state = layers("mlp_extractor.policy_net", OBS, H, H) | layers("mlp_extractor.value_net", OBS, H, H)
    return (
        state
        | single("action_net", H, ACT, 1)
        | single("value_net", H, 1, 2)
        | {"log_std": torch.tensor([-1.0, 0.5])}
    )


def data(module="stable_baselines3.common.policies", **changes):
    box = {
        ":type:": "<class 'gym.spaces.box.Box'>",
        ":serialized:": "gASV",
        "dtype": "float32",
        "shape": [ACT],
    }
    value = {
        "policy_class": {":type:": "<class 'abc.ABCMeta'>", ":serialized:": "gASV", "__module__": module},
        "policy_kwargs": {":type:": "<class 'dict'>", ":serialized:": "gASV"},
        "observation_space": {":serialized:": "gASV", "shape": [OBS]},
        "action_space": box | {"low": "[-1.  0.]", "high": "[3.  0.5]"},
        "use_sde": False,
    }
    return value | changes


def write_zip(path, state, facts):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", facts if isinstance(facts, str | bytes) else json.dumps(facts))
        archive.writestr("policy.pth", buffer.getvalue())
        archive.writestr("_stable_baselines3_version", "2.9.2")
    return path


def forward(state, names, activation, x):
    """The network, layer by layer."""
    for i, name in enumerate(names):
        x = x @ state[f"{name}.weight"].T + state[f"{name}.bias"]
        x = activation(x) if i < len(names) - 1 else x
    return x


X = torch.randn(7, OBS, generator=torch.Generator().manual_seed(9)) * 2
CENTER, HALF = torch.tensor([1.0, 0.25]), torch.tensor([2.0, 0.25])


# --- the networks -----------------------------------------------------------------------------------------


def test_sac_is_a_squashed_gaussian_with_relu_in_the_box_of_the_agent(tmp_path):
    state = sac_state()
    policy = load_sb3_actor(write_zip(tmp_path / "m.zip", state, data(MODULES["sac"])))
    trunk = ["actor.latent_pi.0", "actor.latent_pi.2"]
    mean = forward(state, [*trunk, "actor.mu"], torch.relu, X)
    log_std = forward(state, [*trunk, "actor.log_std"], torch.relu, X).clamp(-20, 2)
    assert isinstance(policy, SquashedGaussianPolicy)
    assert torch.allclose(policy.act(X)[0], CENTER + HALF * torch.tanh(mean), atol=1e-6)
    assert torch.allclose(policy.moments(X)[1], log_std.exp(), rtol=1e-5)
    assert not policy.training


def test_td3_is_deterministic_with_a_final_tanh(tmp_path):
    state = td3_state()
    policy = load_sb3_actor(write_zip(tmp_path / "m.zip", state, data(MODULES["td3"])))
    output = forward(state, ["actor.mu.0", "actor.mu.2", "actor.mu.4"], torch.relu, X)
    assert isinstance(policy, DeterministicPolicy)
    assert torch.allclose(policy.act(X)[0], CENTER + HALF * torch.tanh(output), atol=1e-6)


@pytest.mark.parametrize(("kwargs", "activation"), [({}, torch.tanh), ({"activation_fn": RELU}, torch.relu)])
def test_ppo_is_a_clipped_gaussian_with_the_activation_of_its_plain_string_else_tanh(
    tmp_path, kwargs, activation
):
    state, facts = ppo_state(), data(policy_kwargs={":serialized:": "gASV", **kwargs})
    policy = load_sb3_actor(write_zip(tmp_path / "m.zip", state, facts))
    names = ["mlp_extractor.policy_net.0", "mlp_extractor.policy_net.2", "action_net"]
    mean = forward(state, names, activation, X)
    assert isinstance(policy, DiagGaussianPolicy)
    expected = torch.minimum(torch.maximum(mean, CENTER - HALF), CENTER + HALF)
    assert torch.allclose(policy.act(X)[0], expected, atol=1e-6)
    assert torch.allclose(policy.moments(X)[1], state["log_std"].exp())


def test_layers_shared_with_the_critic_come_before_the_actors_own(tmp_path):
    """SB3 before 1.8 could share the first layers."""
    state = ppo_state() | layers("mlp_extractor.shared_net", OBS, OBS, seed=5)
    policy = load_sb3_actor(write_zip(tmp_path / "m.zip", state, data()))
    own = ["mlp_extractor.policy_net.0", "mlp_extractor.policy_net.2", "action_net"]
    expected = policy.clip(forward(state, ["mlp_extractor.shared_net.0", *own], torch.tanh, X))
    assert torch.allclose(policy.act(X)[0], expected, atol=1e-6)


def test_an_actor_can_be_saved_as_a_policy_of_our_own(tmp_path):
    vecnormalize(tmp_path / "vecnormalize.pkl")
    policy = load_sb3_actor(write_zip(tmp_path / "m.zip", ppo_state(), data()))
    save_policy(policy, tmp_path / "p")
    assert torch.equal(load_policy(tmp_path / "p")(X), policy(X))


REFUSED = {
    "gSDE": (ppo_state(), data(use_sde=True), "gSDE"),
    "discrete": (
        ppo_state(),
        data(action_space={":serialized:": "gASV", "n": "4"}),
        "only agents with box actions",
    ),
    "summarized box": (
        ppo_state(),
        data(action_space={"low": "[-1. ... -1.]", "high": "[1. 1.]"}),
        "not a list of numbers",
    ),
    "box of another size": (
        ppo_state(),
        data(action_space={"low": "[-1.]", "high": "[1.]"}),
        "bound has shape",
    ),
    "infinite box": (ppo_state(), data(action_space={"low": "[-inf 0]", "high": "[1 1]"}), "must be finite"),
    "own policy class": (
        ppo_state(),
        data("my_project.policies"),
        "policy class is from 'my_project.policies'",
    ),
    "own activation": (
        ppo_state(),
        data(policy_kwargs={"activation_fn": "<class 'x.Y'>"}),
        "activation .* is not",
    ),
    "image features": (
        ppo_state() | layers("features_extractor.cnn", OBS, H),
        data(),
        r"has 'features_extractor.cnn.0.bias'",
    ),
    "layer norm": (
        sac_state() | {"actor.latent_pi.1.weight": torch.ones(H)},
        data(),
        "actor.latent_pi.1.weight",
    ),
    "q network": ({"q_net.q_net.0.weight": torch.ones(2, 3)}, data(), "not those of SAC"),
    "other observations": (
        ppo_state(),
        data(observation_space={"_shape": [5]}),
        r"shape \[5\] but its first layer takes O=3",
    ),
    "three dimensions": (ppo_state() | {"action_net.weight": torch.ones(2, 4, 1)}, data(), "has shapes"),
    "nan": (ppo_state() | {"action_net.bias": torch.tensor([math.nan, 0.0])}, data(), "not finite"),
    "no bias": (
        {k: v for k, v in ppo_state().items() if k != "action_net.bias"},
        data(),
        "no layer 'action_net'",
    ),
    "not a tensor": (ppo_state() | {"more": [1, 2]}, data(), "'more', which is not a plain tensor"),
    "huge view": (ppo_state() | {"more": torch.ones(1).expand(1 << 40)}, data(), "not a plain tensor"),
    "list of tensors": ([torch.ones(1)], data(), "is not a table"),
    "not json": (ppo_state(), "{", "not a stable-baselines3 zip, or is damaged"),
    "deep json": (ppo_state(), "[" * 100_000, "not a stable-baselines3 zip, or is damaged"),
    "json list": (ppo_state(), "[]", "is not a table"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_understood_is_refused_with_the_reason(name, tmp_path):
    state, facts, message = REFUSED[name]
    with pytest.raises(PolicyError, match=message) as caught:
        load_sb3_actor(write_zip(tmp_path / "m.zip", state, facts))
    assert str(tmp_path / "m.zip") in str(caught.value)


def test_missing_files_entries_and_other_archives_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.zip"):
        load_sb3_actor(tmp_path / "none.zip")
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(PolicyError, match="not a stable-baselines3 zip"):
        load_sb3_actor(tmp_path / "text.zip")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("data", "{}")
    with pytest.raises(PolicyError, match=r"has no 'policy\.pth'"):
        load_sb3_actor(tmp_path / "other.zip")


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(sb3, "MAX_DATA_BYTES", 1 << 20)
    with zipfile.ZipFile(tmp_path / "m.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data", b"\0" * (2 << 20))
        archive.writestr("policy.pth", b"")
    with pytest.raises(PolicyError, match="'data' unpacks to 2097152 bytes, the limit is 1048576"):
        load_sb3_actor(tmp_path / "m.zip")


def test_a_bomb_inside_policy_pth_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sb3, "MAX_WEIGHT_BYTES", 1 << 20)
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * (2 << 20))
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        archive.writestr("data", json.dumps(data()))
        archive.writestr("policy.pth", inner.getvalue())
    with pytest.raises(PolicyError, match=r"policy\.pth unpacks to 2097152 bytes"):
        load_sb3_actor(tmp_path / "m.zip")


def test_code_in_policy_pth_is_not_run(tmp_path):
    with pytest.raises(PolicyError, match="more than tensors"):
        load_sb3_actor(write_zip(tmp_path / "m.zip", {"log_std": Runs(tmp_path / "ran")}, data()))
    assert not (tmp_path / "ran").exists()


def test_changed_bytes_in_a_zip_give_a_policy_error_or_a_policy(tmp_path):
    whole = write_zip(tmp_path / "m.zip", ppo_state(), data()).read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(150):
        changed = bytearray(whole)
        changed[rng.integers(len(whole))] = rng.integers(256)
        (tmp_path / "m.zip").write_bytes(changed)
        with contextlib.suppress(PolicyError):
            load_sb3_actor(tmp_path / "m.zip")


# --- vecnormalize.pkl -------------------------------------------------------------------------------------


class Runs:
    """Leaves a file behind if its pickle is obeyed."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


RMS, BOX = "stable_baselines3.common.running_mean_std", "gym.spaces.box"
NORMALIZE = "stable_baselines3.common.vec_env.vec_normalize"
MEAN, VARIANCE = np.array([1.0, -2.0, 0.5]), np.array([4.0, 0.25, 1e-12])


def vecnormalize(path, *, protocol=4, rms=None, drop=(), **changes):
    """Pickles stand-ins under SB3's own names, in its layout."""

    def named(module, name):
        made = type(name, (), {"__module__": module})
        sys.modules[module].__dict__[name] = made
        return made

    names = {".".join(n.split(".")[:k]) for n in (RMS, NORMALIZE, BOX) for k in range(1, 5)}
    saved = {name: sys.modules.pop(name, None) for name in names}
    sys.modules.update({name: types.ModuleType(name) for name in names})
    try:
        statistics, wrapper = named(RMS, "RunningMeanStd")(), named(NORMALIZE, "VecNormalize")()
        box = named(BOX, "Box")()
        box.__dict__.update(
            dtype=np.dtype("float64"), low=np.full(OBS, -np.inf), np_random=np.random.RandomState(0)
        )
        statistics.__dict__.update(mean=MEAN, var=VARIANCE, count=np.float64(100.0))
        statistics.__dict__.update(rms or {})
        values = {"obs_rms": statistics, "epsilon": 1e-8, "clip_obs": 10.0, "norm_obs": True, "space": box}
        wrapper.__dict__.update({k: v for k, v in (values | changes).items() if k not in drop})
        path.write_bytes(pickle.dumps(wrapper, protocol=protocol))
    finally:
        for name, module in saved.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
    return path


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_the_statistics_beside_the_zip_are_found_and_applied_before_the_network(tmp_path, protocol):
    """clip((o - mean) / sqrt(var + 1e-8), -10, 10); the tiny third variance makes the clip bind."""
    vecnormalize(tmp_path / "vecnormalize.pkl", protocol=protocol)
    state = ppo_state()
    policy = load_sb3_actor(write_zip(tmp_path / "m.zip", state, data()))
    normalized = np.clip((X.numpy() - MEAN) / np.sqrt(VARIANCE + 1e-8), -10, 10)
    assert (np.abs(normalized) == 10).any()
    assert np.allclose(policy.normalize(X), normalized, rtol=1e-5)
    names = ["mlp_extractor.policy_net.0", "mlp_extractor.policy_net.2", "action_net"]
    mean = forward(state, names, torch.tanh, torch.from_numpy(normalized).float())
    assert torch.allclose(policy.act(X)[0], policy.clip(mean), atol=1e-5)


def test_numpy_scalars_and_switched_off_statistics_are_read(tmp_path):
    path = vecnormalize(tmp_path / "a.pkl", epsilon=np.float64(0.25), clip_obs=np.float32(3.0))
    statistics = read_vecnormalize(path)
    assert np.allclose(statistics.std, np.sqrt(VARIANCE + 0.25))
    assert statistics.clip == 3.0
    assert read_vecnormalize(vecnormalize(tmp_path / "b.pkl", norm_obs=False)) is None


BAD_STATISTICS = {
    "nan": ({"rms": {"mean": np.array([1.0, math.nan, 0.0])}}, "must be finite"),
    "negative variance": ({"rms": {"var": np.array([1.0, -1.0, 1.0])}}, "must be finite"),
    "two lengths": ({"rms": {"var": np.ones(2)}}, "two equal vectors"),
    "matrix": ({"rms": {"mean": np.ones((3, 1))}}, "not a vector"),
    "objects": ({"rms": {"mean": np.array([1.0, None, 2.0])}}, "not of plain numbers"),
    "list": ({"rms": {"mean": [1.0, 2.0, 3.0]}}, "not of plain numbers"),
    "dict observations": ({"obs_rms": {"a": 1}}, "observations are a dict"),
    "nothing": ({"obs_rms": None}, "no RunningMeanStd"),
    "no clip": ({"drop": ("clip_obs",)}, "holds no 'clip_obs'"),
    "text": ({"epsilon": "1e-8"}, "must be finite numbers"),
}


@pytest.mark.parametrize("name", BAD_STATISTICS)
def test_statistics_that_make_no_sense_are_refused(name, tmp_path):
    changes, message = BAD_STATISTICS[name]
    with pytest.raises(PolicyError, match=message):
        read_vecnormalize(vecnormalize(tmp_path / "v.pkl", **changes))


def test_statistics_of_another_robot_are_refused(tmp_path):
    vecnormalize(tmp_path / "vecnormalize.pkl", rms={"mean": np.ones(5), "var": np.ones(5)})
    with pytest.raises(PolicyError, match=r"normalizes O=5 but .*m.zip was built for O=3"):
        load_sb3_actor(write_zip(tmp_path / "m.zip", ppo_state(), data()))


def call(module, name, *arguments):
    """A pickle that calls module.name(*arguments)."""
    body = pickle.dumps(arguments, protocol=2)[2:-1]  # without PROTO and STOP
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + body + b"R."


def hostile(folder):
    """Pickles that run code, reserve memory or reach outside, by name."""
    touch = f"touch {folder / 'ran'}"
    good = vecnormalize(folder / "good.pkl").read_bytes()
    array = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
    return {
        "os.system": call("os", "system", touch),
        "posix.system": call("posix", "system", touch),
        "eval": call("builtins", "eval", f"__import__('os').system({touch!r})"),
        "exec in Python 2 spelling": call("__builtin__", "exec", f"__import__('os').system({touch!r})"),
        "subprocess": call("subprocess", "getoutput", touch),
        "numpy load": call("numpy", "load", "x.npy"),
        "numpy runs a command": call("numpy.f2py.crackfortran", "myeval", touch),
        "attribute of an allowed module": call("numpy.core.multiarray", "fromfile", "/etc/passwd"),
        "dotted name": pickle.dumps(Runs(folder / "ran"), protocol=4).replace(b"posix", b"numpy"),
        "nested": good[:-1] + call("os", "system", touch)[2:-1] + b".",
        "inside a state": good[:-1]
        + b"}"
        + pickle.dumps("obs_rms", protocol=2)[2:-1]
        + call("os", "system", touch)[2:-1]
        + b"sb.",
        "huge array": array + pickle.dumps(((1 << 50,), b"f8"), protocol=2)[2:-1] + b"\x86R.",
        "huge bytes": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b".",
        "huge bytearray": b"\x80\x05\x96" + struct.pack("<Q", 1 << 60) + b".",
        "huge frame": b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"N.",
        "huge memo": b"\x80\x02Nr" + struct.pack("<I", (1 << 31) - 1) + b".",
        "many instructions": b"\x80\x02" + b"]" * 300_000 + b".",
        "persistent id": b"\x80\x02Pname\n.",
        "extension": b"\x80\x02\x82\x01.",
        "old instance": b"(ios\nsystem\nS'" + touch.encode() + b"'\n.",
        "build on a class": b"\x80\x02cnumpy\nndarray\n}U\x01xK\x01sb.",
        "unbalanced": b"\x80\x02R.",
        "no stop": b"\x80\x02N",
        "empty": b"",
        "text": b"hello",
        "another object": pickle.dumps({"obs_rms": 1}),
        "too long": b"\x80\x02" + b"N0" * (3 << 20) + b"N.",
    }


def test_hostile_pickles_are_refused_and_nothing_runs(tmp_path):
    """The first one is shown to be a working attack on a plain unpickler."""
    pickle.loads(call("os", "system", f"touch {tmp_path / 'ran'}"))
    (tmp_path / "ran").unlink()
    for name, content in hostile(tmp_path).items():
        (tmp_path / "v.pkl").write_bytes(content)
        with pytest.raises(PolicyError):
            read_vecnormalize(tmp_path / "v.pkl")
        assert not (tmp_path / "ran").exists(), name


def test_one_pickle_cannot_change_how_the_next_is_read(tmp_path):
    """BUILD with a slot state could set attributes on a class that is on the stack."""
    for name in ("VecNormalize", "RunningMeanStd"):
        module = NORMALIZE if name == "VecNormalize" else RMS
        state = pickle.dumps((None, {"name": "dtype", "args": ("f8",)}), protocol=2)[2:-1]
        (tmp_path / "v.pkl").write_bytes(b"\x80\x02c" + f"{module}\n{name}\n".encode() + state + b"b.")
        with pytest.raises(PolicyError):
            read_vecnormalize(tmp_path / "v.pkl")
    assert read_vecnormalize(vecnormalize(tmp_path / "v.pkl")).clip == 10.0


def test_changed_bytes_in_a_pickle_give_a_policy_error_or_statistics(tmp_path):
    whole = vecnormalize(tmp_path / "v.pkl").read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(400):
        changed = bytearray(whole)
        for _ in range(rng.integers(1, 4)):
            changed[rng.integers(len(whole))] = rng.integers(256)
        (tmp_path / "v.pkl").write_bytes(changed)
        with contextlib.suppress(PolicyError):
            read_vecnormalize(tmp_path / "v.pkl")
