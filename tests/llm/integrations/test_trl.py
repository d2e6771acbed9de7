"""The plug-in for TRL: its losses and gradients, recorded by scripts/record_trl.py, and what it replaces."""

import dataclasses
import json
import sys
import types
from collections import defaultdict
from importlib import metadata
from pathlib import Path

import pytest
import torch

from offrl.errors import ConfigError, MissingExtraError
from offrl.llm.integrations import trl
from offrl.llm.methods import METHODS, load_method, runs_in

RECORDED = json.loads(Path(__file__).with_name("trl.json").read_text())


def tensors(case):
    new, old, ref, advantages = (
        torch.tensor(case[key], dtype=torch.float64) for key in ("new", "old", "ref", "advantages")
    )
    inputs = {"completion_mask": torch.tensor(case["mask"]), "advantages": advantages}
    inputs |= {"old_per_token_logps": old, "ref_per_token_logps": ref}
    return new.requires_grad_(), inputs


def ours(case, name=None, **changed):
    name, _, with_kl = (name or case["name"]).partition(" with ")
    method = load_method(name)
    estimator = method.estimator(method.config(**({"kl": 0.1} if with_kl else {})), RECORDED["longest"])
    new, inputs = tensors(case)
    value, surrogate = trl.loss(
        estimator, new, inputs | changed, parts=RECORDED["parts"],
        tokens=torch.tensor(float(case["tokens"])), entropy=torch.zeros_like(new),
    )  # fmt: skip
    value.backward()
    return new.grad, float(value.detach()), float(surrogate)


@pytest.mark.parametrize("case", RECORDED["cases"], ids=lambda case: case["name"])
def test_losses_and_gradients_are_trls(case):
    gradient, value, surrogate = ours(case)
    want = torch.tensor(case["gradient"], dtype=torch.float64)
    assert float(want.abs().max()) > 1e-3
    torch.testing.assert_close(gradient, want, atol=1e-6, rtol=0)
    if case["name"] == "cispo":  # its loss is the score-function one
        assert value == pytest.approx(case["loss"], abs=1e-6)
    elif case["name"] not in ("grpo with kl", "sapo", "rloo"):
        assert surrogate == pytest.approx(case["loss"], abs=1e-6)


def test_the_batches_reach_both_bounds_and_are_ragged():
    for case in RECORDED["cases"]:
        if case["name"] in ("rloo", "cispo", "sapo"):
            continue
        new, inputs = tensors(case)
        mask = inputs["completion_mask"].bool()
        ratio = (new - inputs["old_per_token_logps"]).exp().detach()[mask]
        assert (ratio > 1.3).any()
        assert (ratio < 0.7).any()
        assert len(mask.sum(1).unique()) > 2


def test_methods_differ_where_they_should():
    case = next(case for case in RECORDED["cases"] if case["name"] == "grpo")
    gradients = [ours(case, name)[0] for name in ("grpo", "dr_grpo", "dapo", "gspo", "cispo", "sapo", "gmpo")]
    for i, one in enumerate(gradients):
        assert not any(torch.allclose(one, other, atol=1e-6) for other in gradients[:i])


def test_tool_tokens_are_masked():
    case = RECORDED["cases"][0]
    tool = torch.ones(len(case["mask"]), len(case["mask"][0]), dtype=torch.int64)
    tool[:, 0] = 0
    gradient, _, _ = ours(case, tool_mask=tool)
    assert (gradient[:, 0] == 0).all()
    assert (gradient[:, 1:] != 0).any()


def test_advantages_are_those_of_the_method():
    rewards, mask = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 1.0]), torch.ones(6, 3, dtype=torch.bool)
    ids = torch.arange(6) // 3
    found = {
        name: trl.advantages(
            load_method(name).estimator(load_method(name).config(), 3),
            rewards[:, None],
            ids,
            mask,
            torch.zeros(6, dtype=torch.bool),
        )
        for name in ("dr_grpo", "rloo")
    }
    torch.testing.assert_close(found["dr_grpo"], torch.tensor([2 / 3, -1 / 3, -1 / 3, 0, 0, 0]))
    torch.testing.assert_close(found["rloo"], torch.tensor([1.0, -0.5, -0.5, 0, 0, 0]))


MASKS = {"completion_mask": "mask", "tool_mask": "tool"}


@dataclasses.dataclass
class Args:
    """Settings as TRL's trainer has them."""

    steps_per_generation: int = 2
    epsilon: float = 0.2
    loss_type: str = "dapo"
    mask_truncated_completions: bool = False


class Base:
    """As much of TRL's trainer as the plug-in uses."""

    max_completion_length, beta, num_generations, num_generations_eval = 9, 0.0, 4, 2
    current_gradient_accumulation_steps, reward_weights = 2, torch.tensor([1.0, 2.0])

    def __init__(self, **args):
        self.args, self.model = Args(**args), types.SimpleNamespace(training=True)
        self.accelerator = types.SimpleNamespace(
            gather=lambda x: x,
            pad_across_processes=lambda x, dim: x,
            num_processes=1,
            process_index=0,
            device="cpu",
        )
        self._metrics = {"train": defaultdict(list)}

    def _calculate_rewards(self):
        return torch.tensor([[1.0, 0.5], [0.0, float("nan")]] * 4)

    def _generate_and_score_completions(self, case):
        self._calculate_rewards()
        return {name: torch.tensor(case[key]) for name, key in MASKS.items() if key in case} | {
            "advantages": None
        }

    def _get_per_token_logps_and_entropies(self, model, *args, **kwargs):
        return self.new, torch.zeros_like(self.new), None


def test_the_subclass_puts_its_advantages_and_loss_in_place(monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", types.SimpleNamespace(GRPOTrainer=Base))
    monkeypatch.setattr(metadata, "version", lambda name: "1.16.3")
    made = trl.trainer("dr_grpo")()
    case = next(case for case in RECORDED["cases"] if case["name"] == "dr_grpo")
    output = made._generate_and_score_completions(case)
    assert output["advantages"].tolist() == [1.0, -1.0] * 4
    made.new, inputs = tensors(case)
    ids = torch.zeros_like(inputs["completion_mask"])
    inputs |= {
        "prompt_ids": ids,
        "prompt_mask": ids,
        "completion_ids": ids,
        "num_items_in_batch": torch.tensor(50.0),
    }
    value = made._compute_loss(types.SimpleNamespace(training=True), inputs)
    value.backward()
    torch.testing.assert_close(
        made.new.grad, torch.tensor(case["gradient"], dtype=torch.float64), atol=1e-6, rtol=0
    )
    assert made._metrics["train"]["surrogate"] == pytest.approx([case["loss"]])


class Weighted(Base):
    reward_weights = torch.tensor([1.0, -0.5, 0.0])

    def _calculate_rewards(self):
        return torch.tensor(
            [[1, 0, 3], [0, 2, 1], [1, 4, 0], [0, 0, 9], [0, 0, 1], [0, 6, 2], [1, 0, 0], [0, 0, 0]]
        ).float()


def test_groups_of_evaluations_have_their_own_size(monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", types.SimpleNamespace(GRPOTrainer=Weighted))
    monkeypatch.setattr(metadata, "version", lambda name: "1.16.3")
    made = trl.trainer("dr_grpo")()
    rewards = (made._calculate_rewards() * made.reward_weights).sum(1)
    for training, size in ((True, 4), (False, 2)):
        made.model.training = training
        found = made._generate_and_score_completions({"mask": [[1]] * 8})["advantages"]
        want = rewards.view(-1, size) - rewards.view(-1, size).mean(1, keepdim=True)
        torch.testing.assert_close(found, want.flatten())


@pytest.mark.parametrize(("own", "weights"), [((), (1.0, -0.5, 0.0)), ((2.0, 1.0, 1.0), (2.0, -1.0, 0.0))])
def test_gdpo_weighs_what_it_has_normalized(own, weights, monkeypatch):
    """By TRL's weights, as its own normalize_then_sum does, unless the method's settings have others."""
    monkeypatch.setitem(sys.modules, "trl", types.SimpleNamespace(GRPOTrainer=Weighted))
    monkeypatch.setattr(metadata, "version", lambda name: "1.16.3")
    made = trl.trainer("gdpo", load_method("gdpo").config(weights=own))()
    found = made._generate_and_score_completions({"mask": [[1]] * 8})["advantages"]
    each = made._calculate_rewards().view(2, 4, 3)
    normal = (each - each.mean(1, keepdim=True)) / (each.std(1, keepdim=True) + 1e-4)
    total = (normal * torch.tensor(weights)).sum(2).flatten()
    torch.testing.assert_close(found, (total - total.mean()) / (total.std() + 1e-4), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("sft", "demonstrations"), ("remax", "greedy responses"), ("ppo", "a critic"), ("dapo", "other groups"),
        ("copg", "whole groups"), ("copo", "final answers"), ("clip_cov", "a step of its own"),
        ("gprpo", "unknown method"),
    ],
)  # fmt: skip
def test_what_trls_loop_cannot_give_is_refused(name, says):
    with pytest.raises(ConfigError, match=says):
        trl.trainer(name)


def test_the_list_says_which_methods_run(monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", types.SimpleNamespace(GRPOTrainer=Base))
    monkeypatch.setattr(metadata, "version", lambda name: "1.16.3")
    for name in METHODS:
        if "trl" in runs_in(name):
            assert issubclass(trl.trainer(name), Base)
        else:
            with pytest.raises(ConfigError, match="TRL's loop does not give"):
                trl.trainer(name)


@pytest.mark.parametrize("width", [4, 6])
def test_rewards_of_steps_are_paid_at_the_end_and_advantages_are_of_tokens(width, monkeypatch):
    """REINFORCE++: of rewards 2 and 0 in turn, in responses of 1 and 3 tokens, every token of a response its own."""
    monkeypatch.setitem(sys.modules, "trl", types.SimpleNamespace(GRPOTrainer=Base))
    monkeypatch.setattr(metadata, "version", lambda name: "1.16.3")
    made = trl.trainer("reinforce_plus_plus")()
    lengths = torch.tensor([1, 3] * 4)
    mask = (torch.arange(width) < lengths[:, None]).long()
    found = made._generate_and_score_completions({"mask": mask.tolist()})["advantages"]
    each = torch.tensor([2.0, 0.0, 0.0, 0.0] * 4)  # 16 tokens
    high, low = ((x - each.mean()) / (each.std() + 1e-8) for x in (2.0, 0.0))
    want = torch.where(lengths[:, None] == 1, high, low) * mask
    torch.testing.assert_close(found * mask, want)
    log_probs = torch.full((8, width), -1.0, requires_grad=True)
    inputs = {"completion_mask": mask, "advantages": found}
    value, _ = trl.loss(
        made.estimator, log_probs, inputs, parts=1, tokens=torch.tensor(16.0), entropy=torch.zeros(8, width)
    )  # fmt: skip
    value.backward()
    torch.testing.assert_close(log_probs.grad, -want / 16)


def test_the_answers_of_tools_are_no_tokens_of_a_response(monkeypatch):
    """Not for a whitening over tokens; a response that they fill to the greatest length is cut all the same."""
    monkeypatch.setitem(sys.modules, "trl", types.SimpleNamespace(GRPOTrainer=Base))
    monkeypatch.setattr(metadata, "version", lambda name: "1.16.3")
    mask = (torch.arange(9) < torch.tensor([3, 9] * 4)[:, None]).long()
    tool = torch.ones(8, 9, dtype=torch.long)
    tool[1::2, 1:8] = 0  # of 9 tokens 2 are the model's
    own = mask * tool
    case = {"mask": mask.tolist(), "tool": tool.tolist()}
    found = trl.trainer("reinforce_plus_plus")()._generate_and_score_completions(case)["advantages"]
    each = torch.tensor([2.0] * 12 + [0.0] * 8)  # of 20 tokens
    high, low = ((x - each.mean()) / (each.std() + 1e-8) for x in (2.0, 0.0))
    torch.testing.assert_close(found * own, torch.where(torch.arange(8)[:, None] % 2 == 0, high, low) * own)
    seen = []
    monkeypatch.setattr(trl, "advantages", lambda *given, **more: seen.append(given[-1]) or torch.zeros(8))
    trl.trainer("grpo")()._generate_and_score_completions(case)
    assert seen[0].tolist() == [False, True] * 4


@pytest.mark.parametrize("name", ["reinforce", "rloo", "reinforce_plus_plus"])
def test_a_beta_that_no_loss_has_is_refused(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", types.SimpleNamespace(GRPOTrainer=Base))
    monkeypatch.setattr(metadata, "version", lambda name: "1.16.3")
    trl.trainer(name)()
    monkeypatch.setattr(Base, "beta", 0.1)
    with pytest.raises(ConfigError, match=f"{name} has its KL in the reward"):
        trl.trainer(name)()


def test_what_samples_is_the_old_policy_where_no_server_does():
    case = next(case for case in RECORDED["cases"] if case["name"] == "grpo")
    _, inputs = tensors(case)
    plain, *_ = ours(case, "minirl")
    as_sampled, *_ = ours(case, "minirl", sampling_per_token_logps=inputs["old_per_token_logps"])
    other, *_ = ours(case, "minirl", sampling_per_token_logps=inputs["old_per_token_logps"] + 0.5)
    torch.testing.assert_close(plain, as_sampled)
    assert not torch.allclose(plain, other)


def test_what_a_server_did_not_tell_is_taken_from_the_old_policy():
    case = next(case for case in RECORDED["cases"] if case["name"] == "grpo")
    _, inputs = tensors(case)
    known = inputs["old_per_token_logps"] + 0.5
    gaps = known.clone()
    gaps[0, 0] = torch.nan
    known[0, 0] = inputs["old_per_token_logps"][0, 0]
    for got, want in zip(
        ours(case, "minirl", sampling_per_token_logps=gaps),
        ours(case, "minirl", sampling_per_token_logps=known),
        strict=True,
    ):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("shape", ["tokens", "rows"])
def test_weights_for_a_servers_policy_multiply_the_advantages(shape):
    """TRL multiplies its losses with them, MiniRL's ratio has them already, and the KL is left alone."""
    case = next(case for case in RECORDED["cases"] if case["name"] == "grpo with kl")
    _, inputs = tensors(case)
    size = inputs["old_per_token_logps"].shape if shape == "tokens" else (len(inputs["advantages"]), 1)
    weights = torch.rand(size, generator=torch.Generator().manual_seed(0)).double()
    weights[0] = 0.0  # sequence_mask took it
    got = ours(case, "grpo with kl", importance_sampling_ratio=weights)
    want = ours(case, "grpo with kl", advantages=inputs["advantages"][:, None] * weights)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other)
    assert not torch.allclose(got[0], ours(case, "grpo with kl")[0])
    for one, other in zip(
        ours(case, "minirl", importance_sampling_ratio=weights), ours(case, "minirl"), strict=True
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("given", [{"epsilon": 0.1}, {"loss_type": "grpo"}])
def test_settings_of_trls_own_loss_are_refused(given, monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", types.SimpleNamespace(GRPOTrainer=Base))
    monkeypatch.setattr(metadata, "version", lambda name: "1.16.3")
    trl.trainer("grpo")(mask_truncated_completions=True)
    with pytest.raises(ConfigError, match=f"{next(iter(given))} of GRPOConfig has no effect"):
        trl.trainer("grpo")(**given)


def test_trl_has_the_settings_that_are_refused():
    from trl import GRPOConfig

    assert {*trl.IDLE} <= {field.name for field in dataclasses.fields(GRPOConfig)}


def test_truncated_completions_that_trl_masks_count_as_cut(monkeypatch):
    seen = {}
    monkeypatch.setitem(sys.modules, "trl", types.SimpleNamespace(GRPOTrainer=Base))
    monkeypatch.setattr(metadata, "version", lambda name: "1.16.3")
    monkeypatch.setattr(
        trl, "advantages", lambda e, c, ids, mask, cut, steps: seen.update(cut=cut) or torch.zeros(8)
    )
    lengths = torch.tensor([9, 0, 3, 1, 8, 9, 0, 2])
    mask = (torch.arange(9) < lengths[:, None]).long().tolist()
    trl.trainer("adora")()._generate_and_score_completions({"mask": mask})
    assert seen["cut"].tolist() == [True, True, False, False, False, True, True, False]


def test_each_reward_and_responses_that_were_cut():
    """What GDPO and ADORA read: the weighted rewards apart, and which responses are of the greatest length."""
    two = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 2.0], [0.0, 0.0]])
    mask = torch.arange(4) < torch.tensor([[2], [4], [3], [1]])

    def found(name, longest, **given):
        method = load_method(name)
        return trl.advantages(
            method.estimator(method.config(**given), 4),
            two,
            torch.zeros(4).long(),
            mask,
            mask.sum(1) >= longest,
        )

    got = found("gdpo", 4)
    torch.testing.assert_close(got[0], got[1], atol=1e-3, rtol=0)  # one reward each, whatever its scale
    assert abs(float(found("grpo", 4)[0] - found("grpo", 4)[1])) > 0.1
    weighted = found("adora", 4, criterion="length", correct=0.5) / found("grpo", 4)
    torch.testing.assert_close(weighted, torch.full((4,), 2.0))


def test_settings_and_versions_that_do_not_fit(monkeypatch):
    with pytest.raises(ConfigError, match="as beta of GRPOConfig"):
        trl.trainer("grpo", load_method("grpo").config(kl=0.1))
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(MissingExtraError, match=r"offrl\[trl\]"):
        trl.trainer("grpo")
    monkeypatch.setitem(sys.modules, "trl", types.SimpleNamespace(GRPOTrainer=Base))
    monkeypatch.setattr(metadata, "version", lambda name: "1.17.0")
    with pytest.raises(ConfigError, match=r"trl 1.17.0 is installed.*tested with 1.16 to below 1.17"):
        trl.trainer("grpo")
