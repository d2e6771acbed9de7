"""LeRobot policy directories, written by the test in exactly the two layouts."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from offrl.errors import PolicyError
from offrl.policies.lerobot import is_lerobot_policy, read_lerobot_policy

FEATURES = {
    "observation.image": {"type": "VISUAL", "shape": [3, 96, 96]},
    "observation.environment_state": {"type": "ENV", "shape": [4]},
    "observation.state": {"type": "STATE", "shape": [2]},
}
MODES = {"VISUAL": "MEAN_STD", "STATE": "MIN_MAX", "ENV": "MIN_MAX", "ACTION": "MIN_MAX"}
STATISTICS = {
    "observation.image": {"mean": torch.full((3, 1, 1), 0.5), "std": torch.full((3, 1, 1), 0.2)},
    "observation.environment_state": {"min": torch.zeros(4), "max": torch.tensor([1.0, 2.0, 4.0, 0.0])},
    "observation.state": {"min": torch.tensor([10.0, -3.0]), "max": torch.tensor([500.0, -3.0])},
    "action": {"min": torch.tensor([0.0, 20.0]), "max": torch.tensor([512.0, 400.0])},
}
CONFIG = {
    "type": "diffusion", "n_obs_steps": 2, "horizon": 16, "n_action_steps": 8, "input_features": FEATURES,
    "output_features": {"action": {"type": "ACTION", "shape": [2]}}, "normalization_mapping": MODES, "down_dims": [64, 128],
}  # fmt: skip
NETWORK = {"diffusion.unet._orig_mod.final_conv.1.weight": torch.zeros(2, 4, 1)}


def write_config(folder, **changes):
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    return folder


def write_old(folder, drop=(), **changes):
    """Statistics among the weights, feature names with underscores."""
    folder.mkdir()
    tensors = dict(NETWORK)
    for name, statistics in STATISTICS.items():
        module = "unnormalize_outputs" if name == "action" else "normalize_inputs"
        for key, value in statistics.items():
            tensors[f"{module}.buffer_{name.replace('.', '_')}.{key}"] = value.clone()
            if name == "action":
                tensors[f"normalize_targets.buffer_action.{key}"] = value.clone()
    save_file({k: v for k, v in tensors.items() if k not in drop}, folder / "model.safetensors")
    return write_config(folder, **changes)


def write_new(
    folder, drop=(), state="policy_preprocessor_step_3_normalizer_processor.safetensors", **changes
):
    """Statistics in the files that the processors name."""
    folder.mkdir()
    save_file(NETWORK, folder / "model.safetensors")
    flat = {f"{n}.{k}": v.clone() for n, statistics in STATISTICS.items() for k, v in statistics.items()}
    flat = {k: v for k, v in flat.items() if k not in drop}
    step = {"registry_name": "normalizer_processor", "config": {"eps": 1e-8, "norm_map": MODES}}
    pipelines = {"pre": [{"registry_name": "to_batch_processor", "config": {}}, step | {"state_file": state}]}
    after = "policy_postprocessor_step_0_unnormalizer_processor.safetensors"
    pipelines["post"] = [step | {"registry_name": "unnormalizer_processor", "state_file": after}]
    for name, file in (("pre", state), ("post", after)):
        (folder / f"policy_{name}processor.json").write_text(
            json.dumps({"name": f"policy_{name}processor", "steps": pipelines[name]})
        )
        if "/" not in file:
            save_file(flat, folder / file)
    return write_config(folder, **changes)


def test_both_layouts_give_the_same_normalizers(tmp_path):
    """Sheet 8.8: the same statistics from buffers and from processor files, none dropped."""
    old, new = (
        read_lerobot_policy(write_old(tmp_path / "old")),
        read_lerobot_policy(write_new(tmp_path / "new")),
    )
    assert (old.layout, new.layout) == ("old", "new")
    assert list(old.observations) == list(new.observations) == list(FEATURES)
    assert old.normalizers.keys() == new.normalizers.keys() == STATISTICS.keys()
    for name, normalizer in old.normalizers.items():
        for part in ("shift", "scale", "offset", "inverse_scale"):
            assert torch.equal(getattr(normalizer, part), getattr(new.normalizers[name], part))


@pytest.mark.parametrize("write", [write_old, write_new])
def test_the_normalizers_are_lerobots(tmp_path, write):
    """A feature name with an underscore keeps its statistics; a constant dimension maps to -1."""
    policy = read_lerobot_policy(write(tmp_path / "p"))
    environment = policy.normalizers["observation.environment_state"]
    assert environment(torch.tensor([0.5, 2.0, 0.0, 0.0])).tolist() == [0.0, 1.0, -1.0, -1.0]
    assert policy.normalizers["observation.state"](torch.tensor([255.0, -3.0])).tolist() == pytest.approx(
        [0.0, -1.0], abs=1e-6
    )
    assert policy.normalizers["action"].inverse(torch.tensor([0.0, 1.0])).tolist() == [256.0, 400.0]
    pixel = policy.normalizers["observation.image"](torch.tensor([0.7, 0.5, 0.3]))
    np.testing.assert_allclose(pixel, [1.0, 0.0, -1.0], atol=1e-6)


def test_the_description_is_neutral(tmp_path):
    policy = read_lerobot_policy(write_old(tmp_path / "p"))
    assert (policy.kind, policy.observation_steps, policy.horizon, policy.action_steps) == (
        "diffusion",
        2,
        16,
        8,
    )
    assert policy.action.shape == (2,)
    assert policy.settings["down_dims"] == [64, 128]
    assert policy.weights == (
        ("diffusion.unet.final_conv.1.weight", "diffusion.unet._orig_mod.final_conv.1.weight"),
    )
    assert is_lerobot_policy(tmp_path / "p")
    assert not is_lerobot_policy(tmp_path)


MISSING_OLD = "normalize_inputs.buffer_observation_environment_state.max"


@pytest.mark.parametrize(
    ("write", "drop", "statistic"),
    [
        (write_old, [MISSING_OLD], "'max'"),
        (write_new, ["observation.environment_state.max"], "'max'"),
        (write_new, ["observation.environment_state.min", "observation.environment_state.max"], "'min'"),
    ],
)
def test_a_missing_statistic_is_an_error(tmp_path, write, drop, statistic):
    """LeRobot would go on with unnormalized numbers."""
    folder = write(tmp_path / "p", drop)
    with pytest.raises(PolicyError, match=f"MIN_MAX of observation.environment_state needs {statistic}"):
        read_lerobot_policy(folder)


def test_weights_without_any_statistics_are_an_error(tmp_path):
    (tmp_path / "p").mkdir()
    save_file(NETWORK, tmp_path / "p/model.safetensors")
    with pytest.raises(PolicyError, match="needs 'mean', which was not stored"):
        read_lerobot_policy(write_config(tmp_path / "p"))


def test_identity_needs_no_statistics(tmp_path):
    folder = write_old(tmp_path / "p", [MISSING_OLD], normalization_mapping=MODES | {"ENV": "IDENTITY"})
    x = torch.tensor([3.0, 4.0, 5.0, 6.0])
    assert torch.equal(read_lerobot_policy(folder).normalizers["observation.environment_state"](x), x)


def test_the_saved_normalizers_mode_wins_over_the_config(tmp_path):
    """What acted when the policy was saved is the processor, whose ``norm_map`` is its own."""
    policy = read_lerobot_policy(write_new(tmp_path / "p", normalization_mapping=MODES | {"ENV": "IDENTITY"}))
    assert policy.observations["observation.environment_state"].mode == "MIN_MAX"


def test_the_oldest_config_is_read(tmp_path):
    folder = write_old(tmp_path / "p")
    shapes = {name: feature["shape"] for name, feature in FEATURES.items()}
    modes = {name: MODES[feature["type"]].lower() for name, feature in FEATURES.items()}
    oldest = {"n_obs_steps": 2, "horizon": 16, "n_action_steps": 8, "input_shapes": shapes}
    oldest |= {"output_shapes": {"action": [2]}, "input_normalization_modes": modes}
    oldest |= {"output_normalization_modes": {"action": "min_max"}}
    (folder / "config.json").write_text(json.dumps(oldest))
    policy = read_lerobot_policy(folder)
    assert policy.normalizers["action"].inverse(torch.tensor([0.0, 1.0])).tolist() == [256.0, 400.0]
    assert policy.observations["observation.environment_state"].kind == "ENV"


def test_statistics_that_contradict_each_other_are_an_error(tmp_path):
    folder = write_old(tmp_path / "p")
    tensors = {"normalize_targets.buffer_action.min": torch.tensor([1.0, 20.0])}
    tensors["unnormalize_outputs.buffer_action.min"] = torch.tensor([0.0, 20.0])
    save_file(NETWORK | tensors, folder / "model.safetensors")
    with pytest.raises(PolicyError, match="'min' of action is stored twice"):
        read_lerobot_policy(folder)
    new = write_new(tmp_path / "q")
    save_file(
        NETWORK | {"normalize_targets.buffer_action.min": torch.tensor([1.0, 20.0])},
        new / "model.safetensors",
    )
    with pytest.raises(PolicyError, match="'min' of action differs between"):
        read_lerobot_policy(new)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: (d / "config.json").write_text("{"), "is not a JSON object"),
        (lambda d: (d / "config.json").write_text("[" * 100_000), "is not a JSON object"),
        (lambda d: (d / "config.json").write_text("{}"), "is it a LeRobot policy"),
        (lambda d: write_config(d, horizon="16"), "'horizon' must be a number of steps"),
        (lambda d: write_config(d, n_obs_steps=True), "'n_obs_steps' must be a number of steps"),
        (lambda d: write_config(d, output_features={}), "no 'action'"),
        (
            lambda d: write_config(d, output_features={"action": {"type": "ACTION", "shape": [-2]}}),
            "list of sizes",
        ),
        (
            lambda d: write_config(d, output_features={"action": {"type": "ACTION", "shape": [3]}}),
            "have 2 numbers",
        ),
        (lambda d: write_config(d, normalization_mapping=MODES | {"ACTION": "MAX"}), "'MAX'; known are"),
        (
            lambda d: write_config(d, input_features={"observation.other": FEATURES["observation.state"]}),
            "no feature",
        ),
        (lambda d: (d / "model.safetensors").write_bytes(b"\xff" * 64), "not a readable safetensors"),
    ],
)
def test_spoilt_directories_give_one_clear_line(tmp_path, spoil, message):
    folder = write_old(tmp_path / "p")
    spoil(folder)
    with pytest.raises(PolicyError, match=message) as caught:
        read_lerobot_policy(folder)
    assert "\n" not in str(caught.value)


def test_a_state_file_outside_the_folder_is_refused(tmp_path):
    for state in ("../secret.safetensors", "/etc/x.safetensors", ".."):
        folder = write_new(tmp_path / str(len(state)), state="../x.safetensors")
        text = (folder / "policy_preprocessor.json").read_text().replace("../x.safetensors", state)
        (folder / "policy_preprocessor.json").write_text(text)
        with pytest.raises(PolicyError, match="plain file name"):
            read_lerobot_policy(folder)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        read_lerobot_policy(tmp_path)
    folder = write_new(tmp_path / "p")
    (folder / "policy_preprocessor_step_3_normalizer_processor.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="keeps its statistics in"):
        read_lerobot_policy(folder)
