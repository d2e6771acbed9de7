"""Prompt rules inside TRL: rows, budgets and hints on a stand-in for its trainer, and the names it must have where it is installed."""

import inspect
from types import SimpleNamespace

import pytest
import torch

from offrl.errors import ConfigError
from offrl.llm.integrations.trl_prompts import Draws, PromptRules, budgets, rescue, subclass, trainer
from offrl.llm.prompts.knapsack import even
from offrl.llm.prompts.vas import VAS

ROWS = [{"prompt": f"p{i}"} for i in range(6)]


class Base:
    """As much of TRL's trainer as the rules use; a completion is right if its text is in ``can``."""

    num_generations, num_iterations, processes = 4, 1, 1
    can: set = set()

    def __init__(self, *, rollout_func, train_dataset):
        self.rollout_func, self.train_dataset = rollout_func, train_dataset
        self.accelerator = SimpleNamespace(num_processes=self.processes, device="cpu")
        self.args = SimpleNamespace(seed=0, steps_per_generation=2, generation_batch_size=8)
        self.state = SimpleNamespace(global_step=5, max_steps=10)
        self.model = SimpleNamespace(training=True)
        self.processing_class = SimpleNamespace(batch_decode=lambda ids, skip_special_tokens: list(ids))
        self.asked = []

    def _tokenize_prompts(self, prompts):
        return [list(prompt) for prompt in prompts], None, {}

    def _generate_single_turn(self, ids, images, fields, count):
        assert (images, fields, count) == (None, {}, 1)
        self.asked.append(["".join(row) for row in ids])
        return self.asked[-1], [[-0.1] for _ in ids]

    def _generate_and_score_completions(self, inputs):
        self.output = self.rollout_func([row["prompt"] for row in inputs], self)
        ids = self._group_ids(len(inputs))
        rewards = torch.tensor([float(text in self.can) for text in self.output["completion_ids"]])
        return {"ids": ids, "advantages": rewards + 1.0, "inputs": inputs}

    def _get_train_sampler(self, dataset=None):
        return "plain"

    def _group_ids(self, count):
        return torch.arange(count) // self.num_generations


def made(can=(), **rules):
    solved = lambda prompt, text: text in can  # noqa: E731
    own = subclass(Base, PromptRules(solved=solved, **rules))(train_dataset=ROWS)
    own.can = set(can)
    return own


def inputs(*prompts, group=4):
    return [{"prompt": p} for p in prompts for _ in range(group)]


def hints(prompt):
    return [f"{prompt}+{j}" for j in (1, 2, 3)]


def test_budgets_are_the_knapsacks_with_the_average_for_unknown_prompts():
    rates = torch.tensor([0.5, 0.05, torch.nan, 0.97]).double()
    assert budgets(rates, 4, 2, 128) == [7, 3, 4, 2]


def test_a_budget_changes_how_often_prompts_stand_in_the_batch():
    own = made(can={"p0"}, budget=(2, 16))
    first = own._generate_and_score_completions(inputs("p0", "p1"))
    assert own.sizes == [4, 4]
    assert torch.equal(first["advantages"][4:], torch.ones(4))
    own.history.counts[:2] = torch.tensor([[30.0, 0.0], [1.0, 9.0]])
    second = own._generate_and_score_completions(inputs("p0", "p1"))
    assert own.sizes == [2, 6]
    assert second["ids"].tolist() == [0, 0, *[1] * 6]
    want = torch.tensor([2.0] * 2 + [1.0] * 6) * even(second["ids"])
    torch.testing.assert_close(second["advantages"], want)
    assert len({id(row) for row in second["inputs"]}) == 8
    assert own.history.counts[1].tolist() == pytest.approx([0.7, 0.7 * 9 + 6])


def test_hints_replace_the_first_row_of_a_failed_group():
    own = made(can={"p1", "p0+2", "p0+3"}, hints=hints)
    own._generate_and_score_completions(inputs("p0", "p1"))
    assert own.asked[1] == ["p0+1", "p0+2", "p0+3"]
    assert own.output["completion_ids"] == ["p0+2", "p0", "p0", "p0", *["p1"] * 4]
    assert own.output["prompt_ids"][0] == list("p0+2")
    assert own.history.counts[0].tolist() == [0.0, 4.0]  # hinted successes are not the policy's own


def test_a_hinted_response_is_judged_by_the_prompt_of_the_data_set():
    judged = []
    rules = PromptRules(solved=lambda prompt, text: judged.append((prompt, text)), hints=hints)
    own = subclass(Base, rules)(train_dataset=ROWS)
    own.can = set()
    own._generate_and_score_completions(inputs("p0"))
    assert judged == [("p0", "p0")] * 4 + [("p0", text) for text in hints("p0")]


def test_hints_begin_after_their_share_of_the_steps_and_never_in_evaluation():
    own = made(hints=hints, exempt=0.6)
    own._generate_and_score_completions(inputs("p0"))
    assert len(own.asked) == 1
    own.state.global_step = 6
    own._generate_and_score_completions(inputs("p0"))
    assert len(own.asked) == 3
    own.model.training = False
    own._generate_and_score_completions(inputs("p0"))
    assert len(own.asked) == 4
    assert own.sizes is None


def test_hinted_prompts_of_unequal_groups():
    asked, rows = rescue(["a", "a", "b", "b", "b", "c"], [0, 0, 0, 1, 0, 0], [2, 3, 1], hints)
    assert asked == [*hints("a"), *hints("c")]
    assert rows == [0, 0, 0, 5, 5, 5]


def test_the_sampler_repeats_prompts_and_batches_as_trls():
    own = made(share=0.5)
    draws = own._get_train_sampler()
    rows = list(draws)
    assert len(rows) == len(draws) == 3 * 2 * 4 * 2
    for batch in torch.tensor(rows).view(3, 2, 8):
        assert torch.equal(batch[0], batch[1])
        assert all(len(set(group.tolist())) == 1 for group in batch[0].view(2, 4))
    assert made(hints=hints)._get_train_sampler() == "plain"


def test_weights_follow_the_variance_of_what_was_seen():
    own = made(can={"p1"}, share=0.5)
    own._generate_and_score_completions(inputs("p0", "p1"))
    p = (0 + 1) / (4 + 2)
    want = torch.tensor([p * (1 - p), p * (1 - p), *[0.25] * 4]).double()
    torch.testing.assert_close(own.vas.weights, (want - want.min()) / (want.max() - want.min() + 1e-8))


def test_rules_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="no rule is given"):
        trainer("grpo", PromptRules(solved=lambda p, t: True))
    with pytest.raises(ConfigError, match="num_generations 4 must be within"):
        made(budget=(5, 9))
    two = type("Two", (Base,), {"processes": 2})
    with pytest.raises(ConfigError, match="one process"):
        subclass(two, PromptRules(solved=lambda p, t: True, hints=hints))(train_dataset=ROWS)


def test_draws_of_a_batch_that_the_pool_is_too_small_for():
    assert len(Draws(VAS(3, 0.5, 0.0, torch.Generator()), 4, 2, 1)) == 0


def test_trl_has_what_the_rules_replace():
    """Names and arguments in the installed TRL."""
    from trl import GRPOTrainer as grpo  # noqa: N813

    wanted = {
        "_generate_single_turn": ["prompt_ids", "images", "multimodal_fields", "num_generations"],
        "_tokenize_prompts": ["prompts"], "_get_train_sampler": ["dataset"],
        "_generate_and_score_completions": ["inputs"],
    }  # fmt: skip
    for name, arguments in wanted.items():
        assert list(inspect.signature(getattr(grpo, name)).parameters)[1 : 1 + len(arguments)] == arguments
    assert "rollout_func" in inspect.signature(grpo.__init__).parameters
    assert "required_keys" in inspect.getsource(grpo._generate)
