"""Training with the transformer and on images: streams of each seed, resume, crops, what the policy keeps."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from offrl.algos import load_algorithm
from offrl.data.dataset import OfflineDataset
from offrl.data.normalize import AffineNormalizer, ObservationNormalizer
from offrl.errors import ConfigError
from offrl.nn.policy import load_policy, save_policy
from offrl.policies.chunk import ChunkPolicy
from offrl.policies.network import encode, normalized, together
from offrl.training.build import build
from offrl.training.check import source_of, tiny_problem

METHOD = load_algorithm("diffusion_policy")[1]
SMALL = {"horizon": 4, "n_obs": 2, "n_act": 2, "batch_size": 3, "denoising_steps": 2}
TRANSFORMER = SMALL | {"denoiser": "transformer", "hidden": 4, "layers": 2, "heads": 2, "dropout": 0.2}
VISION = SMALL | {"hidden": 8, "step_embed": 8, "keypoints": 3, "crop": 0.75}
INPUTS = (("state", (2,)), ("camera", (48, 40, 3)), ("goal", (1,)))


def sighted(seeds=(0,)):
    g = torch.Generator().manual_seed(5)
    problem = tiny_problem(seeds, rows=50)
    images = torch.randint(256, (50, 48 * 40 * 3), generator=g).to(torch.uint8)
    return dataclasses.replace(problem, images=images, inputs=INPUTS)


def shown(rows, make=sighted):
    """Some observations of the data as a policy sees them."""
    problem = make()
    numbers, images = problem.observations[:rows], problem.images
    return numbers if images is None else together(problem.inputs, numbers, images[:rows])


def learner_of(problem, settings):
    return METHOD.learner(problem, METHOD.config(**settings))


def batches(problem, settings):
    config = METHOD.config(**settings)
    source = source_of(problem, 3, window=config.context, starts=METHOD.starts(problem, config))
    streams = problem.streams("data")
    while True:
        yield source.sample(streams)


def trained(problem, settings, updates=2, resume_at=None):
    learner = learner_of(problem, settings)
    for number, batch in enumerate(itertools.islice(batches(problem, settings), updates)):
        if number == resume_at:
            state, learner = learner.state_dict(), learner_of(problem, settings)
            learner.load_state_dict(state)
        learner.update(batch)
    return learner


CASES = pytest.mark.parametrize(
    ("make", "settings"), [(tiny_problem, TRANSFORMER), (sighted, VISION)], ids=["transformer", "vision"]
)


class Small(nn.Module):
    """An image encoder that costs nothing."""

    def __init__(self, channels, keypoints, norm):
        super().__init__()
        self.look, self.norm = nn.Conv2d(channels, 16, 9, 9, bias=False), norm(16)
        self.out = nn.Linear(16, 2 * keypoints)

    def forward(self, images):
        return self.out(self.norm(self.look(images)).relu().mean((2, 3)))


@pytest.fixture
def cheap(monkeypatch):
    monkeypatch.setattr("offrl.policies.network.ImageEncoder", Small)


@CASES
@pytest.mark.usefixtures("cheap")
def test_a_stack_of_seeds_is_each_seed_alone_and_a_resumed_run_the_whole_one(make, settings):
    both = trained(make((3, 4)), settings)
    alone = trained(make((4,)), settings)
    for name, p, q in zip(both.names, both.training.params, alone.training.params, strict=True):
        torch.testing.assert_close(p[1], q[0], rtol=1e-4, atol=2e-6, msg=name)
    resumed = trained(make((4,)), settings, resume_at=1)
    for p, q in zip(resumed.training.params, alone.training.params, strict=True):
        assert torch.equal(p, q)
    fresh = learner_of(make((4,)), settings)
    assert not torch.equal(fresh.training.params[-1], alone.training.params[-1])


@CASES
@pytest.mark.usefixtures("cheap")
def test_what_was_trained_acts_and_is_saved(make, settings, tmp_path):
    learner = trained(make(), settings)
    policy = learner.policy()
    weights = dict(policy.named_parameters())
    for name, average in zip(learner.names, learner.training.average, strict=True):
        assert torch.equal(weights[name], average[0]), name
    save_policy(policy, tmp_path)
    loaded = load_policy(tmp_path)
    seen = shown(3, make)
    assert torch.equal(loaded(seen), policy(seen))
    assert loaded.inputs == policy.inputs
    assert policy.settings["kind"] == settings.get("denoiser", "unet")


def test_the_transformer_is_told_what_dropout_keeps_only_in_training():
    learner = learner_of(tiny_problem((1, 2)), TRANSFORMER)
    corners, keeps = learner.draw_extras(3)
    assert corners is None
    assert [k.shape[:2] for k in keeps] == [(2, 3)] * 12
    assert learner_of(tiny_problem(), TRANSFORMER | {"dropout": 0.0}).draw_extras(3) == (None, None)
    assert learner_of(tiny_problem(), SMALL | {"hidden": 8}).draw_extras(3) == (None, None)


def test_only_the_transformers_matrices_decay():
    plain, heavy = (
        trained(tiny_problem(), TRANSFORMER | {"weight_decay": w, "lr": 1e-3}, 3) for w in (0.0, 0.5)
    )
    assert plain.training.net.betas == (0.9, 0.95)
    assert len(heavy.training.decayed) == len([n for n in heavy.names if n.endswith("weight")]) - 2 * 3 - 1
    assert len(learner_of(tiny_problem(), SMALL | {"hidden": 8}).training.decayed) > 0


def test_crops_are_anywhere_and_the_middle_when_acting():
    learner = learner_of(sighted((1, 2)), VISION)
    assert learner.vision["crop"] == [36, 30]
    corners, keeps = learner.draw_extras(200)
    assert keeps is None
    assert corners.shape == (2, 400, 1, 2)
    rows, columns = corners[..., 0], corners[..., 1]
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (0, 12, 0, 10)
    assert not torch.equal(corners[0], corners[1])
    assert learner_of(sighted(), VISION | {"crop": 1.0}).draw_extras(3) == (None, None)


def test_the_network_sees_parts_in_order_images_as_features_from_minus_one_to_one():
    learner = learner_of(sighted(), VISION)
    policy = learner.policy()
    told = []
    policy.rgb_encoder.register_forward_pre_hook(lambda _, args: told.append(args[0]))
    history = shown(4).view(2, 2, -1)
    condition = policy.encode(history).view(2, 2, 2 + 6 + 1)
    numbers = learner.observation_units(sighted().observations[:4].view(2, 2, 3))
    torch.testing.assert_close(condition[..., [0, 1, 8]], numbers)
    image = history[0, 0, 2:-1].view(48, 40, 3) / 127.5 - 1
    assert told[0].shape == (4, 3, 36, 30)
    torch.testing.assert_close(told[0][0], image[6:42, 5:35].permute(2, 0, 1))
    assert -1 <= told[0].min() < -0.9
    assert 0.9 < told[0].max() <= 1


def test_each_camera_has_its_own_units_and_its_own_corner():
    sizes = {"widths": (8,), "step_embed": 4, "horizon": 4, "n_obs": 1, "n_act": 2, "denoising_steps": 2}
    inputs = [("a", (40, 40, 1)), ("s", (1,)), ("b", (40, 40, 1))]
    policy = ChunkPolicy(3201, 1, inputs=inputs, vision={"crop": [32, 32], "keypoints": 2}, **sizes).eval()
    told = []
    policy.rgb_encoder.register_forward_pre_hook(lambda _, args: told.append(args[0][0, 0]))
    units = AffineNormalizer.build(np.zeros(2), np.array([1.0, 10.0]))
    image = torch.arange(1600.0) / 10
    flat = torch.cat((image, torch.ones(1), image))[None, None]
    numbers = AffineNormalizer.identity(1)
    seen = normalized(policy.inputs, flat, numbers, units)
    encode(policy, seen, torch.tensor([[[0, 0], [5, 8]]]))
    square = image.view(40, 40) / 255
    torch.testing.assert_close(told[0], square[:32, :32])
    torch.testing.assert_close(told[1], 10 * square[5:37, 8:40])


def test_the_average_forgets_by_its_power():
    quick, slow = (trained(tiny_problem(), SMALL | {"hidden": 8, "ema_power": p}, 3) for p in (0.1, 1.0))
    assert torch.equal(quick.training.params[0], slow.training.params[0])
    assert not torch.equal(quick.training.average[0], slow.training.average[0])


def test_images_are_encoded_once_a_plan(monkeypatch):
    policy = learner_of(sighted(), VISION | {"denoising_steps": 10}).policy()
    calls = []
    policy.rgb_encoder.register_forward_hook(lambda *_: calls.append("image"))
    policy.unet.register_forward_hook(lambda *_: calls.append("level"))
    policy.act(shown(2))
    assert calls == ["image"] + ["level"] * 10


def test_separate_cameras_have_encoders_of_their_own_and_a_shared_one_sees_all():
    sizes = {"widths": (8,), "step_embed": 4, "horizon": 4, "n_obs": 1, "n_act": 2, "denoising_steps": 2}
    inputs = [("a", (32, 32, 1)), ("s", (1,)), ("b", (32, 32, 1))]
    for separate in (False, True):
        torch.manual_seed(0)
        policy = ChunkPolicy(
            2049, 1, inputs=inputs, vision={"separate": separate, "keypoints": 2}, **sizes
        ).eval()
        image = torch.rand(1024) * 255
        told = policy.encode(torch.cat((image, torch.ones(1), image))[None, None])[0]
        assert told.shape == (9,)
        assert torch.allclose(told[:4], told[5:]) != separate


def test_an_averaged_policy_follows_its_images():
    policy = learner_of(sighted(), VISION).policy()
    a, b = shown(2)
    other = torch.cat((a[:2], b[2:-1], a[-1:]))
    conditions = policy.encode(torch.stack((a, other))[:, None].expand(-1, 2, -1))
    assert (conditions[0] - conditions[1]).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop": 0.0}, "crop must be"),
        ({"denoiser": "transformer", "heads": 3}, "multiple of heads"),
        ({"denoiser": "transformer", "dropout": 1.0}, "dropout must be"),
        ({"horizon": 6}, "multiple of 4"),
        ({"layers": 4}, "layers has no effect with denoiser unet: leave it out"),
        ({"denoiser": "transformer", "step_embed": 8}, "step_embed has no effect with denoiser transformer"),
    ],
)
def test_settings_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        METHOD.config(**(SMALL | change))
    METHOD.config(**(SMALL | {"denoiser": "transformer", "horizon": 5}))


@pytest.mark.parametrize("name", ["crop", "keypoints"])
def test_settings_of_images_are_refused_where_there_are_none(name):
    settings = SMALL | {"hidden": 8, name: VISION[name]}
    with pytest.raises(ConfigError, match=f"{name} has no effect on observations without images: leave it"):
        learner_of(tiny_problem(), settings)


@pytest.mark.usefixtures("cheap")
def test_images_may_be_all_there_is():
    """Without a state beside them."""
    problem = sighted()
    none = problem.observations[:, :0]
    only = {"observations": none, "next_observations": none, "inputs": INPUTS[1:2]}
    problem = dataclasses.replace(problem, **only, normalizer=ObservationNormalizer.identity(0))
    policy = trained(problem, VISION).policy()
    seen = problem.images[None, :2].float()
    assert policy.plan(seen, torch.Generator().manual_seed(0)).shape == (1, 2, 2)


@pytest.mark.usefixtures("cheap")
def test_images_are_bytes_until_they_are_looked_at():
    g = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (30, 48, 40, 3), generator=g).to(torch.uint8).numpy()
    numbers = {name: torch.rand(30, n, generator=g).numpy() for name, n in (("goal", 1), ("state", 2))}
    data = OfflineDataset.from_arrays(
        {"state": numbers["state"], "camera": pixels, "goal": numbers["goal"]},
        *(torch.rand(30, 2, generator=g).numpy(), [0.0] * 30, [k % 10 == 9 for k in range(30)]),
        metadata={"flatten": ["state", "camera", "goal"]},
    )
    config = METHOD.config(**VISION)
    run = {"device": "cpu", "rows": "exact", "seed": 0, "steps": 3, "compile": False, "threads": 1}
    learner, source = build(METHOD, config, data, None, run)
    assert (learner.obs_dim, source.table.shape[1], source.images.dtype) == (
        5763,
        3 + 2 + 1 + 3 + 1,
        torch.uint8,
    )
    batch = source.sample([torch.Generator().manual_seed(1)])
    rows = batch.rows[0, :, :2]
    shown = together(learner.inputs, batch.observations[0, :, :2], batch.images[0, :, :2])
    assert torch.equal(shown, torch.from_numpy(data.flat_observations())[rows])
    told = []
    learner._gradients = lambda *args: (told.append(args[0]), learner.gradients(*args))[1]
    learner.update(batch)
    units = learner.observation_units, learner.image_units
    assert torch.equal(told[0][0], normalized(learner.inputs, shown, *units))
