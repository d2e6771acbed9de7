import gymnasium
import pytest

pytest.importorskip("stable_baselines3")

TINY = "TinyPendulum-v0"  # Pendulum-v1 with episodes of 20 steps


@pytest.fixture(scope="session", autouse=True)
def _tiny():
    if TINY not in gymnasium.registry:
        entry = "gymnasium.envs.classic_control:PendulumEnv"
        gymnasium.register(TINY, entry_point=entry, max_episode_steps=20)


@pytest.fixture
def tiny():
    """The id of a fast environment with O=3, A=1 and actions in [-2, 2]; every episode is cut after 20 steps."""
    return TINY
