"""What of a model acts."""

import pytest
from stable_baselines3 import PPO

from offrl.errors import ConfigError, PolicyError
from offrl.online.acting import acting_policy


def test_what_no_run_directory_can_hold_is_refused():
    with pytest.raises(ConfigError, match="needs flat observations and a box of actions"):
        acting_policy(PPO("MlpPolicy", "CartPole-v1", device="cpu"))
    squashed = PPO("MlpPolicy", "TinyPendulum-v0", use_sde=True, device="cpu")
    with pytest.raises(PolicyError):
        acting_policy(squashed)
