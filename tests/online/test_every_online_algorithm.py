"""What stable-baselines3 asks of its own algorithms, asked of every one of ours."""

import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecNormalize

from offrl.algos import ONLINE, load_online
from offrl.algos.harpg import HARPG
from offrl.algos.mdpo_off import MDPOOff
from offrl.algos.mdpo_on import MDPOOn
from offrl.algos.n_pg_igt import NPGIGT
from offrl.algos.pmoe_ppo import PMOEPPO
from offrl.algos.pmoe_sac import PMOESAC
from offrl.algos.policy_gradient import PolicyGradient
from offrl.algos.ppo import PPO
from offrl.algos.sac import SAC
from offrl.errors import ConfigError
from offrl.online.acting import acting_policy
from offrl.online.options import OnlineOptions
from offrl.online.runner import start

STEPS = 130


@dataclass(frozen=True)
class Case:
    """A class, arguments that make it fast, and what it claims beyond the usual."""

    algorithm: type[BaseAlgorithm]
    arguments: dict[str, Any] = field(default_factory=dict)
    discrete: bool = True  # also numbers of actions
    exact: bool = True  # goes on bit for bit after load


EPISODIC = {"trajectories": 2, "hidden": 8, "step_size": 0.02}
ON_POLICY = {"rollout": 32, "batch_size": 16, "epochs": 2, "hidden": 8}
OFF_POLICY = {"learning_starts": 20, "batch_size": 16, "hidden": 8, "buffer_size": 500}
CASES = {
    "n_pg_igt": Case(NPGIGT, EPISODIC),
    "harpg": Case(HARPG, EPISODIC | {"step_size": 1e-4}),
    "n_harpg": Case(HARPG, EPISODIC | {"normalize": True}),
    "pg": Case(PolicyGradient, EPISODIC | {"step_size": 1e-4}),
    "n_mpg": Case(PolicyGradient, EPISODIC | {"update": "momentum"}),
    "mdpo_on": Case(MDPOOn, ON_POLICY, exact=False),
    "ppo": Case(PPO, ON_POLICY, exact=False),
    "reinforce": Case(PPO, ON_POLICY | {"estimator": "reinforce"}, exact=False),
    "mdpo_off": Case(MDPOOff, OFF_POLICY | {"refresh_every": 30}, discrete=False, exact=False),
    "mdpo_tsallis": Case(MDPOOff, OFF_POLICY | {"tsallis_q": 1.5}, discrete=False, exact=False),
    "sac": Case(SAC, OFF_POLICY, discrete=False, exact=False),
    "storm_pg": Case(PolicyGradient, EPISODIC | {"step_size": 1e-4, "update": "storm"}),
    "pmoe_sac": Case(PMOESAC, OFF_POLICY, discrete=False, exact=False),
    "pmoe_sac_score": Case(PMOESAC, OFF_POLICY | {"gradient": "score"}, discrete=False, exact=False),
    "pmoe_ppo": Case(PMOEPPO, ON_POLICY, discrete=False, exact=False),
}
SMALL_SETTINGS = {"trajectories": 2} | ON_POLICY | OFF_POLICY
EVERY = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
OBSERVATIONS = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)


def make(case, env="TinyPendulum-v0", seed=0, **more):
    return case.algorithm("MlpPolicy", env, seed=seed, device="cpu", **case.arguments | more)


def parameters(model):
    return torch.cat([p.detach().flatten() for p in model.policy.parameters()])


def actions(model, observations=OBSERVATIONS):
    return model.predict(observations, deterministic=True)[0]


@EVERY
def test_learning_counts_steps_and_moves_parameters(case):
    model = make(case)
    before = parameters(model)
    assert model.learn(STEPS) is model
    assert model.num_timesteps >= STEPS
    assert model._n_updates > 0
    assert not torch.equal(parameters(model), before)


@EVERY
def test_a_seed_is_a_run(case):
    one, same, other = (parameters(make(case, seed=s).learn(STEPS)) for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@EVERY
def test_save_and_load_keep_everything(case, tmp_path):
    model = make(case).learn(STEPS)
    model.save(tmp_path / "model.zip")
    loaded = case.algorithm.load(tmp_path / "model.zip", env=gymnasium.make("TinyPendulum-v0"))
    assert np.array_equal(actions(model), actions(loaded))
    assert (loaded.num_timesteps, loaded._n_updates) == (model.num_timesteps, model._n_updates)
    torch.testing.assert_close(loaded.get_parameters(), model.get_parameters(), rtol=0, atol=0)
    for name in model._get_torch_save_params()[1]:
        assert torch.equal(getattr(model, name), getattr(loaded, name))
    without_environment = case.algorithm.load(tmp_path / "model.zip")
    assert np.array_equal(actions(model), actions(without_environment))


@pytest.mark.parametrize("case", [pytest.param(c, id=n) for n, c in CASES.items() if c.exact])
def test_learning_goes_on_after_load_as_if_nothing_had_happened(case, tmp_path):
    whole = make(case).learn(2 * STEPS)
    half = make(case).learn(STEPS)
    half.save(tmp_path / "model.zip")
    again = case.algorithm.load(tmp_path / "model.zip", env=gymnasium.make("TinyPendulum-v0"))
    again.learn(2 * STEPS - half.num_timesteps, reset_num_timesteps=False)
    assert again.num_timesteps == whole.num_timesteps
    assert torch.equal(parameters(again), parameters(whole))


def test_models_load_in_a_fresh_process(tmp_path):
    """One process for all: it knows the files alone."""
    lines = ["import sys, numpy as np", "x = np.load(sys.argv[1] + '/x.npy')"]
    np.save(tmp_path / "x.npy", OBSERVATIONS)
    for name, case in CASES.items():
        model = make(case).learn(40)
        model.save(tmp_path / f"{name}.zip")
        np.save(tmp_path / f"{name}.npy", actions(model))
        kind = case.algorithm
        lines += [
            f"from {kind.__module__} import {kind.__name__} as A",
            f"m = A.load(sys.argv[1] + '/{name}.zip', device='cpu')",
            f"y = np.load(sys.argv[1] + '/{name}.npy')",
            f"assert np.array_equal(m.predict(x, deterministic=True)[0], y), '{name}'",
        ]
    subprocess.run([sys.executable, "-c", "\n".join(lines), str(tmp_path)], check=True)


@EVERY
def test_the_policy_alone_can_be_saved(case, tmp_path):
    model = make(case).learn(40)
    model.policy.save(tmp_path / "policy.pth")
    loaded = type(model.policy).load(tmp_path / "policy.pth", device="cpu")
    assert np.array_equal(loaded.predict(OBSERVATIONS, deterministic=True)[0], actions(model))


@EVERY
def test_set_env_takes_what_fits(case):
    model = make(case).learn(40)
    model.set_env(gymnasium.make("TinyPendulum-v0"))
    model.learn(40, reset_num_timesteps=False)
    with pytest.raises(ValueError, match="[Oo]bservation spaces do not match"):
        model.set_env(gymnasium.make("MountainCarContinuous-v0"))
    with pytest.raises(AssertionError, match="number of environments"):
        model.set_env(make_vec_env("TinyPendulum-v0", n_envs=2))


@EVERY
def test_predict_keeps_shapes_and_bounds(case):
    model = make(case)
    single, _ = model.predict(OBSERVATIONS[0], deterministic=True)
    batch, _ = model.predict(OBSERVATIONS, deterministic=False)
    assert single.shape == (1,)
    assert batch.shape == (7, 1)
    assert np.abs(model.predict(np.repeat(OBSERVATIONS, 300, axis=0))[0]).max() <= 2.0
    assert np.array_equal(actions(model), actions(model))


@EVERY
def test_several_environments(case):
    env = make_vec_env("TinyPendulum-v0", n_envs=3)
    model = make(case, env=env).learn(STEPS)
    assert model.num_timesteps % 3 == 0
    assert actions(model).shape == (7, 1)


@EVERY
def test_under_vecnormalize_the_acting_policy_has_the_statistics_inside(case):
    """Raw observations into the policy of the run directory = normalized ones into predict."""
    env = VecNormalize(make_vec_env("TinyPendulum-v0", n_envs=2), clip_obs=1.0)
    model = make(case, env=env).learn(STEPS)
    assert env.obs_rms.count > STEPS / 2
    ours, _ = acting_policy(model).act(torch.from_numpy(5 * OBSERVATIONS))
    np.testing.assert_allclose(
        ours.detach().numpy(), actions(model, env.normalize_obs(5 * OBSERVATIONS)), atol=1e-5
    )


@EVERY
def test_evaluate_policy_agrees_with_a_loop(case):
    model = make(case).learn(40)
    env = Monitor(gymnasium.make("TinyPendulum-v0"))
    env.reset(seed=5)
    returns, lengths = evaluate_policy(model, env, n_eval_episodes=1, return_episode_rewards=True)
    env.reset(seed=5)
    observation, _ = env.reset()
    total, done = 0.0, False
    while not done:
        observation, reward, terminated, truncated, _ = env.step(
            model.predict(observation, deterministic=True)[0]
        )
        total, done = total + reward, terminated or truncated
    assert lengths == [20]
    assert returns[0] == pytest.approx(total, abs=1e-4)


@EVERY
def test_callbacks_evaluate_save_and_stop(case, tmp_path):
    evaluation = EvalCallback(
        Monitor(gymnasium.make("TinyPendulum-v0")),
        n_eval_episodes=1,
        eval_freq=50,
        log_path=str(tmp_path),
        verbose=0,
    )
    checkpoint = CheckpointCallback(60, str(tmp_path), name_prefix="model")
    model = make(case).learn(STEPS, callback=[evaluation, checkpoint])
    assert np.load(tmp_path / "evaluations.npz")["timesteps"].tolist()[:2] == [50, 100]
    assert (tmp_path / "model_60_steps.zip").exists()

    class Stop(BaseCallback):
        def _on_step(self):
            return self.n_calls < 30

    model = make(case).learn(STEPS, callback=Stop())
    assert model.num_timesteps == 30


@pytest.mark.parametrize("name", ["ppo", "pmoe_ppo", "mdpo_on", "sac", "pmoe_sac", "mdpo_off"])
def test_old_weights_learn_with_new_settings(name, tmp_path):
    """The way that the page names: a new model, then 'set_parameters'. Adam's state holds the old step size."""
    case = CASES[name]
    make(case, lr=1e-3).learn(64).save(tmp_path / "old.zip")

    def online(model):  # targets and pi_k follow without Adam
        named = model.policy.named_parameters()
        return torch.cat([p.detach().flatten() for k, p in named if "target" not in k and "old" not in k])

    learned = []
    for lr in (1e-3, 1e-12):
        model = make(case, lr=lr, seed=1)
        model.set_parameters(tmp_path / "old.zip")
        before = online(model)
        learned.append((online(model.learn(64)) - before).abs().max())
    assert learned[0] > 1e-4
    assert learned[1] < 1e-6


@EVERY
def test_curves_in_tensorboard_are_named_after_the_class(case, tmp_path):
    model = make(case, tensorboard_log=str(tmp_path)).learn(25)
    model.learn(25, tb_log_name="again")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [f"{case.algorithm.__name__}_1", "again_1"]
    )


@EVERY
def test_numbers_of_actions(case):
    if not case.discrete:
        with pytest.raises(AssertionError, match="action space"):
            make(case, env="CartPole-v1")
        return
    model = make(case, env="CartPole-v1").learn(60)
    assert set(model.predict(np.zeros((50, 4), np.float32))[0]) <= {0, 1}


@pytest.mark.parametrize("name", ["n_pg_igt", "mdpo_on", "ppo"])
def test_numbers_of_actions_begin_at_zero(name):
    """stable-baselines3 plays 0, 1, 2 whatever the space says."""

    class Shifted(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-1, 1, (3,))
        action_space = gymnasium.spaces.Discrete(3, start=-1)

    with pytest.raises(ConfigError, match=r"actions must be numbered from 0, not Discrete\(3, start=-1\)"):
        make(CASES[name], env=Shifted())


@EVERY
def test_other_actions_are_refused(case):
    class Bits(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-1, 1, (3,))
        action_space = gymnasium.spaces.MultiBinary(2)

    with pytest.raises(AssertionError, match="action space"):
        make(case, env=Bits())


@pytest.mark.parametrize("name", ONLINE)
def test_a_run_directory_of_every_method(name, tmp_path, tiny):
    """'offrl train NAME --env ID' with default settings in small: it writes what it declares, and acts."""
    method = load_online(name)
    small = {k: v for k, v in SMALL_SETTINGS.items() if k in method.config.__dataclass_fields__}
    options = OnlineOptions(env=tiny, steps=100, out=tmp_path, log_every=1, eval_every=50, eval_episodes=2)
    result = start(name, method.config(**small), options)
    header, *rows = (result.directory / "metrics.csv").read_text().splitlines()
    assert set(method.metrics) <= set(header.split(","))
    assert rows
    assert all(cell for cell in rows[-1].split(","))
    assert result.policy.act(torch.zeros(1, 3))[0].shape == (1, 1)


@pytest.mark.parametrize("name", ONLINE)
def test_presets_name_real_settings_and_options(name):
    method = load_online(name)
    known = {*method.config.__dataclass_fields__, *OnlineOptions.__dataclass_fields__}
    for key, values in method.presets.items():
        assert set(values) <= known, key


class Square(gymnasium.Env):
    """Actions with two axes, ten steps an episode."""

    observation_space = gymnasium.spaces.Box(-1, 1, (3,))
    action_space = gymnasium.spaces.Box(-1, 1, (2, 2))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.np_random.uniform(-1, 1, 3).astype(np.float32), {}

    def step(self, action):
        assert action.shape == (2, 2)
        self.steps += 1
        seen = self.np_random.uniform(-1, 1, 3).astype(np.float32)
        return seen, float(action.sum()), False, self.steps == 10, {}


@EVERY
def test_actions_may_have_two_axes(case):
    model = make(case, Square()).learn(40)
    assert model.predict(OBSERVATIONS[0])[0].shape == (2, 2)
    assert torch.isfinite(parameters(model)).all()


@EVERY
@pytest.mark.parametrize(
    "given", [{"learning_rate": 1e-9}, {"custom_objects": {"gamma": 0.5}}, {"hidden": 4}]
)
def test_settings_of_a_saved_model_are_not_ignored_but_refused(case, given, tmp_path):
    model, path = make(case), tmp_path / "model.zip"
    model.save(path)
    name = next(iter(given.get("custom_objects", given)))
    with pytest.raises(ConfigError, match=f"load cannot change {name}: make a new {case.algorithm.__name__}"):
        case.algorithm.load(path, **given)
    with pytest.raises(ConfigError, match="load cannot change gamma"):
        case.algorithm.load(path, None, "cpu", {"gamma": 0.5})
    other = make(case, seed=1)
    other.set_parameters(path)
    assert torch.equal(parameters(other), parameters(model))
    loaded = case.algorithm.load(path, env=gymnasium.make("TinyPendulum-v0"), device="cpu", custom_objects={})
    assert loaded.settings == model.settings


@EVERY
def test_settings_by_other_names_or_of_other_kinds(case):
    with pytest.raises(
        ConfigError, match=f"{case.algorithm.__name__} has no setting 'gamma': here it is discount"
    ):
        make(case, gamma=0.9)
    with pytest.raises(ConfigError, match="has no setting 'hiden'; did you mean 'hidden'"):
        make(case, hiden=4)
    assert make(case, hidden=8.0).settings.hidden == 8
    if "log_std" in case.algorithm.config_class.__dataclass_fields__:
        assert make(case, log_std=-2).learn(40).settings.log_std == -2.0


@pytest.mark.parametrize("name", ["mdpo_on", "ppo", "pmoe_ppo"])
def test_parameters_that_are_not_finite_are_said_in_a_line(name):
    with pytest.raises(ConfigError, match="the parameters are not finite after update .*: lower lr"):
        make(CASES[name], lr=1e30).learn(200)


class Doubled(BaseFeaturesExtractor):
    """Features of their own, without parameters."""

    def __init__(self, space):
        super().__init__(space, 3)

    def forward(self, x):
        return 2.0 * x


class Learned(BaseFeaturesExtractor):
    """Features that are trained."""

    def __init__(self, space):
        super().__init__(space, 3)
        self.layer = torch.nn.Linear(3, 3)

    def forward(self, x):
        return self.layer(x).tanh()


OFF = ("mdpo_off", "sac", "pmoe_sac")
ON = ("mdpo_on", "ppo", "pmoe_ppo")
PG = ("n_pg_igt", "harpg", "pg")


@pytest.mark.parametrize("name", [*OFF, *PG])
@pytest.mark.parametrize(
    "given", ["optimizer_class", "features_extractor_class", "squash_output", "n_critics"]
)
def test_arguments_of_the_policy_that_nothing_reads_are_refused(name, given):
    if given == "features_extractor_class" and name in PG:
        with pytest.raises(ConfigError, match="the parameters of Learned would not be trained"):
            make(CASES[name], policy_kwargs={given: Learned})
        return
    with pytest.raises(ConfigError, match=f"policy_kwargs: nothing here reads '{given}'; there is"):
        make(CASES[name], policy_kwargs={given: Learned})


@pytest.mark.parametrize("name", [*ON, *PG])
def test_a_features_extractor_is_used_everywhere_and_in_no_run_directory(name, tmp_path):
    """The same networks on 2 x play as those without it on x."""
    model = make(CASES[name], policy_kwargs={"features_extractor_class": Doubled}).learn(40)
    plain = make(CASES[name])
    plain.policy.load_state_dict(model.policy.state_dict())
    np.testing.assert_allclose(actions(model), actions(plain, 2 * OBSERVATIONS), atol=1e-6)
    model.policy.save(tmp_path / "policy.pth")
    loaded = type(model.policy).load(tmp_path / "policy.pth", device="cpu")
    assert np.array_equal(loaded.predict(OBSERVATIONS, deterministic=True)[0], actions(model))
    with pytest.raises(ConfigError, match="cannot hold the features extractor Doubled"):
        acting_policy(model)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("name", ON)
def test_a_features_extractor_is_trained(name, shared):
    if name == "pmoe_ppo" and not shared:
        return
    given = {"features_extractor_class": Learned, "share_features_extractor": shared}
    model = make(CASES[name], policy_kwargs=given)
    before = {
        key: value.clone() for key, value in model.policy.state_dict().items() if "extractor.layer" in key
    }
    model.learn(64)
    after = model.policy.state_dict()
    assert len(before) > 1
    assert [key for key, value in before.items() if torch.equal(after[key], value)] == []


class Odd(Square):
    """Observations that are no flat box."""

    action_space = gymnasium.spaces.Box(-1, 1, (2,))

    def __init__(self, space):
        self.observation_space = space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        self.steps += 1
        return self.observation_space.sample(), float(action.sum()), False, self.steps == 10, {}


IMAGE = gymnasium.spaces.Box(0, 255, (3, 4, 4), np.uint8)


@pytest.mark.parametrize("name", [*ON, *PG])
@pytest.mark.parametrize(
    "space",
    [gymnasium.spaces.Discrete(4), gymnasium.spaces.Box(-1, 1, (2, 3)), IMAGE],
    ids=["n", "2d", "image"],
)
def test_observations_need_not_be_flat(name, space):
    model = make(CASES[name], Odd(space)).learn(40)
    assert model.predict(space.sample())[0].shape == (2,)
    assert torch.isfinite(parameters(model)).all()


@pytest.mark.parametrize("name", OFF)
def test_soft_methods_take_images_as_they_are_or_not_at_all(name):
    """They learn from the buffer's numbers, so that ``predict`` must not scale them."""
    with pytest.raises(ConfigError, match="scale them in a wrapper"):
        make(CASES[name], Odd(IMAGE))
    model = make(CASES[name], Odd(IMAGE), policy_kwargs={"normalize_images": False}).learn(30)
    seen = np.stack([IMAGE.sample() for _ in range(5)])
    unit = model.policy.actor.act(torch.from_numpy(seen).float().flatten(1), deterministic=True).numpy()
    np.testing.assert_allclose(actions(model, seen), unit, atol=1e-6)


@EVERY
def test_what_no_method_here_has_is_said_in_a_line(case):
    """Dicts of observations, whatever the policy; policies by other names; no environment."""
    space = gymnasium.spaces.Dict({"a": gymnasium.spaces.Box(-1, 1, (2,))})
    kind = case.algorithm.policy_aliases["MlpPolicy"]
    for policy in ("MlpPolicy", kind):
        with pytest.raises(ConfigError, match=r"one array, not Dict.*FlattenObservation"):
            case.algorithm(policy, Odd(space), device="cpu", **case.arguments)
    for policy in ("MultiInputPolicy", "CnnPolicy"):
        with pytest.raises(ConfigError, match=f"has no '{policy}'; there is MlpPolicy"):
            case.algorithm(policy, Odd(space), device="cpu", **case.arguments)
    with pytest.raises(ConfigError, match=f"{case.algorithm.__name__} needs an environment"):
        case.algorithm(device="cpu", **case.arguments)
