"""Adapters of low rank beside frozen weights, through peft: W x becomes W x + 2 B A x with B = 0 at first.

Source: arXiv:2106.09685.
Departures: the scale is 2 whatever the rank; all linear layers but the head; no dropout.
"""

import contextlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from offrl.errors import ConfigError, MissingExtraError
from offrl.training.seeding import stream

HUB = "hf:"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def add_adapter(model: Any, rank: int, base: str, seed: int) -> Any:
    """Freeze a model of transformers and put an adapter into it; returns peft's view of it, which saves the adapter.

    Args:
        model: changed in place.
        rank: of the adapter.
        base: where the model came from, to be found again.
        seed: of the adapter's random half.
    """
    peft = _peft()
    model.name_or_path = base = base.removeprefix(HUB)
    transposed = any(type(module).__name__ == "Conv1D" for module in model.modules())
    config = peft.LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=0.0, bias="none", task_type="CAUSAL_LM",
        target_modules="all-linear", fan_in_fan_out=transposed, base_model_name_or_path=base,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]), _without_their_deprecations():
        torch.manual_seed(stream(seed, "adapter").initial_seed())
        return peft.get_peft_model(model, config)


def base_of(folder: Path) -> str:
    """The model that a saved adapter belongs to: a path that exists, or a name on the hub.

    Raises:
        ConfigError: a path that is no more, or settings that name none.
    """
    try:
        base = str(json.loads((folder / CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"])
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{folder / CONFIG} does not name the model that the adapter belongs to") from None
    if Path(base).is_absolute() and not Path(base).exists():
        raise ConfigError(f"{folder} is an adapter of {base}, which is no longer there")
    return base if Path(base).exists() else HUB + base


def merged(model: Any, folder: Path) -> Any:
    """The base model with a saved adapter added to its weights.

    Raises:
        ConfigError: the adapter is a pickle, or not for this model.
    """
    if not (folder / WEIGHTS).is_file():
        raise ConfigError(f"{folder} has no {WEIGHTS}: adapters are read from safetensors only")
    peft = _peft()
    with _without_their_deprecations():
        try:
            whole = peft.PeftModel.from_pretrained(model, folder).merge_and_unload()
        except Exception as error:  # whatever a foreign file makes the libraries raise
            raise ConfigError(f"{folder} cannot be merged: {' '.join(str(error).split())[:200]}") from None
    return whole.requires_grad_(True)


@contextlib.contextmanager
def _without_their_deprecations() -> Iterator[None]:
    """What peft and transformers have to tell each other is not for users."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise MissingExtraError("peft", "llm") from None
    return peft
