import contextlib
import json
import math

import numpy as np
import pytest
import safetensors.torch
import torch

from offrl.errors import PolicyError
from offrl.nn import policy as policy_module
from offrl.nn.policy import (
    KINDS,
    DeterministicPolicy,
    DiagGaussianPolicy,
    GaussianPolicy,
    Policy,
    SquashedGaussianPolicy,
    load_policy,
    read_description,
    save_policy,
)
from offrl.nn.random_policy import RandomPolicy

LOW, HIGH = [-1.0, 0.0], [3.0, 0.5]  # center (1, 0.25), half-range (2, 0.25)
CENTER, HALF = torch.tensor([1.0, 0.25]), torch.tensor([2.0, 0.25])
MEAN, STD = torch.tensor([10.0, -1.0, 0.0]), torch.tensor([2.0, 0.5, 1.0])


def linear(*rows, bias=None):
    weight = torch.tensor(rows, dtype=torch.float32)
    return weight, torch.zeros(len(rows)) if bias is None else torch.tensor(bias)


PICK = linear([1.0, 0.0, 0.0], [0.0, 1.0, 0.0])  # the first two normalized observations


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def one_of(kind: str) -> Policy:
    """A policy of each kind with a box and a normalizer that are not the default."""
    torch.manual_seed(3)
    if kind == "random":
        return RandomPolicy(3, 2, LOW, HIGH)
    made = KINDS[kind](3, 2, (8, 5), LOW, HIGH, activation="elu", observation_clip=4.0)
    made.set_normalizer(MEAN, STD)
    if isinstance(made, GaussianPolicy):
        with torch.no_grad():
            made.log_std.copy_(torch.tensor([-1.0, 0.5]))
    return made.eval()


# --- what each kind computes ------------------------------------------------------------------------------


def test_deterministic_actions_are_center_plus_half_range_times_tanh_of_the_normalized_observation():
    """x = ((12 - 10) / 2, (-1.25 + 1) / 0.5) = (1, -0.5), through the identity."""
    policy = DeterministicPolicy.from_params([PICK], LOW, HIGH, MEAN, STD)
    actions, state = policy.act(torch.tensor([[12.0, -1.25, 7.0]]))
    expected = [1.0 + 2.0 * math.tanh(1.0), 0.25 + 0.25 * math.tanh(-0.5)]
    assert torch.allclose(actions, torch.tensor([expected]))
    assert state is None
    assert torch.equal(policy(torch.tensor([[12.0, -1.25, 7.0]])), actions)


def test_the_observation_is_clipped_after_it_is_normalized():
    """(18 - 10) / 2 = 4 is cut to 1.5; clipping the raw 18 first would give (1.5 - 10) / 2 < 0."""
    policy = DeterministicPolicy.from_params([PICK], LOW, HIGH, MEAN, STD, observation_clip=1.5)
    expected = 1.0 + 2.0 * math.tanh(1.5)
    assert policy(torch.tensor([[18.0, -1.0, 0.0]]))[0, 0].item() == pytest.approx(expected)


@pytest.mark.parametrize(("name", "value"), [("relu", 0.0), ("tanh", math.tanh(-2.0))])
def test_the_activation_follows_each_hidden_layer_and_not_the_last(name, value):
    """Hidden unit -2, output -1 times it: relu gives 0, tanh gives -tanh(-2); the output is not activated."""
    params = [linear([-2.0]), linear([-1.0])]
    policy = DiagGaussianPolicy.from_params(params, [-5.0], [5.0], activation=name)
    assert policy(torch.ones(1, 1)).item() == pytest.approx(-value)


def test_gaussian_mean_is_bounded_and_its_std_is_in_units_of_the_half_range():
    policy = GaussianPolicy.from_params([PICK], LOW, HIGH, log_std=torch.tensor([0.0, -1.0]))
    x = torch.tensor([[0.3, -0.2, 0.0]])
    mean, std = policy.moments(x)
    assert torch.allclose(mean, CENTER + HALF * torch.tanh(x[:, :2]))
    assert torch.allclose(std, HALF * torch.tensor([1.0, math.exp(-1.0)]))
    assert torch.equal(policy.act(x)[0], mean)


@pytest.mark.parametrize(("log_std", "clamped"), [(9.0, 2.0), (-30.0, -5.0)])
def test_gaussian_log_std_is_clamped(log_std, clamped):
    policy = GaussianPolicy.from_params([PICK], LOW, HIGH, log_std=torch.full((2,), log_std))
    assert torch.allclose(policy.moments(torch.zeros(1, 3))[1], HALF * math.exp(clamped))


@pytest.mark.parametrize("kind", ["gaussian", "diag_gaussian"])
def test_gaussian_samples_have_the_moments_of_the_distribution_and_end_at_the_box(kind):
    """4000 draws; the standard error of the mean is std / 63, that of the std is std / 89: 4 of them."""
    log_std = torch.full((2,), math.log(0.1))
    policy = KINDS[kind].from_params([PICK], [-9.0, -9.0], [9.0, 9.0], log_std=log_std)
    x = torch.tensor([[0.2, -0.4, 0.0]]).expand(4000, -1)
    mean, std = policy.moments(x[:1])
    draws = policy.act(x, deterministic=False, generator=generator())[0]
    assert ((draws.mean(0) - mean[0]).abs() < 4 * std / 4000**0.5).all()
    assert ((draws.std(0) - std).abs() < 4 * std / 8000**0.5).all()
    tight = KINDS[kind].from_params([PICK], [0.0, 0.0], [0.1, 0.1], log_std=torch.zeros(2))
    cut = tight.act(x, deterministic=False, generator=generator())[0]
    assert cut.min() == 0.0
    assert cut.max() == torch.tensor(0.1)


def test_diag_gaussian_mean_is_unbounded_before_the_clip():
    policy = DiagGaussianPolicy.from_params([PICK], LOW, HIGH, log_std=torch.tensor([-7.0, 3.0]))
    x = torch.tensor([[2.5, -4.0, 0.0]])
    assert torch.equal(policy.act(x)[0], torch.tensor([[2.5, 0.0]]))
    mean, std = policy.moments(x)
    assert torch.equal(mean, x[:, :2])
    assert torch.allclose(std, torch.tensor([math.exp(-7.0), math.exp(3.0)]))  # no clamp: SB3 has none
    log_prob = policy.distribution(x).log_prob(x[:, :2])
    assert log_prob.item() == pytest.approx(7.0 - 3.0 - math.log(2 * math.pi), abs=1e-5)


def test_squashed_gaussian_splits_its_output_into_mean_and_clamped_log_std():
    bias = [0.3, -0.2, 50.0, -50.0]
    policy = SquashedGaussianPolicy.from_params([linear(*[[0.0] * 3] * 4, bias=bias)], LOW, HIGH)
    mean, std = policy.moments(torch.zeros(1, 3))
    assert torch.equal(mean, torch.tensor([[0.3, -0.2]]))
    assert torch.allclose(std, torch.tensor([[math.exp(2.0), math.exp(-20.0)]]))
    actions = policy.act(torch.zeros(1, 3))[0]
    assert torch.allclose(actions, CENTER + HALF * torch.tanh(mean))
    draw = policy.act(torch.zeros(1, 3), deterministic=False, generator=generator())[0]
    noise = torch.randn(1, 2, generator=generator())
    assert torch.allclose(draw, CENTER + HALF * torch.tanh(mean + std * noise))


def test_the_clamp_of_the_squashed_gaussian_is_kept_on_disk(tmp_path):
    """SAC-N clamps log_std at -5, SB3 at -20, which is the default for policies saved without it."""
    bias = [0.3, -0.2, 50.0, -50.0]
    layers = [linear(*[[0.0] * 3] * 4, bias=bias)]
    save_policy(SquashedGaussianPolicy.from_params(layers, LOW, HIGH, log_std_min=-5.0), tmp_path)
    std = load_policy(tmp_path).moments(torch.zeros(1, 3))[1]
    assert torch.allclose(std, torch.tensor([[math.exp(2.0), math.exp(-5.0)]]))
    for value in (2.0, float("nan"), -float("inf")):
        with pytest.raises(PolicyError, match="log_std_min must be a finite number below 2"):
            SquashedGaussianPolicy.from_params(layers, LOW, HIGH, log_std_min=value)


def test_the_density_of_the_squashed_gaussian_integrates_to_one_over_the_box():
    """One action in (-1, 3): the tanh's and the scale's corrections are both needed."""
    policy = SquashedGaussianPolicy.from_params([linear([0.0], [0.0], bias=[0.4, -0.7])], [-1.0], [3.0])
    a = torch.linspace(-0.9999, 2.9999, 20001)[:, None]
    density = policy.distribution(torch.zeros(len(a), 1)).log_prob(a).exp()
    assert torch.trapezoid(density, a[:, 0]).item() == pytest.approx(1.0, abs=1e-3)


def test_random_actions_are_uniform_in_the_box_and_follow_the_generator():
    """Mean within 4 standard errors of the center: width / sqrt(12 n)."""
    policy = RandomPolicy(3, 2, LOW, HIGH)
    draws = policy.act(torch.zeros(4000, 3), generator=generator())[0]
    assert ((draws.mean(0) - CENTER).abs() < 4 * 2 * HALF / (12 * 4000) ** 0.5).all()
    assert (draws >= policy.action_low).all()
    assert (draws <= policy.action_high).all()
    assert torch.equal(draws, policy.act(torch.ones(4000, 3), generator=generator())[0])
    assert policy.distribution(torch.zeros(1, 3)).log_prob(CENTER[None]).item() == pytest.approx(
        math.log(0.5)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_passes_through_and_samples_repeat_with_the_generator(kind):
    policy, x = one_of(kind), torch.randn(5, 3, generator=generator(1))
    first, state = policy.act(x, "kept", deterministic=False, generator=generator())
    assert state == "kept"
    assert torch.equal(first, policy.act(x, deterministic=False, generator=generator())[0])
    assert first.shape == (5, 2)
    assert first.dtype == torch.float32


def test_observations_of_another_size_are_refused_with_the_likely_cause():
    with pytest.raises(PolicyError, match=r"shape \(4, 7\) but the policy was built for O=3; was it trained"):
        one_of("deterministic").act(torch.zeros(4, 7))


def test_a_loaded_state_dict_brings_its_box_and_normalizer_along():
    """What is derived from the box and the normalizer must follow them, also into a policy without either."""
    source = one_of("deterministic")
    plain = DeterministicPolicy(3, 2, (8, 5), activation="elu", observation_clip=4.0)
    plain.load_state_dict(source.state_dict())
    x = torch.randn(6, 3, generator=generator()) * 5
    assert torch.equal(plain(x), source(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1), "obs_dim and act_dim must be 1 or more"),
        ((1, 1, (4, 0)), "hidden layers need 1 or more units"),
        ((1, 2, (4,), [0.0], [1.0]), "an action bound has shape"),
        ((1, 1, (4,), [1.0], [1.0]), "finite with low < high"),
        ((1, 1, (4,), [-math.inf], [1.0]), "finite with low < high"),
    ],
)
def test_impossible_sizes_and_boxes_are_refused(arguments, message):
    with pytest.raises(PolicyError, match=message):
        DeterministicPolicy(*arguments)


def test_impossible_normalizers_activations_and_layers_are_refused():
    policy = one_of("deterministic")
    with pytest.raises(PolicyError, match="std must be above 0"):
        policy.set_normalizer(MEAN, torch.tensor([1.0, 0.0, 1.0]))
    with pytest.raises(PolicyError, match="mean must be 3 finite numbers"):
        policy.set_normalizer(torch.tensor([1.0, math.nan, 1.0]), STD)
    with pytest.raises(PolicyError, match="unknown activation 'gelu'"):
        DeterministicPolicy(3, 2, activation="gelu")
    with pytest.raises(PolicyError, match="observation_clip must be above 0"):
        DeterministicPolicy(3, 2, observation_clip=0.0)
    with pytest.raises(PolicyError, match="do not fit the layers"):
        DeterministicPolicy.from_params([linear([1.0]), linear([1.0, 1.0])], [-1.0], [1.0])
    with pytest.raises(PolicyError, match="log_std has shape"):
        GaussianPolicy.from_params([PICK], LOW, HIGH, log_std=torch.zeros(3))


# --- on disk ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_policy_comes_back_from_disk_bit_for_bit(kind, tmp_path):
    policy = one_of(kind)
    save_policy(policy, tmp_path / "p", {"env_id": "Hopper-v5", "step": 7})
    loaded = load_policy(tmp_path / "p")
    x = torch.randn(50, 3, generator=generator(2)) * 10
    for deterministic in (True, False):
        ours, theirs = (
            p.act(x, deterministic=deterministic, generator=generator())[0] for p in (policy, loaded)
        )
        assert torch.equal(ours, theirs)
    assert type(loaded) is type(policy)
    assert loaded.config() == policy.config()
    assert not loaded.training
    description = read_description(tmp_path / "p")
    assert description["extra"] == {"env_id": "Hopper-v5", "step": 7}
    assert description["action_space"] == {"shape": [2], "dtype": "float32", "low": LOW, "high": HIGH}
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == ["policy.json", "policy.safetensors"]


def test_only_kinds_that_a_reader_knows_are_saved(tmp_path):
    class Mine(DeterministicPolicy):
        pass

    with pytest.raises(PolicyError, match="Mine is not one of the kinds"):
        save_policy(Mine(1, 1), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_save_that_fails_leaves_a_policy_that_loads(tmp_path, monkeypatch):
    old = one_of("gaussian")
    save_policy(old, tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(policy_module, "atomic_write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        save_policy(DeterministicPolicy(1, 1), tmp_path)
    assert torch.equal(load_policy(tmp_path).log_std, old.log_std)


def _json(change):
    def apply(folder):
        path = folder / "policy.json"
        value = json.loads(path.read_text())
        change(value)
        path.write_text(json.dumps(value))

    return apply


def _text(text):
    return lambda folder: (folder / "policy.json").write_text(text)


def _weights(change):
    def apply(folder):
        path = folder / "policy.safetensors"
        state = safetensors.torch.load(path.read_bytes())
        change(state)
        path.write_bytes(safetensors.torch.save(state))

    return apply


def _truncate(folder):
    path = folder / "policy.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


DAMAGES = {
    "future format": (
        _json(lambda v: v.update(format=2)),
        "has format 2, this version reads up to 1; upgrade offrl",
    ),
    "no format": (_json(lambda v: v.pop("format")), "no valid 'format' number"),
    "format true": (_json(lambda v: v.update(format=True)), "no valid 'format' number"),
    "unknown kind": (_json(lambda v: v.update(kind="os.system")), "unknown kind of policy 'os.system'"),
    "kind list": (_json(lambda v: v.update(kind=["deterministic"])), "unknown kind"),
    "no config": (_json(lambda v: v.pop("config")), "has no 'config'"),
    "unknown argument": (
        _json(lambda v: v["config"].update(device="cuda")),
        "does not describe a deterministic",
    ),
    "text size": (_json(lambda v: v["config"].update(obs_dim="3")), "does not describe a deterministic"),
    "other size": (
        _json(lambda v: v["config"].update(hidden=[8, 6])),
        "does not fit policy.json: 'head.weight'",
    ),
    "huge size": (
        _json(lambda v: v["config"].update(hidden=[10**8, 10**8])),
        "does not fit|does not describe",
    ),
    "larger than memory": (_json(lambda v: v["config"].update(hidden=[10**15] * 2)), "does not describe"),
    "not json": (_text("{"), "is not JSON"),
    "deep json": (_text("[" * 100_000), "is not JSON"),
    "json list": (_text("[]"), "holds a JSON list"),
    "huge json": (_text(" " * (1 << 21)), "larger than"),
    "truncated weights": (_truncate, "is damaged"),
    "no tensor": (_weights(lambda s: s.pop("std")), "'std' is missing"),
    "extra tensor": (_weights(lambda s: s.update(more=torch.zeros(1))), "'more' is"),
    "float64": (_weights(lambda s: s.update(mean=s["mean"].double())), "'mean' is"),
    "nan": (_weights(lambda s: s["head.bias"].fill_(math.nan)), "not finite"),
    "empty box": (_weights(lambda s: s["action_low"].fill_(9.0)), "finite with low < high"),
    "much larger file": (_weights(lambda s: s.update(more=torch.zeros(1 << 20))), "larger than the policy"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_policy_is_refused_in_one_line(name, tmp_path):
    damage, message = DAMAGES[name]
    save_policy(one_of("deterministic"), tmp_path)
    damage(tmp_path)
    with pytest.raises(PolicyError, match=message) as caught:
        load_policy(tmp_path)
    assert str(tmp_path) in str(caught.value) or name == "empty box"


def test_nothing_is_allocated_for_sizes_that_only_the_description_claims(tmp_path, monkeypatch):
    devices = set()
    monkeypatch.setattr(
        torch.nn.Linear, "reset_parameters", lambda layer: devices.add(layer.weight.device.type)
    )
    save_policy(one_of("deterministic"), tmp_path)
    _json(lambda v: v["config"].update(hidden=[30_000, 30_000]))(tmp_path)
    devices.clear()
    with pytest.raises(PolicyError, match="does not fit"):
        load_policy(tmp_path)
    assert devices == {"meta"}


@pytest.mark.parametrize("missing", ["policy.json", "policy.safetensors"])
def test_a_missing_file_is_named_with_its_path(missing, tmp_path):
    save_policy(one_of("random"), tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(FileNotFoundError, match=str(tmp_path / missing)):
        load_policy(tmp_path)


def test_random_bytes_in_either_file_give_a_policy_error_or_a_policy(tmp_path):
    """200 single-byte changes: whatever they hit, no other exception comes out."""
    save_policy(one_of("gaussian"), tmp_path)
    rng, read = np.random.default_rng(0), 0
    for name in ("policy.json", "policy.safetensors"):
        whole = (tmp_path / name).read_bytes()
        for _ in range(100):
            changed = bytearray(whole)
            changed[rng.integers(len(whole))] = rng.integers(256)
            (tmp_path / name).write_bytes(changed)
            with contextlib.suppress(PolicyError):
                read += isinstance(load_policy(tmp_path), GaussianPolicy)
        (tmp_path / name).write_bytes(whole)
    assert 10 < read < 190  # weights may change unseen, a description or a header may not
