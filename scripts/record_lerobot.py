"""Records tests/policies/lerobot_0_4_4: a tiny diffusion policy that lerobot itself saved, and its actions.

    python scripts/record_lerobot.py OUT [--images]

Needs lerobot 0.4.4 in an environment of its own; nothing else in this project does. The weights are random: parity is
about the same numbers, not about skill. With --images an image policy (45 MB, not kept) is recorded instead.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from lerobot.configs.types import FeatureType, NormalizationMode, PolicyFeature
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
from lerobot.policies.factory import make_pre_post_processors

STATE, ENV, IMAGE = "observation.state", "observation.environment_state", "observation.image"


def settings(images: bool) -> DiffusionConfig:
    """Two states, four numbers or an image of the environment, three actions."""
    second = {IMAGE: PolicyFeature(FeatureType.VISUAL, (3, 40, 40))}
    if not images:
        second = {ENV: PolicyFeature(FeatureType.ENV, (4,))}
    modes = {"STATE": NormalizationMode.MEAN_STD, "ENV": NormalizationMode.MIN_MAX}
    modes |= {"ACTION": NormalizationMode.MIN_MAX, "VISUAL": NormalizationMode.MEAN_STD}
    return DiffusionConfig(
        input_features={**second, STATE: PolicyFeature(FeatureType.STATE, (2,))},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (3,))},
        normalization_mapping=modes,
        horizon=8,
        n_action_steps=4,
        down_dims=(8, 16, 32),
        kernel_size=3,
        n_groups=4,
        diffusion_step_embed_dim=8,
        crop_shape=(36, 32) if images else None,
        spatial_softmax_num_keypoints=4,
        num_train_timesteps=20,
        noise_scheduler_type="DDPM",
        device="cpu",
    )


def statistics(rng: np.random.Generator, images: bool) -> dict[str, dict[str, torch.Tensor]]:
    """Random, with every kind that a mode could ask for."""
    shapes = {STATE: (2,), "action": (3,)} | ({IMAGE: (3, 1, 1)} if images else {ENV: (4,)})
    out = {}
    for name, shape in shapes.items():
        low = rng.uniform(0.2, 0.4, shape) if name == IMAGE else rng.uniform(-3, -1, shape)
        high = rng.uniform(0.6, 0.8, shape) if name == IMAGE else rng.uniform(1, 3, shape)
        made = {"min": low, "max": high, "mean": (low + high) / 2, "std": (high - low) / 4}
        out[name] = {key: torch.tensor(value, dtype=torch.float32) for key, value in made.items()}
    return out


def main() -> None:
    """Save the policy with lerobot's own code, then draw its actions for noise that is saved too."""
    out, images, rng = Path(sys.argv[1]), "--images" in sys.argv, np.random.default_rng(0)
    torch.manual_seed(0)
    config, stats = settings(images), statistics(rng, images)
    policy = DiffusionPolicy(config).eval()
    pre, post = make_pre_post_processors(config, dataset_stats=stats)
    policy.save_pretrained(out)
    pre.save_pretrained(out)
    post.save_pretrained(out)
    shapes = {STATE: (2,)} | ({IMAGE: (3, 40, 40)} if images else {ENV: (4,)})
    seen = [
        {n: torch.from_numpy(rng.uniform(0, 1, s).astype(np.float32)) for n, s in shapes.items()}
        for _ in range(2)
    ]
    if images:
        seen = [o | {IMAGE: (o[IMAGE] * 255).round() / 255} for o in seen]
    noise = torch.from_numpy(rng.normal(size=(1, 8, 3)).astype(np.float32))
    policy.reset()
    for observation in seen:  # the second call finds a history of two, and actions left: they are thrown away
        batch = pre(dict(observation))
        policy._queues["action"].clear()
        torch.manual_seed(7)
        first = policy.select_action(batch, noise=noise)
    actions = [first, *policy._queues["action"]]
    arrays = {f"{name}/{i}": o[name].numpy() for i, o in enumerate(seen) for name in shapes}
    actions = torch.cat([post(a) for a in actions]).numpy()
    np.savez(out / "recorded.npz", noise=noise.numpy(), actions=actions, **arrays)


if __name__ == "__main__":
    main()
