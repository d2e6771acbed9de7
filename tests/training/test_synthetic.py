"""Batches of real and other rows: shares, scales, when draws are made anew, exact resume, what is refused."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from offrl.cli import main
from offrl.data.d4rl import write_d4rl
from offrl.data.dataset import OfflineDataset
from offrl.data.normalize import ObservationNormalizer
from offrl.data.source import MixedSource
from offrl.diffusion.trajectory import TrajectoryModel
from offrl.diffusion.unet import UNet
from offrl.errors import CheckpointError, ConfigError
from offrl.nn.policy import DeterministicPolicy, load_policy, save_policy
from offrl.training import synthetic
from offrl.training.build import build
from offrl.training.check import tiny_problem
from offrl.training.options import RunOptions, make_settings, mix_options
from offrl.training.problem import Algorithm
from offrl.training.runner import prepare
from offrl.training.seeding import streams
from offrl.training.synthetic import Mix, RowMaker, SyntheticSource, mean_log_prob, parse_mix


def dataset(rows=60, shift=0.0, seed=0, obs=3):
    """Episodes of 20 steps in Pendulum's shapes; rewards are far from the others' if shifted."""
    rng, cut = np.random.default_rng(seed), np.zeros(rows, dtype=bool)
    cut[19::20] = True
    return OfflineDataset.from_arrays(
        rng.normal(size=(rows, obs)) + shift,
        rng.uniform(-2, 2, (rows, 1)),
        rng.normal(size=rows) + shift,
        np.zeros(rows, dtype=bool),
        cut,
        next_observations=rng.normal(size=(rows, obs)) + shift,
        metadata={"name": "tiny", "env_id": "Pendulum-v1", "env_kwargs": {"max_episode_steps": 20}},
    )


def model():
    net = UNet(6, 32, 2)
    params = [p.detach() for p in net.init([torch.Generator().manual_seed(0)])]
    box = torch.full((1,), 2.0)
    return TrajectoryModel.from_params(
        params, torch.zeros(6), torch.ones(6), -box, box, hidden=32, blocks=2, length=8
    )


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with real.hdf5, other.hdf5 and a trajectory model."""
    monkeypatch.chdir(tmp_path)
    write_d4rl(dataset(), "real.hdf5")
    write_d4rl(dataset(40, 100.0, seed=1), "other.hdf5")
    save_policy(model(), tmp_path / "model")
    return tmp_path


TRAIN = [
    "--dataset",
    "real.hdf5",
    "--steps",
    "9",
    "--hidden",
    "8",
    "--batch-size",
    "8",
    "--eval-episodes",
    "1",
]
TRAIN += ["--checkpoint-every", "4", "--log-every", "1", "--eval-every", "0"]
DRAWS = ["--mix", "model:0.75", "--refresh", "3", "--synthetic-transitions", "30", "--sampling-steps", "3"]


def train(*more, algorithm="td3_bc"):
    return main(["train", algorithm, *TRAIN, *more])


def run_of(folder, out="runs"):
    (config,) = (folder / out).glob("*/*/*/config.json")
    return config.parent


def config_of(folder, out="runs"):
    return json.loads((run_of(folder, out) / "config.json").read_text())


def built(folder, algorithm="td3_bc", mix="other.hdf5:0.75", **settings):
    draws = {} if mix.startswith("other") else {"sampling_steps": 3, "synthetic_transitions": 30}
    options = RunOptions(dataset="real.hdf5", mix=mix, steps=9, **draws)
    made = make_settings(algorithm, {"batch_size": 8, **settings})
    plan = prepare(algorithm, made, options, (0,))
    return build(plan.method, made, plan.data, plan.spec, plan.configs[0])


@pytest.mark.parametrize(
    ("share", "batch", "wanted"), [(0.9375, 256, 240), (0.5, 9, 4), (0.75, 8, 6), (0.1, 10, 1)]
)
def test_a_batch_has_its_share_of_appended_rows_and_the_rest_of_its_own(share, batch, wanted):
    """240 of 256 as published; what does not divide goes to the run's own rows."""
    problem = tiny_problem(rows=40)
    names = ("observations", "actions", "rewards", "next_observations", "terminated")
    source = MixedSource(*(getattr(problem, n) for n in names), batch_size=batch, capacity=10, share=share)
    source.append(torch.zeros(10, source.table.shape[1]))
    rows = source.sample(streams((0, 1), "data")).rows
    assert (rows >= 40).sum(1).tolist() == [wanted, wanted]
    assert (rows[:, : batch - wanted] < 40).all()


def test_a_share_that_leaves_nothing_of_a_kind_is_refused(folder):
    """Of 8 rows 0.1 are none; 0.125 are one, 0.999 are seven."""
    with pytest.raises(ConfigError, match="leaves none of one kind"):
        built(folder, mix="other.hdf5:0.1")
    for share, wanted in ((0.125, 1), (0.999, 7)):
        assert built(folder, mix=f"other.hdf5:{share}")[1].picked == wanted


def test_other_data_are_normalized_and_scaled_as_the_runs_own(folder):
    """Rows of other.hdf5 in the table: its observations by real.hdf5's mean and std, its rewards by the run's map."""
    _, source = built(folder, reward_scale=2.0, reward_shift=1.0)
    real, other = dataset(), dataset(40, 100.0, seed=1)
    normalizer = ObservationNormalizer.fit(real.transitions().observations)
    rows = source.pick(torch.arange(len(source), len(source) + 40)[None])
    t = other.transitions()
    torch.testing.assert_close(rows.observations[0], normalizer(torch.from_numpy(t.observations)))
    torch.testing.assert_close(rows.next_observations[0], normalizer(torch.from_numpy(t.next_observations)))
    torch.testing.assert_close(rows.rewards[0], torch.from_numpy(2 * t.rewards + 1))
    torch.testing.assert_close(rows.actions[0], torch.from_numpy(t.actions))
    assert len(source) == 60
    assert source.state_dict() == {}


def test_a_run_with_other_data_says_so_and_is_repeated_by_its_config(folder, capsys):
    assert train("--mix", "other.hdf5:0.5") == 0
    assert "0.5 of each batch from " in capsys.readouterr().out
    mix = config_of(folder)["mix"]
    assert mix["share"] == 0.5
    assert mix["sha256"] == dataset(40, 100.0, seed=1).sha256
    again = ["train", "td3_bc", "--config", str(run_of(folder) / "config.json"), "--out", "again", "-q"]
    assert main(again) == 0
    assert (run_of(folder) / "metrics.csv").read_bytes() == (
        run_of(folder, "again") / "metrics.csv"
    ).read_bytes()
    assert train("--out", "without", "-q") == 0
    assert (run_of(folder) / "metrics.csv").read_bytes() != (
        run_of(folder, "without") / "metrics.csv"
    ).read_bytes()


def test_demonstrations_alone_are_not_mixed_with_rows_that_have_rewards(folder):
    settings = {"imitation": True, "policy_hidden": 8}
    with pytest.raises(ConfigError, match="--mix would bring rewards .* among the demonstrations"):
        built(folder, "odice", **settings)
    built(folder, "odice", expert_dataset="real.hdf5", **settings)  # what is mixed in is unlabelled


def source_of_draws(mix=None):
    problem = dataclasses.replace(
        tiny_problem(rows=40),
        actions=torch.zeros(40, 1),
        action_low=torch.full((1,), -2.0),
        action_high=torch.full((1,), 2.0),
    )
    names = ("observations", "actions", "rewards", "next_observations", "terminated")
    mix = mix or Mix("model", 0.5, "", refresh=3, transitions=30, guidance=1.0, sampling_steps=3)
    mixed = MixedSource(*(getattr(problem, n) for n in names), batch_size=8, capacity=30, share=0.5)
    maker = RowMaker(problem, Algorithm(object, lambda *_: None), lambda r: r)
    return SyntheticSource(mixed, model(), mix, maker, seed=5)


def policy():
    torch.manual_seed(1)
    return DeterministicPolicy(3, 1, (8,), [-2.0], [2.0])


def test_draws_are_made_before_the_first_update_and_then_every_refresh():
    """Of ten updates the 1st, 4th, 7th and 10th have new rows; all 30 of them each time."""
    source, tables, when = source_of_draws(), [], []
    for update in range(10):
        metrics = source.refresh(policy)
        when += [update] if metrics else []
        tables.append(source.mixed.table[40:70].clone())
        assert source.mixed.appended == 30
        assert source.sample(streams((0,), "data")).rows.shape == (1, 8)
    assert when == [0, 3, 6, 9]
    changed = [i for i in range(1, 10) if not torch.equal(tables[i], tables[i - 1])]
    assert changed == [3, 6, 9]
    assert torch.isfinite(metrics["synthetic_log_prob"]).all()


def test_without_refresh_the_first_draws_stay():
    source = source_of_draws(Mix("model", 0.5, "", 0, 30, 1.0, 3))
    assert [bool(source.refresh(policy)) for _ in range(5)] == [True, False, False, False, False]


def test_the_first_draws_do_not_depend_on_the_policy_and_the_next_ones_do():
    def tables(seed):
        torch.manual_seed(seed)
        own, source, found = DeterministicPolicy(3, 1, (8,), [-2.0], [2.0]), source_of_draws(), []
        for _ in range(4):
            source.refresh(lambda: own)
            found.append(source.mixed.table[40:].clone())
        return found[0], found[3]

    (first, later), (other_first, other_later) = tables(1), tables(2)
    assert torch.equal(first, other_first)
    assert not torch.equal(later, other_later)


def test_a_source_of_draws_is_restored_with_its_rows_and_its_clock():
    source = source_of_draws()
    for _ in range(5):
        source.refresh(policy)
    fresh = source_of_draws()
    fresh.load_state_dict(source.state_dict())
    assert torch.equal(fresh.mixed.table, source.mixed.table)
    for _ in range(3):
        assert bool(source.refresh(policy)) == bool(fresh.refresh(policy))
        assert torch.equal(fresh.mixed.table, source.mixed.table)


def test_the_log_likelihood_is_that_of_the_policys_gaussian():
    """A deterministic policy counts as a Gaussian one half-range (2) wide: -(a - pi)^2 / 8 - ln(2 sqrt(2 pi))."""
    own, data = policy(), dataset()
    fields = {"observations": data.flat_observations(), "actions": data.fields["actions"]}
    with torch.no_grad():
        gap = torch.from_numpy(fields["actions"]) - own(torch.from_numpy(fields["observations"]))
    wanted = (-gap.square() / 8).mean() - np.log(2 * np.sqrt(2 * np.pi))
    assert mean_log_prob(model(), own, fields).item() == pytest.approx(wanted.item(), abs=1e-4)


def test_a_run_that_draws_anew_resumes_exactly(folder, capsys):
    """Back to the checkpoint before the last, after the draws of that moment were replaced."""
    for out in ("whole", "half"):
        assert train(*DRAWS, "--out", out, "-q") == 0
    whole, half = run_of(folder, "whole"), run_of(folder, "half")
    (half / "final_returns.npz").unlink()
    for path in half.glob("checkpoint.pt*"):
        path.unlink()
    assert main(["resume", str(half), "-q"]) == 0
    for name in ("metrics.csv", "policy.safetensors"):
        assert (whole / name).read_bytes() == (half / name).read_bytes(), name
    header = (whole / "metrics.csv").read_text().splitlines()[0].split(",")
    assert "synthetic_log_prob" in header
    assert config_of(folder, "whole")["mix"]["refresh"] == 3
    again = ["train", "td3_bc", "--config", str(whole / "config.json"), "--out", "again", "-q"]
    assert main(again) == 0
    assert (run_of(folder, "again") / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()


def test_what_is_mixed_in_must_stay_as_it_was(folder, capsys):
    assert train(*DRAWS, "-q") == 0
    (run_of(folder) / "final_returns.npz").unlink()
    changed = load_policy(folder / "model")
    changed.weights[0].data += 1
    save_policy(changed, folder / "model")
    assert main(["resume", str(run_of(folder)), "-q"]) == 1
    assert "changed since the run began (SHA-256 differs)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--mix", "other.hdf5"], "--mix takes URI:SHARE"),
        (["--mix", "other.hdf5:1.5"], "a share in (0, 1)"),
        (["--mix", "other.hdf5:nan"], "a share in (0, 1)"),
        (["--mix", ":0.5"], "--mix takes URI:SHARE"),
        (["--mix", "other.hdf5:0.5", "--refresh", "3"], "other.hdf5 is a dataset"),
        (["--mix", "other.hdf5:0.5", "--guidance", "2"], "--guidance needs a run of policy_guided_diffusion"),
        (
            ["--mix", "other.hdf5:0.5", "--sampling-steps", "9"],
            "--sampling-steps needs a run of policy_guided",
        ),
        (["--mix", "other.hdf5:0.5", "--synthetic-transitions", "9"], "and other.hdf5 is a dataset"),
        (
            ["--mix", "model:0.5", "--refresh", "3", "--guidance", "nan"],
            "guidance must be a finite number, got nan",
        ),
        (["--refresh", "3"], "--refresh needs --mix RUN:SHARE"),
        (["--mix", "wide.hdf5:0.5"], "the data mixed in have O=5, A=1, the run's O=3, A=1"),
        (["--mix", "agent:0.5"], "holds a policy, not a trajectory model"),
        (["--mix", "other.hdf5:0.05"], "leaves none of one kind"),
        (["--mix", "missing.hdf5:0.5"], "no dataset file"),
        (["--sampling-steps", "1"], "sampling_steps 2 or more"),
        (["--sampling-steps", "9"], "they need --mix RUN:SHARE"),
        (["--guidance", "0.5"], "they need --mix RUN:SHARE"),
        (["--synthetic-transitions", "9"], "they need --mix RUN:SHARE"),
        (["--mix", "model:0.5", "--guidance", "0.5"], "--guidance needs --refresh N"),
    ],
)
def test_a_wrong_mix_is_one_line(folder, capsys, options, why):
    write_d4rl(dataset(obs=5), "wide.hdf5")
    save_policy(policy(), folder / "agent")
    assert train(*options) in (1, 2)
    err = capsys.readouterr().err
    assert why in err
    assert len(err.splitlines()) == 1
    assert not (folder / "runs").exists()


def test_methods_of_whole_episodes_are_refused(folder, capsys):
    assert train("--mix", "other.hdf5:0.5", algorithm="decision_transformer") == 1
    assert "learn from single steps" in capsys.readouterr().err
    assert train("--mix", "other.hdf5:0.5", algorithm="prdc") == 1
    assert "looks rows up in the run's own data" in capsys.readouterr().err


def test_seeds_with_draws_of_their_own_are_not_stacked(folder, capsys):
    assert train(*DRAWS, "--seeds", "0", "1", "--seed-mode", "stacked") == 1
    assert "rows are drawn for each agent" in capsys.readouterr().err


def test_next_actions_are_mixed_in_where_a_method_wants_them(folder):
    """ReBRAC's rows of the other data: the steps that a time-out cut have no next action and are left out."""
    _, source = built(folder, "rebrac")
    assert source.appended == 38
    batch = source.sample(streams((0,), "data"))
    assert batch.next_actions is not None


def test_damaged_records_are_refused(folder):
    with pytest.raises(ConfigError, match="its 'mix' is damaged"):
        mix_options({"uri": "x"})
    assert parse_mix(RunOptions()) is None
    record = parse_mix(RunOptions(mix="model:0.5", refresh=7, guidance=0.25, sampling_steps=9))
    assert mix_options(record) == {
        "mix": f"{folder / 'model'}:0.5",
        "refresh": 7,
        "guidance": 0.25,
        "sampling_steps": 9,
        "synthetic_transitions": 100_000,
    }
    with pytest.raises(CheckpointError, match="changed since"):
        synthetic.make_mixed_source(
            tiny_problem(), (), Algorithm(object, lambda *_: None), lambda r: r, 8, record | {"sha256": "0"}
        )
