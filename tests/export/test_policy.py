"""ONNX and torch.export files: equal actions at any batch size, checked before the file is put in place."""

import sys

import numpy as np
import pytest
import torch

import offrl
from offrl.diffusion.adjustment import CDSAModel, CDSAPolicy
from offrl.errors import ConfigError, MissingExtraError, PolicyError
from offrl.evaluation.sources import FunctionPolicy
from offrl.export import policy as export
from offrl.export.policy import SUFFIXES, export_policy
from offrl.nn.decision_transformer import DecisionTransformerPolicy
from offrl.nn.mixture import MixturePolicy, SquashedMixturePolicy
from offrl.nn.one_step_flow import OneStepFlowPolicy
from offrl.nn.policy import (
    DeterministicPolicy,
    DiagGaussianPolicy,
    GaussianPolicy,
    SquashedGaussianPolicy,
    save_policy,
)
from offrl.nn.random_policy import RandomPolicy
from offrl.policies.chunk import ChunkPolicy

OBS, ACT = 3, 2
LOW, HIGH = [-1.0, 0.5], [1.0, 3.5]
NETWORKS = [DeterministicPolicy, GaussianPolicy, DiagGaussianPolicy, SquashedGaussianPolicy]


def tiny(kind=DeterministicPolicy, hidden=(8, 6), low=LOW, high=HIGH, **settings):
    """A policy with weights large enough to reach the tanh's bends, and a normalizer that matters."""
    torch.manual_seed(0)
    policy = kind(OBS, ACT, hidden, low, high, **settings)
    for parameter in policy.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    policy.set_normalizer(torch.tensor([2.0, -1.0, 0.3]), torch.tensor([0.5, 4.0, 0.01]))
    return policy.eval()


def raw_observations(policy, rows, seed=1):
    noise = torch.randn((rows, OBS), generator=torch.Generator().manual_seed(seed))
    return policy.mean + policy.std * noise


def loaded(path):
    """The file's actions, by the library that the file is for alone."""
    if path.suffix == ".pt2":
        return torch.export.load(path).module()
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"observations": x.numpy()})[0])


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("name", ["onnx", "torch"])
def test_a_file_gives_the_deterministic_actions_at_any_batch_size(tmp_path, name, kind):
    policy, out = tiny(kind), tmp_path / f"policy{SUFFIXES[name]}"
    result = export_policy(policy, out, name)
    assert (result.path, result.format, result.agent) == (out, name, None)
    assert result.error <= 1e-5
    assert [p.name for p in tmp_path.iterdir()] == [
        out.name
    ]  # one file, no temporary one, no external weights
    act = loaded(out)
    for rows in (1, 2, 7, 256):
        x = raw_observations(policy, rows)
        torch.testing.assert_close(act(x), policy.act(x)[0], rtol=0, atol=1e-5)
    stochastic = kind is not DeterministicPolicy
    assert result.sampling == ("only the deterministic action is in it, not the policy's noise" * stochastic)


@pytest.mark.parametrize("kind", [OneStepFlowPolicy, MixturePolicy, SquashedMixturePolicy])
@pytest.mark.parametrize("name", ["onnx", "torch"])
def test_flows_and_mixtures_are_exported_without_their_noise(tmp_path, name, kind):
    policy, out = tiny(kind), tmp_path / f"policy{SUFFIXES[name]}"
    before = torch.get_rng_state()
    result = export_policy(policy, out, name)
    assert torch.equal(before, torch.get_rng_state())
    assert result.sampling == "only the deterministic action is in it, not the policy's noise"
    for rows in (1, 2, 7, 256):
        x = raw_observations(policy, rows)
        torch.testing.assert_close(loaded(out)(x), policy(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", SUFFIXES)
def test_a_policy_of_chunks_is_refused_in_every_format(tmp_path, name):
    policy = ChunkPolicy(OBS, ACT, LOW, HIGH, family="flow", horizon=4, n_obs=2, n_act=2, widths=(8, 16))
    with pytest.raises(
        PolicyError, match="a chunk policy acts on the episode so far, which formats onnx, torch"
    ):
        export_policy(policy, tmp_path / f"policy{SUFFIXES[name]}", name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["onnx", "torch"])
def test_the_clip_of_normalized_observations_is_inside(tmp_path, name):
    policy = tiny(observation_clip=0.5)
    out = tmp_path / f"policy{SUFFIXES[name]}"
    export_policy(policy, out, name)
    far = policy.mean + 100 * policy.std * torch.tensor([[1.0, -1.0, 1.0]])
    clipped = policy.mean + 0.5 * policy.std * torch.tensor([[1.0, -1.0, 1.0]])
    for x in (far, clipped):
        torch.testing.assert_close(loaded(out)(x), policy(clipped), rtol=0, atol=1e-5)


def test_the_onnx_file_names_its_ends_and_its_batch_axis_and_no_source_file(tmp_path):
    import onnx

    out = tmp_path / "policy.onnx"
    export_policy(tiny(), out, "onnx")
    model = onnx.load(out)
    onnx.checker.check_model(model, full_check=True)
    (first,), (last,) = model.graph.input, model.graph.output
    shapes = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in (first, last)]
    assert (first.name, last.name, shapes) == ("observations", "actions", [["batch", OBS], ["batch", ACT]])
    assert b".py" not in out.read_bytes()


def test_the_policy_itself_is_not_touched(tmp_path):
    policy = tiny().train()
    export_policy(policy, tmp_path / "policy.pt2", "torch")
    assert policy.training
    assert all(p.requires_grad for p in policy.parameters())


def test_a_folder_a_run_and_a_zip_are_sources(tmp_path, pendulum):
    policy = tiny(low=[-1.0, -1.0], high=[1.0, 1.0])
    save_policy(policy, tmp_path / "saved")
    settings = {"steps": 2, "hidden": 8, "batch_size": 8, "eval_every": 2, "eval_episodes": 1}
    run = offrl.train("iql", pendulum, out=tmp_path / "runs", progress=False, **settings)
    export_policy(policy, tmp_path / "agent.zip", "sb3")
    for source, expected in (
        (tmp_path / "saved", policy),
        (f"run:{run.directory}", run.policy),
        (f"sb3:{tmp_path / 'agent.zip'}", policy),
    ):
        offrl.export_policy(source, tmp_path / "policy.pt2", "torch")
        x = raw_observations(expected, 5)
        torch.testing.assert_close(loaded(tmp_path / "policy.pt2")(x), expected(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("wrong", [2e-5, float("nan")])
@pytest.mark.parametrize("size", export.BATCH_SIZES)
def test_a_file_that_acts_differently_at_one_batch_size_is_not_put_in_place(
    tmp_path, monkeypatch, size, wrong
):
    """One component of one row is off by more than the tolerance of 1e-5 half-ranges."""
    policy, out = tiny(low=[-1.0, -1.0], high=[1.0, 1.0]), tmp_path / "policy.pt2"
    out.write_text("the older file")

    def act(x):
        actions = policy(x).detach()
        actions[-1, -1] += wrong if len(x) == size else 0.0
        return actions

    monkeypatch.setattr(export, "_write_graph", lambda *_, **__: [policy, act])
    with pytest.raises(PolicyError, match=f"is not written: at batch size {size} its actions differ"):
        export_policy(policy, out, "torch")
    assert [p.name for p in tmp_path.iterdir()] == [out.name]
    assert out.read_text() == "the older file"


def test_the_tolerance_is_in_half_ranges_and_knows_the_resolution_of_float32(tmp_path, monkeypatch):
    """2e-5 is half the tolerance of a box of half-range 4; in [9999, 10001] float32 steps are 1e-3."""
    for low, high, wrong in (([-4.0] * 2, [4.0] * 2, 2e-5), ([9999.0] * 2, [10001.0] * 2, 9e-4)):
        policy = tiny(low=low, high=high)
        monkeypatch.setattr(export, "_write_graph", lambda *_, **__: [lambda x: policy(x) + wrong])
        assert export_policy(policy, tmp_path / "policy.pt2", "torch").error == pytest.approx(wrong, rel=0.2)


def test_a_steep_network_has_a_wider_but_bounded_tolerance(tmp_path, monkeypatch):
    """Its float32 actions err by more than 1e-5 themselves, so files do too; 1e-3 half-ranges are never passed."""
    policy = tiny(low=[-1.0, -1.0], high=[1.0, 1.0])
    with torch.no_grad():
        policy.head.weight *= 1e4
        policy.head.bias.copy_(-policy.output(policy.mean[None])[0])
    for wrong, refused in ((5e-5, False), (2e-3, True)):
        monkeypatch.setattr(export, "_write_graph", lambda *_, **__: [lambda x: policy(x) + wrong])
        if refused:
            with pytest.raises(PolicyError, match="more than float32 rounding explains"):
                export_policy(policy, tmp_path / "policy.pt2", "torch")
        else:
            export_policy(policy, tmp_path / "policy.pt2", "torch")


def test_an_adjusted_policy_goes_as_one_and_nothing_is_drawn(tmp_path):
    torch.manual_seed(3)
    sizes = {"hidden": 4, "blocks": 1, "dynamics_hidden": 4}
    sizes |= {"target": "joint", "sigma_min": 0.01, "sigma_max": 0.5}
    model = CDSAModel(OBS, ACT, LOW, HIGH, **sizes)
    for weight in model.score_weights:
        torch.nn.init.normal_(weight, std=0.3)
    adjusted, state = CDSAPolicy(tiny(), model, alpha=0.5), torch.get_rng_state()
    export_policy(adjusted, tmp_path / "policy.pt2", "torch")
    assert torch.equal(state, torch.get_rng_state())
    observations = raw_observations(adjusted.base, 5)
    acted = torch.export.load(tmp_path / "policy.pt2").module()(observations)
    torch.testing.assert_close(acted, adjusted(observations), rtol=0, atol=1e-5)
    assert not torch.allclose(acted, adjusted.base(observations), atol=1e-3)
    memory = DecisionTransformerPolicy(OBS, ACT, hidden=8, layers=1, context=2)
    with pytest.raises(PolicyError, match="acts on the episode so far"):
        export_policy(CDSAPolicy(memory, CDSAModel(OBS, ACT, **sizes)), tmp_path / "no.pt2", "torch")


def test_what_cannot_be_exported_is_refused(tmp_path):
    out = tmp_path / "policy.onnx"
    with pytest.raises(PolicyError, match="a random policy holds no network"):
        export_policy(RandomPolicy(OBS, ACT), out, "onnx")
    function = FunctionPolicy(np.tanh, OBS, OBS, [-1.0] * OBS, [1.0] * OBS)
    with pytest.raises(PolicyError, match="a function policy holds no network"):
        export_policy(function, out, "onnx")
    with pytest.raises(PolicyError, match="acts on the episode so far"):
        export_policy(DecisionTransformerPolicy(OBS, ACT, hidden=8, layers=1, context=2), out, "onnx")
    chunks = ChunkPolicy(OBS, ACT, [-1.0] * ACT, [1.0] * ACT, widths=(8,), step_embed=4, denoising_steps=2)
    with pytest.raises(PolicyError, match="a chunk policy acts on the episode so far"):
        export_policy(chunks, tmp_path / "policy.pt2", "torch")
    for source in ("random", "waypoint", "py:my.module:make"):
        with pytest.raises(ConfigError, match=f"^{source} cannot be exported; name a run"):
            export_policy(source, out, "onnx")
    with pytest.raises(ConfigError, match="neither a folder nor a policy's name"):
        export_policy("no/such/run", out, "onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "out", "env", "message"),
    [
        ("tflite", "a.onnx", None, "unknown format 'tflite'; known are onnx, torch, sb3"),
        ("onnx", "a.pt2", None, "a file of format onnx must end in .onnx, got '"),
        ("torch", "a", None, "a file of format torch must end in .pt2"),
        ("sb3", "a.onnx", None, "a file of format sb3 must end in .zip"),
        ("onnx", "folder.onnx", None, "is a folder"),
        ("torch", "a.pt2", "Pendulum-v1", "has no effect with format torch"),
    ],
)
def test_requests_that_make_no_sense(tmp_path, name, out, env, message):
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(ConfigError, match=message):
        export_policy(tiny(), tmp_path / out, name, env=env)


@pytest.mark.parametrize(
    ("name", "library", "extra"),
    [
        ("onnx", "onnx", "export"),
        ("onnx", "onnxruntime", "export"),
        ("onnx", "onnxscript", "export"),
        ("sb3", "stable_baselines3", "sb3"),
    ],
)
def test_a_missing_library_names_its_extra(tmp_path, monkeypatch, name, library, extra):
    monkeypatch.setitem(sys.modules, library, None)
    message = rf"this needs {library.replace('_', '-')}, .* run: pip install 'offrl\[{extra}\]'"
    with pytest.raises(MissingExtraError, match=message):
        export_policy(tiny(), tmp_path / f"x{SUFFIXES[name]}", name)


def test_torch_needs_no_extra(tmp_path, monkeypatch):
    for library in ("onnx", "onnxruntime", "onnxscript", "stable_baselines3"):
        monkeypatch.setitem(sys.modules, library, None)
    policy = tiny()
    export_policy(policy, tmp_path / "policy.pt2", "torch")
    x = raw_observations(policy, 5)
    act = torch.export.load(tmp_path / "policy.pt2").module()
    torch.testing.assert_close(act(x), policy(x), rtol=0, atol=1e-5)


def test_the_files_act_where_offrl_is_not_installed(tmp_path, in_child):
    policy = tiny(SquashedGaussianPolicy, log_std_min=-5.0)
    x = raw_observations(policy, 5)
    for name in SUFFIXES:
        export_policy(policy, tmp_path / f"policy{SUFFIXES[name]}", name)
    import stable_baselines3

    expected = policy(x).detach()

    def act() -> int:
        for module in [m for m in sys.modules if m.split(".")[0] == "offrl"]:
            del sys.modules[module]
        sys.modules["offrl"] = None
        agent = stable_baselines3.SAC.load(tmp_path / "policy.zip", device="cpu")
        found = [loaded(tmp_path / "policy.onnx")(x), loaded(tmp_path / "policy.pt2")(x)]
        found.append(torch.from_numpy(agent.predict(x.numpy(), deterministic=True)[0]))
        for actions in found:
            torch.testing.assert_close(actions, expected, rtol=0, atol=1e-5)
        return 0

    child = in_child(act)
    assert (child.code, child.err) == (0, "")
