"""Files in rl-zoo's layout: every name and form that its files have, and what is refused."""

import dataclasses

import pytest

from offrl.algos.mdpo_off import ALGORITHM as MDPO_OFF
from offrl.algos.mdpo_on import ALGORITHM as MDPO_ON
from offrl.algos.pmoe_sac import ALGORITHM as PMOE_SAC
from offrl.algos.ppo import ALGORITHM as PPO
from offrl.algos.sac import ALGORITHM as SAC
from offrl.cli import main
from offrl.errors import ConfigError
from offrl.online.options import OnlineOptions, apply_preset

FILE = """
default: &defaults
  n_timesteps: !!float 1e5
  policy: 'MlpPolicy'
  gamma: 0.95
Hopper-v5: &hopper
  <<: *defaults
  normalize: "dict(norm_obs=True, norm_reward=False)"
  n_envs: 2
  n_timesteps: !!float 1e6
  batch_size: 32
  n_steps: 512
  learning_rate: 9.8e-05
  clip_range: 0.1
  n_epochs: 5
  gae_lambda: 0.99
  ent_coef: 0
  vf_coef: 0.835671
  max_grad_norm: 1
  policy_kwargs: "dict(log_std_init=-2, activation_fn=nn.ReLU, net_arch=dict(pi=[256, 256], vf=[256, 256]))"
Walker2d-v5:
  <<: *hopper
  normalize: true
  learning_rate: 3e-4
"""


def read(tmp_path, text, env="Hopper-v5", method=PPO, section=""):
    path = tmp_path / "zoo.yml"
    path.write_text(text)
    start = OnlineOptions(env=env, seed=5)
    options, settings = apply_preset(method, f"{path}{section}", start, method.config())
    assert (options.env, options.seed, options.preset) == (env, 5, f"{path}{section}")
    return options, settings


def test_a_section_in_zoo_names_is_ours(tmp_path):
    options, settings = read(tmp_path, FILE)
    assert (options.steps, options.num_envs) == (1_000_000, 2)
    assert (options.normalize_observations, options.normalize_rewards) == (True, False)
    assert dataclasses.asdict(settings) == dataclasses.asdict(PPO.config()) | {
        "discount": 0.95,
        "batch_size": 32,
        "rollout": 512,
        "lr": 9.8e-05,
        "clip": 0.1,
        "epochs": 5,
        "gae_lambda": 0.99,
        "entropy_coefficient": 0.0,
        "value_coefficient": 0.835671,
        "max_grad_norm": 1.0,
        "hidden": 256,
        "activation": "relu",
        "log_std": -2.0,
    }
    assert isinstance(settings.max_grad_norm, float)
    assert isinstance(options.steps, int)


def test_numbers_that_yaml_takes_for_words_and_normalize_for_both(tmp_path):
    options, settings = read(tmp_path, FILE, "Walker2d-v5")
    assert settings.lr == 3e-4
    assert (options.normalize_observations, options.normalize_rewards) == (True, True)


def test_another_environment_gets_the_default_and_a_section_may_be_named(tmp_path):
    options, settings = read(tmp_path, FILE, "Ant-v5")
    assert (options.steps, settings.discount, settings.clip) == (100_000, 0.95, 0.2)
    assert read(tmp_path, FILE, "Ant-v5", section=":Hopper-v5")[1].clip == 0.1


def test_what_is_always_so_may_be_said(tmp_path):
    text = "default: {ent_coef: auto, train_freq: 1, gradient_steps: 1, use_sde: false, learning_starts: 100, tau: 0.01}"
    settings = read(tmp_path, text, method=SAC)[1]
    assert (settings.learning_starts, settings.tau) == (100, 0.01)


def test_gamma_of_the_normalizer_is_not_the_methods(tmp_path):
    """The zoo's scripts give the normalizer the method's."""
    text = "default: {gamma: 0.9, normalize: 'dict(norm_obs=True, norm_reward=True, gamma=0.5)'}"
    options, settings = read(tmp_path, text)
    assert (settings.discount, options.normalize_rewards) == (0.9, True)


@pytest.mark.parametrize("steps", [-1, 3])
def test_updates_are_one_an_environment_step(tmp_path, steps):
    options, _ = read(tmp_path, f"default: {{n_envs: 3, gradient_steps: {steps}}}", method=SAC)
    assert options.num_envs == 3
    read(tmp_path, "default: {gradient_steps: -1}", method=SAC)


@pytest.mark.parametrize(
    ("text", "method", "message"),
    [
        ("default: {normalize: {norm_obs: true, gamma: 0.9}}", PPO, "normalize: its gamma is the method's"),
        (
            "default: {n_envs: 4, gradient_steps: 1}",
            SAC,
            "gradient_steps: 1 has no counterpart here: 4 environments",
        ),
        ("default: {gradient_steps: 2}", SAC, "gradient_steps: 2 has no counterpart"),
        ("default: {batch_size: .inf}", SAC, "batch_size: inf must be a whole number"),
        ("default: {learning_rate: true}", PPO, "lr: True must be a number"),
        ("default: {normalize: {norm_obs: 1}}", PPO, "normalize_observations: 1 must be true or false"),
        (
            "default: {use_sde: true}",
            PPO,
            "zoo.yml, default: use_sde: True has no counterpart here; leave it out",
        ),
        ("default: {train_freq: 8}", SAC, "train_freq: 8 has no counterpart"),
        ("default: {policy: CnnPolicy}", PPO, "policy: 'CnnPolicy' has no counterpart"),
        ("default: {n_steps: 5}", SAC, "n_steps: 5 has no counterpart"),
        ("default: {policy_kwargs: 'dict(ortho_init=False)'}", SAC, "ortho_init: False has no counterpart"),
        ("default: {n_epochs: 2.5}", PPO, r"zoo\.yml: epochs: 2\.5 must be a whole number"),
        ("default: {ent_coef: auto}", PPO, "ent_coef: 'auto' is no number"),
        ("default: {ent_coef: auto}", MDPO_OFF, "ent_coef: 'auto' is no number"),
        ("default: {learning_rate: lin_3e-4}", PPO, "'lin_3e-4' is no number, and there are no schedules"),
        ("default: {policy_kwargs: {net_arch: [64]}}", PPO, "two equal hidden layers"),
        ("default: {policy_kwargs: {net_arch: [64, 32]}}", PPO, "two equal hidden layers"),
        (
            "default: {policy_kwargs: 'dict(net_arch=dict(pi=[64, 64], vf=[32, 32]))'}",
            PPO,
            "two equal hidden layers",
        ),
        # a side that is left out is a linear one there
        ("default: {policy_kwargs: 'dict(net_arch=dict(pi=[64, 64]))'}", PPO, "two equal hidden layers"),
        ("default: {policy_kwargs: {net_arch: {pi: 64, vf: 64}}}", PPO, "two equal hidden layers"),
        ("default: {policy_kwargs: {net_arch: {pi: 64}}}", PPO, "two equal hidden layers"),
        ("default: {policy_kwargs: {net_arch: [[8], [8]]}}", PPO, "hidden: .* must be a number"),
        ("default: {policy_kwargs: {activation_fn: [nn.ReLU]}}", PPO, "must be nn.ReLU or nn.Tanh"),
        ("default: {gamma: 0.9, discount: 0.99}", PPO, "discount is given twice"),
        ("default: {normalize: true, normalize_rewards: false}", PPO, "normalize_rewards is given twice"),
        ("default: {policy_kwargs: {activation_fn: nn.ELU}}", PPO, "must be nn.ReLU or nn.Tanh"),
        ('default: {policy_kwargs: \'dict(a=__import__("os").system("true"))\'}', PPO, "cannot be read"),
        ("default: {policy_kwargs: 'print(1)'}", PPO, "cannot be read"),
        ("default: !!python/object/apply:os.system [true]", PPO, "is not YAML"),
        ("default: {gamma: 1.5}", PPO, "discount must be in"),
        (
            "Hopper-v4: {gamma: 0.9}",
            PPO,
            "has no section 'Hopper-v5' or 'default'; it has Hopper-v4; name one as",
        ),
        ("- 1", PPO, "must map environments"),
        ("a: [", PPO, "is not YAML"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(tmp_path, text, method, message):
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, text, method=method)


def test_a_huge_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="more than 1,000,000 bytes"):
        read(tmp_path, "# " + "x" * 1_000_000 + FILE)


def test_the_command_line_reads_it_and_options_given_beside_win(tmp_path, capsys):
    path = tmp_path / "zoo.yml"
    path.write_text(FILE)
    command = ["train", "ppo", "--env", "Hopper-v5", "--preset", str(path), "--lr", "0.5", "--dry-run"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "0.835671" in shown
    assert "9.8e-05" not in shown
    assert main(["train", "ppo", "--env", "Hopper-v5", "--preset", str(tmp_path / "no.yml")]) == 1
    assert "no.yml" in capsys.readouterr().err


OWN = """
pmoe:
  n_timesteps: 1000000
  policy: MlpPolicy
  learning_starts: 1000
  batch_size: 256
  learning_rate: 0.0003
  tau: 0.005
  ent_coef: auto
  policy_kwargs: {n_experts: 3, net_arch: [256, 256]}
"on":
  n_timesteps: 10000000
  normalize: true
  n_steps: 2048
  m: 9
  gamma: 0.98
  gae_lambda: 0.9
  learning_rate: 0.0002
  n_epochs: 3.0
"off": {n_timesteps: 1e6, ent_coef: 0.3, kl_coef: 2, refresh_every: 1e3, learning_starts: 100, buffer_size: 5.0e+4}
"""


def test_methods_that_the_zoo_lacks_have_names_in_its_manner(tmp_path):
    _, pmoe = read(tmp_path, OWN, method=PMOE_SAC, section=":pmoe")
    assert (pmoe.experts, pmoe.learning_starts) == (3, 1000)
    options, on = read(tmp_path, OWN, method=MDPO_ON, section=":on")
    assert (options.steps, options.normalize_rewards) == (10_000_000, True)
    assert (on.inner_steps, on.discount, on.epochs) == (9, 0.98, 3)
    assert isinstance(on.epochs, int)
    _, off = read(tmp_path, OWN, method=MDPO_OFF, section=":off")
    assert (off.entropy_coefficient, off.kl_coefficient, off.refresh_every, off.buffer_size) == (
        0.3,
        2.0,
        1000,
        50_000,
    )
    assert isinstance(off.kl_coefficient, float)


def test_weights_need_not_be_orthogonal(tmp_path):
    _, settings = read(tmp_path, "default: {policy_kwargs: 'dict(ortho_init=False)'}")
    assert not settings.orthogonal
    assert read(tmp_path, "default: {policy_kwargs: 'dict(ortho_init=True)'}")[1].orthogonal


BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB + "Hopper-v5: {foo: *i}", "more than 1,000,000 values; not believed"),  # 10^9, in 400 bytes
        ("Hopper-v5: {foo: &a [*a]}", "more than 1,000,000 values"),
        ("[" * 20_000, "is not YAML"),
    ],
)
def test_aliases_that_blow_up_are_refused(tmp_path, text, message):
    with pytest.raises(ConfigError, match=f"zoo.yml.*{message}"):
        read(tmp_path, text)
