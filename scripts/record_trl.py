"""Record losses and gradients of TRL's trainers on random ragged batches, in an environment that has TRL.

python scripts/record_trl.py tests/llm/integrations/trl.json
"""

import json
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import trl
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.rloo_trainer import RLOOTrainer

CASES: dict[str, dict[str, Any]] = {
    "grpo": {"loss_type": "grpo"},
    "grpo with kl": {"loss_type": "grpo", "beta": 0.1},
    "dr_grpo": {"loss_type": "dr_grpo"},
    "dapo": {"loss_type": "dapo", "epsilon_high": 0.28},
    "gspo": {
        "loss_type": "grpo",
        "importance_sampling_level": "sequence",
        "epsilon_low": 3e-4,
        "epsilon_high": 4e-4,
    },
    "cispo": {"loss_type": "cispo", "epsilon_high": 1.28},
    "sapo": {"loss_type": "sapo"},
    "rloo": {"loss_type": "rloo"},
}
ROWS, LENGTH, PARTS, LONGEST = 8, 7, 2, 9


def batch(seed: int, on_policy: bool) -> dict[str, torch.Tensor]:
    """Two groups of four, ragged; ratios beyond both bounds unless on-policy."""
    g = torch.Generator().manual_seed(seed)
    new = -torch.rand(ROWS, LENGTH, generator=g, dtype=torch.float64) * 3
    spread = 0.0 if on_policy else 0.3
    old = new - spread * torch.randn(ROWS, LENGTH, generator=g, dtype=torch.float64)
    ref = new - 0.5 * torch.randn(ROWS, LENGTH, generator=g, dtype=torch.float64)
    lengths = torch.randint(1, LENGTH + 1, (ROWS,), generator=g)
    mask = (torch.arange(LENGTH) < lengths[:, None]).long()
    advantages = torch.randn(ROWS, generator=g, dtype=torch.float64)
    return {"new": new, "old": old, "ref": ref, "mask": mask, "advantages": advantages}


def fake(case: dict[str, Any], new: torch.Tensor) -> SimpleNamespace:
    """What the loss reads of a trainer."""
    args = SimpleNamespace(
        delta=None,
        use_bias_correction_kl=False,
        sapo_temperature_pos=1.0,
        sapo_temperature_neg=1.05,
        steps_per_generation=PARTS,
    )
    accelerator = SimpleNamespace(
        num_processes=1,
        gather=lambda x: x,
        gather_for_metrics=lambda x: x,
        reduce=lambda x, reduction: x,
        sync_gradients=True,
    )
    made = {
        "args": args, "accelerator": accelerator, "model": SimpleNamespace(training=True),
        "beta": 0.0, "epsilon_low": 0.2,
        "epsilon_high": 0.2, "importance_sampling_level": "token", "top_entropy_quantile": 1.0, "use_vllm": False,
        "off_policy_mask_threshold": None, "current_gradient_accumulation_steps": PARTS, "aux_loss_enabled": False,
        "max_completion_length": LONGEST, "_entropy_bonus_enabled": False, "_metrics": {"train": defaultdict(list)},
        "_get_per_token_logps_and_entropies": lambda *a, **k: (new, torch.zeros_like(new), None),
    }  # fmt: skip
    return SimpleNamespace(**made | case)


def recorded(name: str, case: dict[str, Any], seed: int) -> dict[str, Any]:
    """One micro-batch of two: the loss that TRL adds to the update's, its gradient, and what went in."""
    data = batch(seed, on_policy=name == "rloo")
    new = data["new"].clone().requires_grad_()
    ids = torch.zeros(ROWS, LENGTH, dtype=torch.int64)
    tokens = int(data["mask"].sum()) + 11  # those of the other micro-batch
    inputs = {
        "prompt_ids": ids[:, :1], "prompt_mask": ids[:, :1] + 1, "completion_ids": ids, "completion_mask": data["mask"],
        "advantages": data["advantages"], "old_per_token_logps": data["old"], "ref_per_token_logps": data["ref"],
        "num_items_in_batch": torch.tensor(float(tokens)), "old_logps": (data["old"] * data["mask"]).sum(1),
    }  # fmt: skip
    trainer = RLOOTrainer if name == "rloo" else GRPOTrainer
    loss = trainer._compute_loss(fake(case, new), None, inputs)
    if name == "rloo":
        loss = loss / PARTS  # the Hugging Face Trainer's part
    loss.backward()
    given = {key: value.tolist() for key, value in data.items()}
    return given | {
        "name": name,
        "tokens": tokens,
        "loss": float(loss.detach()),
        "gradient": new.grad.tolist(),
    }


if __name__ == "__main__":
    found = [recorded(name, case, seed) for name, case in CASES.items() for seed in (0, 1)]
    text = json.dumps({"trl": trl.__version__, "parts": PARTS, "longest": LONGEST, "cases": found})
    Path(sys.argv[1]).write_text(text + "\n", encoding="utf-8")
