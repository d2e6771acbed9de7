"""Options of the parts: what has no effect, or no meaning, is refused in one line."""

import pytest

from offrl.errors import ConfigError
from offrl.llm.prompts.options import PromptOptions


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"vas_every": 9}, "vas_every has no effect without --sampler vas"),
        ({"budget_low": 3}, "budget_low has no effect without --allocator knapsack"),
        ({"predictor": "v0"}, "predictor has no effect without --allocator knapsack"),
        ({"allocator": "knapsack", "v0_context": 64}, "v0_context has no effect without --predictor v0"),
        (
            {"allocator": "knapsack", "predictor": "v0", "history_decay": 0.5},
            "history_decay has no effect without",
        ),
        ({"history_decay": 0.5}, "history_decay has no effect without --allocator knapsack"),
        ({"stage_replay": 0.2}, "stage_replay has no effect without --curriculum stages"),
        ({"hints": "h"}, "hints has no effect without --scaffold hints"),
        ({"hint_exempt": 0.5}, "hint_exempt has no effect without --scaffold hints"),
        (
            {"curriculum": "stages", "stage_patience": 4},
            "stage_patience has no effect with stage_advance steps",
        ),
        ({"curriculum": "stages", "stage_every": 4}, "stage_every has no effect with stage_advance steps"),
        (
            {"curriculum": "stages", "stage_advance": "plateau", "stage_steps": 4},
            "stage_steps has no effect with",
        ),
        ({"curriculum": "stages", "stage_bounds": (3, 3)}, "stage_bounds must rise"),
        ({"sampler": "vas", "vas_share": 1.5}, "vas_share must be within 0 and 1"),
        ({"sampler": "vas", "vas_rollouts": 1}, "vas_rollouts must be 2 or more, got 1: one never varies"),
        ({"allocator": "knapsack", "predictor": "v0", "v0_context": 15}, "v0_context must be 16 or more"),
        ({"pool": -1}, "pool must be 0 or more"),
        ({"allocator": "knapsack", "history_decay": 1.0}, "history_decay must be 0 or more and below 1"),
    ],
)
def test_refusals(given, says):
    with pytest.raises(ConfigError, match=says):
        PromptOptions(**given)


def test_chosen_parts_are_named_by_their_options():
    chosen = PromptOptions(sampler="vas", allocator="knapsack", curriculum="stages", scaffold="hints")
    assert chosen.chosen_parts == [
        "--sampler vas", "--allocator knapsack", "--curriculum stages", "--scaffold hints",
    ]  # fmt: skip
    assert PromptOptions(pool=5).chosen_parts == []
    everything = PromptOptions(
        curriculum="stages", stage_advance="plateau", stage_every=2, stage_patience=2, stage_replay=0.1
    )
    assert everything.stage_every == 2
