"""The plug-in for verl: advantages, losses and gradients that scripts/record_verl.py recorded, and what it registers."""

import importlib
import json
import sys
import types
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch

from offrl.errors import ConfigError, MissingExtraError
from offrl.estimators.compose import compose
from offrl.estimators.masks import icepop
from offrl.estimators.ratios import mismatch_ratio, ratio
from offrl.estimators.regularizers import REGULARIZERS
from offrl.estimators.rollouts import Rollouts
from offrl.llm.integrations import verl
from offrl.llm.methods import METHODS, NATIVE, clip_cov, kl_cov, runs_in

RECORDED = json.loads(Path(__file__).with_name("verl.json").read_text())
SEEDS = range(len(RECORDED["seeds"]))
ALONE = torch.tensor([g == "c" for g in RECORDED["groups"]])
EXACT = {"atol": 1e-6, "rtol": 0}
INFO = {
    "dp_size": RECORDED["processes"],
    "batch_num_tokens": RECORDED["tokens"],
    "global_batch_size": RECORDED["rows"],
}


def recorded(seed):
    batch = {k: torch.tensor(v, dtype=torch.float64) for k, v in RECORDED["seeds"][seed]["batch"].items()}
    return RECORDED["seeds"][seed], batch | {"mask": batch["mask"].bool()}


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def actor(low=0.2, high=0.2, **info):
    found = {**INFO, "loss_scale_factor": None, **info}
    return types.SimpleNamespace(
        clip_ratio=0.2, clip_ratio_low=low, clip_ratio_high=high, global_batch_info=found
    )


def our_advantages(batch, name, **settings):
    """As verl would ask for them: rewards of tokens, names of groups."""
    rewards = torch.zeros(batch["mask"].shape, dtype=torch.float64)
    rewards[torch.arange(len(rewards)), batch["mask"].sum(1) - 1] = batch["rewards"]
    given = {"token_level_rewards": rewards, "response_mask": batch["mask"].long(), "config": None}
    given |= {"index": np.array(RECORDED["groups"]), "reward_baselines": batch["baseline"]}
    return verl.advantage(name, **settings)(**given)


def our_loss(batch, name, mean, low=0.2, high=0.2, weights=None, info=None, **settings):
    new = batch["new"].clone().requires_grad_()
    value, metrics = verl.policy_loss(name, **settings)(
        old_log_prob=batch["old"], log_prob=new, advantages=batch["advantages"][:, None].expand_as(new),
        response_mask=batch["mask"], loss_agg_mode=mean, config=actor(low, high, **(info or {})),
        rollout_is_weights=weights,
    )  # fmt: skip
    value.backward()
    return float(value.detach()), new.grad, metrics


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("theirs", "ours", "settings"),
    [
        ("grpo", "grpo", {}), ("grpo_vectorized", "grpo", {}), ("grpo without std", "dr_grpo", {}), ("rloo", "rloo", {}),
        ("rloo_vectorized", "rloo", {}), ("remax", "remax", {}), ("gpg", "gpg", {"counts": "rewarded"}),
    ],
)  # fmt: skip
def test_advantages_are_verls(seed, theirs, ours, settings):
    found, batch = recorded(seed)
    want = tensor(found["advantages"][theirs])
    kept = ~ALONE if ours in ("grpo", "dr_grpo", "rloo", "gpg") else torch.ones_like(ALONE)
    got, returns = our_advantages(batch, ours, **settings)
    torch.testing.assert_close(got[kept], want[kept], **EXACT)
    assert returns is got
    assert float(want[kept].abs().max()) > 0.1
    assert (got[~batch["mask"]] == 0).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_whitened_advantages_are_verls(seed):
    """Returns to go of the last token's reward; the group's mean of REINFORCE++-baseline without the single row."""
    found, batch = recorded(seed)
    got, _ = our_advantages(batch, "reinforce_plus_plus")
    torch.testing.assert_close(got, tensor(found["advantages"]["reinforce_plus_plus"]), **EXACT)
    ids = verl.ids(RECORDED["groups"])
    estimator = compose(advantage=["group_mean", "lone_rewards", "whiten"])
    rollouts = Rollouts(rewards=batch["rewards"], group_ids=ids, mask=batch["mask"])
    got = estimator.advantages(rollouts) * batch["mask"]
    torch.testing.assert_close(got, tensor(found["advantages"]["reinforce_plus_plus_baseline"]), **EXACT)
    estimator = compose(advantage=["group_std", "lone_rewards", "whiten"])
    got = estimator.advantages(rollouts) * batch["mask"]
    want = tensor(
        found["advantages"]["gdpo"]
    )  # its singles are divided by 1 + epsilon; variance + 1e-8 under the root
    torch.testing.assert_close(got, want, atol=3e-6, rtol=0)
    got = compose(advantage="group_length").advantages(rollouts)
    torch.testing.assert_close(
        got[~ALONE, None] * batch["mask"][~ALONE], tensor(found["advantages"]["opo"])[~ALONE], **EXACT
    )


@pytest.mark.parametrize("theirs", ["grpo", "grpo without std", "rloo", "gpg"])
def test_a_row_alone_in_its_group(theirs):
    """Verl gives it its reward, we 0; ``lone_rewards`` is the option."""
    found, batch = recorded(0)
    want = tensor(found["advantages"][theirs])[ALONE]
    name = {
        "grpo": "group_std",
        "grpo without std": "group_mean",
        "rloo": "group_leave_one_out",
        "gpg": "group_mean",
    }
    rollouts = Rollouts(rewards=batch["rewards"], group_ids=verl.ids(RECORDED["groups"]), mask=batch["mask"])
    assert (compose(advantage=name[theirs]).advantages(rollouts)[ALONE] == 0).all()
    got = compose(advantage=[name[theirs], "lone_rewards"]).advantages(rollouts)
    alpha = len(ALONE) / int((batch["rewards"] != 0).sum()) if theirs == "gpg" else 1.0
    torch.testing.assert_close(alpha * got[ALONE][:, None] * batch["mask"][ALONE], want, atol=2e-6, rtol=0)
    assert float(want.abs().max()) > 0.1


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("case", "ours", "mean", "low", "high", "settings"),
    [
        ("seq-mean-token-mean", "grpo", "seq-mean-token-mean", 0.2, 0.2, {}),
        ("seq-mean-token-sum-norm", "dr_grpo", "seq-mean-token-sum-norm", 0.2, 0.2, {}),
        ("token-mean", "remax", "token-mean", 0.2, 0.2, {}),
        ("token-mean", "reinforce_plus_plus", "token-mean", 0.2, 0.2, {}),
        ("gspo", "gspo", "seq-mean-token-mean", 3e-4, 4e-4, {}),
        ("sapo", "sapo", "seq-mean-token-mean", 0.2, 0.2, {}),
        ("gpg", "gpg", "token-mean", 0.2, 0.2, {}),
        ("cispo", "cispo", "token-mean", 0.2, 0.28, {"floor": 0.2}),
    ],
)  # fmt: skip
def test_losses_and_gradients_are_verls(seed, case, ours, mean, low, high, settings):
    found, batch = recorded(seed)
    want = found["losses"][case]
    value, gradient, _ = our_loss(batch, ours, mean, low, high, **settings)
    torch.testing.assert_close(gradient, tensor(want["gradient"]), **EXACT)
    assert float(gradient.abs().max()) > 1e-3
    if ours not in ("sapo", "gpg", "cispo"):  # their values there are not surrogates
        assert value == pytest.approx(want["loss"], abs=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_geometric_mean_is_verls_but_for_its_batch(seed):
    """verl's takes the mean of the micro-batch, whatever the counts; ours the batch's."""
    found, batch = recorded(seed)
    want = found["losses"]["geo_mean"]
    none = {"dp_size": 1, "batch_num_tokens": None, "global_batch_size": None}
    value, gradient, _ = our_loss(batch, "gmpo", "seq-mean-token-mean", info=none)
    torch.testing.assert_close(gradient, tensor(want["gradient"]), **EXACT)
    assert value == pytest.approx(want["loss"], abs=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_four_means_and_both_clips_are_verls(seed):
    found, batch = recorded(seed)
    rollouts = Rollouts(mask=batch["mask"], old_log_probs=batch["old"], advantages=batch["advantages"])
    counts = verl.counted(batch["mask"], INFO)
    dual = ("dual_clip", {"limit": 3.0})
    made = {
        "token-mean": compose(mask=["ppo_clip", dual]),
        "seq-mean-token-mean": compose(mask=["ppo_clip", dual], aggregation="seq-mean-token-mean"),
        "seq-mean-token-sum": compose(mask=["ppo_clip", dual], aggregation="seq-mean-token-sum"),
        "seq-mean-token-sum-norm": compose(mask=["ppo_clip", dual], aggregation="fixed-length", length=6),
        "clip higher, dual clip": compose(mask=["clip_higher", ("dual_clip", {"limit": 1.5})]),
    }
    gradients = []
    for case, estimator in made.items():
        new = batch["new"].clone().requires_grad_()
        estimator.loss(new, rollouts, counts).backward()
        torch.testing.assert_close(new.grad, tensor(found["losses"][case]["gradient"]), **EXACT)
        surrogate = estimator.surrogate(batch["new"], rollouts, counts)
        assert float(surrogate) == pytest.approx(found["losses"][case]["loss"], abs=1e-6)
        gradients.append(new.grad)
    ratios = (batch["new"] - batch["old"]).exp()[batch["mask"] & (batch["advantages"] < 0)[:, None]]
    assert (ratios > 1.5).any()
    assert not any(torch.allclose(a, b) for i, a in enumerate(gradients) for b in gradients[:i])


def picked(seed, method, settings, *generators):
    """Gradient of a method whose companion marks tokens before an update."""
    _, batch = recorded(seed)
    rollouts = Rollouts(mask=batch["mask"], old_log_probs=batch["old"], advantages=batch["advantages"])
    both = types.SimpleNamespace(**{f: getattr(rollouts, f) for f in ("mask", "old_log_probs", "advantages")})
    both.replace = lambda factors: factors
    factors = method.pick(settings, both, batch["new"], *generators)
    fields = type("Marked", (Rollouts,), {})(
        mask=batch["mask"], old_log_probs=batch["old"], advantages=batch["advantages"]
    )  # fmt: skip
    object.__setattr__(fields, "factors", factors)
    new = batch["new"].clone().requires_grad_()
    method.estimator(settings, 6).loss(new, fields, verl.counted(batch["mask"], INFO)).backward()
    return new.grad, factors


@pytest.mark.parametrize("seed", SEEDS)
def test_covariance_methods_are_verls(seed):
    """Over one micro-batch that is the whole minibatch; of Clip-Cov with all candidates taken, so that no draw matters."""
    found, _ = recorded(seed)
    settings = clip_cov.ClipCovConfig(share=1.0, cov_low=-0.1)
    gradient, factors = picked(seed, clip_cov, settings, torch.Generator())
    torch.testing.assert_close(gradient, tensor(found["losses"]["clip_cov"]["gradient"]), **EXACT)
    assert 0 < int((factors == 0).sum()) < factors.numel()
    gradient, factors = picked(seed, kl_cov, kl_cov.KLCovConfig(share=0.2, penalty=0.7))
    torch.testing.assert_close(gradient, tensor(found["losses"]["kl_cov"]["gradient"]), **EXACT)
    assert int((factors == 1).sum()) >= 2


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", ["k1", "k2", "k3", "k1+", "k3+"])
def test_kl_estimates_are_verls(seed, name):
    found, batch = recorded(seed)
    new = batch["new"].clone().requires_grad_()
    values = REGULARIZERS[name](new, batch["ref"])
    values.sum().backward()
    torch.testing.assert_close(values.detach(), tensor(found["kls"][name]["values"]), **EXACT)
    torch.testing.assert_close(new.grad, tensor(found["kls"][name]["gradient"]), **EXACT)


@pytest.mark.parametrize("seed", SEEDS)
def test_rollout_correction_is_verls(seed):
    """Truncated, or zero outside a band, of tokens or of whole responses."""
    found, batch = recorded(seed)
    training, sampling, mask = batch["new"], batch["old"], batch["mask"]
    for case in found["corrections"]:
        rho = mismatch_ratio(training, sampling, mask, case["level"])
        if isinstance(case["threshold"], str):
            low, high = map(float, case["threshold"].split("_"))
            rho = rho * icepop(training, sampling, mask, low=low, high=high, level=case["level"])
        else:
            rho = rho.clamp(max=case["threshold"])
        torch.testing.assert_close((rho * mask), tensor(case["weights"]), **EXACT)
    assert len(found["corrections"]) == 4


def test_weights_for_another_engine():
    """They multiply the advantages; MiniRL, whose denominator is what sampled, takes its ratio from them."""
    _, batch = recorded(0)
    weights = ratio(0.3 * batch["ref"]) + 0.1
    plain = our_loss(batch, "gpg", "token-mean")[1]
    torch.testing.assert_close(our_loss(batch, "gpg", "token-mean", weights=weights)[1], plain * weights)
    low, high = 1e9, 1e9
    gradient = our_loss(batch, "minirl", "seq-mean-token-sum", low, high, weights=weights)[1]
    against_old = (batch["new"] - batch["old"]).exp()
    want = -((against_old * weights).clamp(max=5.0) * batch["advantages"][:, None]) * batch["mask"] * 2 / 20
    torch.testing.assert_close(gradient, want)


def test_parts_of_a_batch_add_up():
    _, batch = recorded(0)
    whole = our_loss(batch, "beta_norm", "seq-mean-token-sum")[1]
    parts = [{k: v[rows] for k, v in batch.items()} for rows in (slice(0, 3), slice(3, 8))]
    apart = [our_loss(part, "beta_norm", "seq-mean-token-sum")[1] for part in parts]
    torch.testing.assert_close(torch.cat(apart), whole)
    none = {"dp_size": 1, "batch_num_tokens": None, "global_batch_size": None}
    alone = our_loss(batch, "beta_norm", "seq-mean-token-sum", info=none)[1]
    torch.testing.assert_close(alone * 8 * 2 / 20, whole)


def test_bounds_and_the_fixed_length_are_the_actors():
    _, batch = recorded(0)
    tight, wide = (our_loss(batch, "grpo", "seq-mean-token-mean", e, e) for e in (0.01, 9.0))
    assert tight[2]["actor/pg_clipfrac"] > 0.2
    assert wide[2]["actor/pg_clipfrac"] == 0.0
    assert tight[2]["actor/ppo_kl"] > 0
    six = our_loss(batch, "dr_grpo", "seq-mean-token-sum-norm")[1]
    twelve = our_loss(batch, "dr_grpo", "seq-mean-token-sum-norm", info={"loss_scale_factor": 12})[1]
    torch.testing.assert_close(twelve, six / 2)


def test_a_response_of_the_whole_width_counts_as_cut():
    """ADORA leaves it out of the wrong ones that the right ones are longer than."""
    mask = torch.ones(4, 4, dtype=torch.int64)
    mask[0, 3:], mask[2, 1:], mask[3, 2:] = 0, 0, 0
    rewards = torch.zeros(4, 4)
    rewards[0, 2] = 1.0
    given = {"token_level_rewards": rewards, "response_mask": mask, "index": ["x"] * 4}
    weighted = verl.advantage("adora", criterion="length")(**given)[0]
    torch.testing.assert_close(
        weighted, 2.0 * verl.advantage("grpo")(**given)[0]
    )  # 3 > mean(1, 2), without the cut 4
    everything = torch.ones(4, 5, dtype=torch.int64)
    everything[:, 4] = 0
    everything[:, :4] = mask
    rewards = torch.nn.functional.pad(rewards, (0, 1))
    given |= {"token_level_rewards": rewards, "response_mask": everything}
    shorter = verl.advantage("adora", criterion="length")(**given)[0]  # 3 > mean(4, 1, 2) still
    torch.testing.assert_close(shorter, 2.0 * verl.advantage("grpo")(**given)[0])


@pytest.mark.parametrize(
    ("name", "given", "says"),
    [
        ("sft", {}, "demonstrations"), ("ppo", {}, "a critic"), ("dapo", {}, "other groups"), ("copg", {}, "whole groups"),
        ("copo", {}, "final answers"), ("clip_cov", {}, "a step of its own"), ("gdpo", {}, "components of each response"),
        ("minirl", {"replay": "R3"}, "a step of its own"), ("gprpo", {}, "unknown method"),
        ("grpo", {"kl": 0.1}, "give kl as kl_loss_coef"), ("grpo", {"clip_low": 0.1}, "give clip_low as clip_ratio_low"),
        ("grpo", {"entropy": 0.1}, "give entropy as entropy_coeff"),
    ],
)  # fmt: skip
def test_what_verls_loop_cannot_give_is_refused(name, given, says):
    for make in (verl.advantage, verl.policy_loss):
        with pytest.raises(ConfigError, match=says):
            make(name, **given)


def test_another_mean_is_refused():
    _, batch = recorded(0)
    with pytest.raises(
        ConfigError, match=r"offrl_grpo takes its mean as .*=seq-mean-token-mean, got token-mean"
    ):
        our_loss(batch, "grpo", "token-mean")


def fake(monkeypatch, version="0.9.1"):
    core = types.ModuleType("verl.trainer.ppo.core_algos")
    core.ADV_ESTIMATOR_REGISTRY, core.POLICY_LOSS_REGISTRY = {"grpo": 1}, {"vanilla": 1}
    ppo = types.ModuleType("verl.trainer.ppo")
    ppo.core_algos = core
    for name, module in {
        "verl": types.ModuleType("verl"),
        "verl.trainer": types.ModuleType("verl.trainer"),
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "verl.trainer.ppo", ppo)
    monkeypatch.setitem(sys.modules, "verl.trainer.ppo.core_algos", core)
    monkeypatch.setattr(metadata, "version", lambda name: version)
    return core


def test_the_hook_registers_every_method_that_can_run(monkeypatch):
    core = fake(monkeypatch)
    importlib.reload(verl)
    names = {f"offrl_{name}" for name in verl.runnable()}
    assert set(core.ADV_ESTIMATOR_REGISTRY) == {"grpo"} | names
    assert set(core.POLICY_LOSS_REGISTRY) == {"vanilla"} | names
    assert {"offrl_beta_norm", "offrl_minirl", "offrl_adora", "offrl_gmpo"} <= names
    assert {name for name in METHODS if "verl" in runs_in(name)} == set(verl.runnable())
    rewards, mask = torch.tensor([[0.0, 1.0], [0.0, 0.0]]), torch.ones(2, 2)
    found = core.ADV_ESTIMATOR_REGISTRY["offrl_dr_grpo"](
        token_level_rewards=rewards, response_mask=mask, index=[7, 7]
    )
    assert found[0].tolist() == [[0.5, 0.5], [-0.5, -0.5]]


def test_settings_of_ones_own_replace_the_defaults(monkeypatch):
    core = fake(monkeypatch)
    verl.register("beta_norm", high=2.0)
    given = {
        "token_level_rewards": torch.tensor([[2.0], [0.0]]),
        "response_mask": torch.ones(2, 1),
        "index": [0, 0],
    }
    assert core.ADV_ESTIMATOR_REGISTRY["offrl_beta_norm"](**given)[0].tolist() == [[0.5], [-0.5]]


def test_versions_and_a_missing_verl(monkeypatch):
    fake(monkeypatch, "0.10.0")
    with pytest.raises(ConfigError, match=r"verl 0.10.0 is installed.*tested with 0.9 to below 0.10"):
        verl.register("grpo")
    monkeypatch.setitem(sys.modules, "verl.trainer.ppo", None)
    with pytest.raises(MissingExtraError, match=r"offrl\[verl\]"):
        verl.register("grpo")


def test_native_entries_name_known_methods():
    assert set(NATIVE) <= set(METHODS)
    assert all(set(entry) <= {"trl", "verl"} and all(entry.values()) for entry in NATIVE.values())
