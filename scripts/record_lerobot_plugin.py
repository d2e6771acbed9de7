"""Records tests/export/lerobot_plugin: what LeRobot's own evaluation sees and does with an exported policy.

    python scripts/record_lerobot_plugin.py EXPORTED OUT.npz

EXPORTED is what ``offrl export --format lerobot`` wrote. Needs lerobot 0.4.4 in an environment of its own, with the
exported plug-in and offrl; nothing else in this project does.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.envs.configs import PushtEnv
from lerobot.envs.factory import make_env, make_env_pre_post_processors
from lerobot.policies.factory import make_policy, make_pre_post_processors
from lerobot.scripts.lerobot_eval import rollout
from lerobot.utils.import_utils import register_third_party_plugins

STEPS, SEEDS = 12, [3, 4]


def main() -> None:
    """One rollout of two environments, as lerobot-eval makes it."""
    folder, out = Path(sys.argv[1]) / "pretrained_model", Path(sys.argv[2])
    register_third_party_plugins()
    config = PreTrainedConfig.from_pretrained(folder)
    config.pretrained_path = folder
    task = PushtEnv(obs_type="environment_state_agent_pos", episode_length=STEPS)
    env = next(iter(next(iter(make_env(task, n_envs=len(SEEDS)).values())).values()))
    policy = make_policy(cfg=config, env_cfg=task).eval()
    overrides = {"device_processor": {"device": "cpu"}, "rename_observations_processor": {"rename_map": {}}}
    pipelines = make_pre_post_processors(config, pretrained_path=folder, preprocessor_overrides=overrides)
    around = make_env_pre_post_processors(env_cfg=task, policy_cfg=config)
    torch.manual_seed(7)
    with torch.no_grad():
        found = rollout(env, policy, *around, *pipelines, seeds=SEEDS, return_observations=True)
    arrays = {
        name: value.numpy() for name, value in found["observation"].items() if isinstance(value, torch.Tensor)
    }
    np.savez(out, action=found["action"].numpy(), **arrays)
    print(f"{found['action'].shape} actions, observations { ({n: a.shape for n, a in arrays.items()}) }")


if __name__ == "__main__":
    main()
