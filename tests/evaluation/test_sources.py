import json
import sys

import numpy as np
import pytest
import torch

from offrl.data.environments import EnvSpec, environment_for
from offrl.errors import CheckpointError, ConfigError, PolicyError
from offrl.evaluation.sources import FunctionPolicy, env_facts, load_source, source_facts, split_source
from offrl.nn.policy import DeterministicPolicy, save_policy
from offrl.nn.random_policy import RandomPolicy

PENDULUM = "InvertedPendulum-v5"  # O=4, A=1, actions in [-3, 3]
OBSERVATIONS = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.0, 0.0, 0.0, 0.0]])


@pytest.fixture
def policy_folder(tmp_path):
    policy = DeterministicPolicy(4, 1, (8,), [-3.0], [3.0])
    save_policy(policy, tmp_path / "run", {"env_id": PENDULUM})
    return tmp_path / "run", policy


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write ``my_policies.py`` into the current folder; it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(source: str) -> None:
        (tmp_path / "my_policies.py").write_text(source)
        sys.modules.pop("my_policies", None)

    yield write
    sys.modules.pop("my_policies", None)


def write_config(folder, **changes):
    config = {"format": 1, "algorithm": "td3_bc", "env_id": PENDULUM, "env_kwargs": {"max_episode_steps": 7}}
    config |= {"env_flatten": [], "reference_returns": [1.0, 3.0], "dataset_name": "pendulum"}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize("prefix", ["run:", ""])
def test_folder_gives_its_policy_with_and_without_its_scheme(policy_folder, prefix):
    folder, policy = policy_folder
    loaded = load_source(f"{prefix}{folder}", PENDULUM)
    torch.testing.assert_close(loaded.act(OBSERVATIONS)[0], policy.act(OBSERVATIONS)[0])


def test_random_draws_from_the_action_box_of_the_environment():
    policy = load_source("random", PENDULUM)
    assert isinstance(policy, RandomPolicy)
    assert (policy.obs_dim, policy.action_low.tolist(), policy.action_high.tolist()) == (4, [-3.0], [3.0])


def test_waypoint_is_built_for_the_maze():
    assert load_source("waypoint", "PointMaze_UMaze-v3").obs_dim == 6


def test_sb3_zip_is_handed_to_its_reader(tmp_path):
    path = tmp_path / "agent.zip"
    path.write_bytes(b"no zip")
    with pytest.raises(PolicyError, match=r"agent\.zip"):
        load_source(f"sb3:{path}", PENDULUM)


def test_own_factory_gets_the_specification_and_may_return_a_policy(module):
    module(
        "from offrl.nn.random_policy import RandomPolicy\n"
        "def make(env_spec):\n"
        "    return RandomPolicy(len(env_spec.env_id), env_spec.kwargs['width'])\n"
    )
    policy = load_source("py:my_policies:make", EnvSpec("Name", kwargs={"width": 3}))
    assert (policy.obs_dim, policy.act_dim) == (4, 3)


def test_own_function_is_wrapped_and_cut_to_the_box(module):
    module("def make(env_spec):\n    return lambda observations: 10 * observations[:, :1]\n")
    policy = load_source("py:my_policies:make", PENDULUM)
    actions, _ = policy.act(OBSERVATIONS)
    torch.testing.assert_close(actions, torch.tensor([[1.0], [0.0]]))
    torch.testing.assert_close(policy.act(OBSERVATIONS * 10)[0], torch.tensor([[3.0], [0.0]]))


def test_function_gets_float32_numpy_and_a_torch_module_gets_a_tensor():
    seen = []

    def function(observations):
        seen.append(observations)
        return np.zeros((len(observations), 1))

    assert FunctionPolicy(function, 4, 1, [-1.0], [1.0]).act(OBSERVATIONS)[0].dtype == torch.float32
    assert isinstance(seen[0], np.ndarray)
    assert seen[0].dtype == np.float32
    layer = torch.nn.Linear(4, 1)
    actions, _ = FunctionPolicy(layer, 4, 1, [-1.0], [1.0]).act(OBSERVATIONS)
    torch.testing.assert_close(actions, layer(OBSERVATIONS).clamp(-1, 1))


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (np.zeros((2,)), r"returned shape \(2,\) for 2 observations; it must be \(2, 1\)"),
        (np.zeros((1, 1)), r"returned shape \(1, 1\) for 2 observations"),
        (None, "must return an array of actions"),
        ("left", "must return an array of actions"),
    ],
)
def test_function_with_a_wrong_result_is_refused(result, message):
    with pytest.raises(PolicyError, match=message):
        FunctionPolicy(lambda _: result, 4, 1, [-1.0], [1.0]).act(OBSERVATIONS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("keras:x", r"unknown kind of policy 'keras:'; a policy is one of run:DIR .*random, waypoint"),
        ("randm", "'randm' is neither a folder nor a policy's name; did you mean 'random'"),
        ("waypoints", "did you mean 'waypoint'"),
        ("no/such/folder", "neither a folder nor a policy's name; a policy is one of run:DIR"),
        ("agents/model.zip", r"did you mean 'sb3:agents/model\.zip'"),
        ("sb3:", "nothing after 'sb3:'"),
        ("", "a policy is one of run:DIR"),
    ],
)
def test_unknown_form_says_what_there_is(text, message):
    with pytest.raises(ConfigError, match=message):
        split_source(text)


@pytest.mark.parametrize("text", ["run:missing", "sb3:missing.zip"])
def test_missing_path_is_named_in_full(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "missing")):
        load_source(text, PENDULUM)


def test_run_without_a_policy_yet_says_so(tmp_path):
    write_config(tmp_path / "run")
    with pytest.raises(PolicyError, match="has no policy yet: it is written at the first checkpoint"):
        load_source(str(tmp_path / "run"), PENDULUM)


def test_folder_that_holds_nothing_and_file_that_is_no_folder_are_refused(tmp_path):
    with pytest.raises(PolicyError, match=r"neither a run directory nor a policy: it has no policy\.json"):
        load_source(str(tmp_path), PENDULUM)
    with pytest.raises(PolicyError, match="neither a run directory nor a policy"):
        source_facts(str(tmp_path))
    (tmp_path / "file").touch()
    with pytest.raises(PolicyError, match="is a file; 'run:' takes a run directory"):
        load_source(f"run:{tmp_path / 'file'}", PENDULUM)
    with pytest.raises(PolicyError, match="is a folder; 'sb3:' takes the zip file"):
        load_source(f"sb3:{tmp_path}", PENDULUM)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("py:my_policies", ConfigError, "must be py:PACKAGE.MODULE:NAME"),
        ("py:../my_policies:make", ConfigError, "must be py:PACKAGE.MODULE:NAME"),
        ("py:my_polcies:make", ConfigError, "there is no module 'my_polcies'"),
        ("py:my_policies:mak", ConfigError, "my_policies has no function 'mak'; did you mean 'make'"),
        ("py:my_policies:number", ConfigError, "my_policies has no function 'number'"),
        ("py:my_policies:none", PolicyError, "must take one argument, the environment's EnvSpec"),
        ("py:my_policies:make", PolicyError, "returned int; a factory takes the environment's EnvSpec"),
    ],
)
def test_wrong_python_sources_are_refused(module, text, error, message):
    module("number = 3\ndef make(env_spec):\n    return number\ndef none():\n    return number\n")
    with pytest.raises(error, match=message):
        load_source(text, PENDULUM)


def test_library_that_the_users_module_lacks_is_not_mistaken_for_the_module(module):
    module("import no_such_library\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_library"):
        load_source("py:my_policies:make", PENDULUM)


def test_facts_of_a_run_are_its_environment_and_reference(tmp_path):
    write_config(tmp_path / "run")
    facts = source_facts(f"run:{tmp_path / 'run'}")
    assert facts.env == EnvSpec(PENDULUM, kwargs={"max_episode_steps": 7})
    assert (facts.reference_returns, facts.dataset_name) == ((1.0, 3.0), "pendulum")


def test_facts_of_a_bare_policy_come_from_its_description(policy_folder):
    assert source_facts(str(policy_folder[0])).env == EnvSpec(PENDULUM)


def test_a_bare_policy_acts_in_the_environment_that_it_was_saved_for(tmp_path):
    """Also without the run's config.json: arguments and order of the parts are part of it, as with a run."""
    policy = RandomPolicy(31, 8, [-1.0] * 8, [1.0] * 8)
    spec = environment_for("D4RL/antmaze/umaze-v1")
    saved = EnvSpec(spec.env_id, kwargs=spec.kwargs, flatten=spec.flatten)
    save_policy(policy, tmp_path / "new", env_facts(spec))
    assert source_facts(str(tmp_path / "new")).env == saved
    save_policy(policy, tmp_path / "older", {"env_id": spec.env_id})
    assert source_facts(str(tmp_path / "older")).env == EnvSpec(spec.env_id, flatten=spec.flatten)
    save_policy(policy, tmp_path / "array", env_facts(EnvSpec(spec.env_id)))
    assert source_facts(str(tmp_path / "array")).env == EnvSpec(spec.env_id)
    save_policy(policy, tmp_path / "none", {"env_id": spec.env_id, "env_kwargs": 3})
    with pytest.raises(PolicyError, match=r"policy\.json does not describe an environment"):
        source_facts(str(tmp_path / "none"))


def test_other_sources_have_no_facts():
    facts = source_facts("random")
    assert (facts.env, facts.reference_returns) == (None, None)


@pytest.mark.parametrize(
    "changes",
    [
        {"env_kwargs": 3},
        {"reference_returns": [1.0]},
        {"reference_returns": ["a", "b"]},
        {"env_flatten": 1},
    ],
)
def test_damaged_config_is_refused(tmp_path, changes):
    write_config(tmp_path / "run", **changes)
    with pytest.raises(CheckpointError, match=r"config\.json is not a run's config\.json"):
        source_facts(str(tmp_path / "run"))


@pytest.mark.parametrize("content", ["{", "[]", "\ud800"])
def test_config_that_is_no_json_object_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_text(content, errors="surrogatepass")
    with pytest.raises(CheckpointError, match=r"is not a run's config\.json"):
        source_facts(str(tmp_path))
