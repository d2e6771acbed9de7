"""Models and tokenizers of other origin: a Hugging Face directory, a GGUF file, or ``hf:ID`` of the hub.

Weights come from safetensors or GGUF, never from pickles, and no code of a model is run.
"""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from offrl.errors import ConfigError, MissingExtraError
from offrl.llm.lora import CONFIG, HUB, base_of, merged


class Subwords:
    """The tokenizer of a model, as a task's vocabulary.

    Args:
        tokenizer: of transformers.
        ends: ids that end a response, besides the tokenizer's own.
    """

    pad = -1
    """In demonstrations; no tokenizer has this id."""

    def __init__(self, tokenizer: Any, ends: list[int]) -> None:
        self._tokenizer = tokenizer
        own = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
        self.ends = sorted({*own, *ends})
        if not self.ends:
            raise ConfigError("the tokenizer has no end token: nothing could end a response")

    def __len__(self) -> int:
        return len(self._tokenizer)

    @property
    def filler(self) -> int:
        """What stands at padding: any id does, masks hide it."""
        return self.ends[0]

    def text(self, ids: Tensor) -> str:
        """One row as text, special tokens left out."""
        return str(self._tokenizer.decode(ids.tolist(), skip_special_tokens=True))

    def response(self, text: str) -> list[int]:
        """A response with its end."""
        return [*self._tokenizer(text, add_special_tokens=False).input_ids, self.ends[0]]

    def prompt(self, prompt: str | list[dict[str, str]], template: str) -> list[int]:
        """A text or messages as a prompt.

        Args:
            prompt: text, or messages with role and content.
            template: "auto" (the tokenizer's own chat template where it has one), "none", or a template.
        """
        own = getattr(self._tokenizer, "chat_template", None)
        if template == "none" or (template == "auto" and not own):
            if not isinstance(prompt, str):
                raise ConfigError(
                    "the prompts are messages, and the tokenizer has no chat template: pass one"
                )
            return list(self._tokenizer(prompt).input_ids)
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        given = {} if template == "auto" else {"chat_template": template}
        return list(
            self._tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=False, **given
            )
        )

    def tokenizer(self) -> Any:
        """As transformers knows it."""
        return self._tokenizer


def require_transformers() -> None:
    """The library, without its progress bars.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        from transformers.utils import logging
    except ImportError:
        raise MissingExtraError("transformers", "llm") from None
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def folder_of(name: str) -> Path:
    """Of a run its model, else what was named."""
    path = Path(name)
    return path / "model" if (path / "model").is_dir() else path


def load_tokenizer(name: str) -> Subwords:
    """The tokenizer beside a model.

    Raises:
        ConfigError: there is none.
    """
    if name.startswith("tiny:"):
        raise ConfigError(
            f"{name} has no tokenizer: prompts of text need a Hugging Face model or a GGUF file"
        )
    require_transformers()
    from transformers import AutoTokenizer

    where, options = _where(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, **options)
    except Exception as error:  # whatever a foreign file makes the libraries raise
        raise ConfigError(f"{name} has no tokenizer that can be read: {_first_line(error)}") from None
    return Subwords(tokenizer, _ends(name))


def load_causal(name: str) -> Any:
    """A causal language model in float32; a saved adapter comes merged into its base.

    Raises:
        ConfigError: there is none, or only as a pickle, or without some of its weights.
    """
    folder = folder_of(name)
    if (folder / CONFIG).is_file():
        return merged(load_causal(base_of(folder)), folder)
    require_transformers()
    from transformers import AutoModelForCausalLM

    where, options = _where(name)
    if "gguf_file" not in options:
        options["use_safetensors"] = True
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # converting GGUF shows a bar that nothing turns off
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                where, dtype=torch.float32, output_loading_info=True, **options
            )
    except Exception as error:  # whatever a foreign file makes the libraries raise
        raise ConfigError(f"{name} cannot be loaded: {_first_line(error)}") from None
    model, found = loaded
    if missing := sorted(found["missing_keys"]):  # transformers would draw them at random
        raise ConfigError(f"{name} lacks {len(missing)} of its weights, {missing[0]} among them")
    return model


def export(run: Path, out: Path) -> None:
    """A run's model, whole, and its tokenizer as a Hugging Face folder.

    Args:
        run: of a language model.
        out: a folder that does not exist or is empty.

    Raises:
        ConfigError: no such model, or a folder with something in it.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists: a model is written into a new folder")
    if not (run / "model").is_dir():
        raise ConfigError(f"{run} is not the run of a language model")
    if (run / "model" / "table.safetensors").is_file():
        raise ConfigError(f"{run} trained tiny:table, which is no model of Hugging Face")
    model, words = load_causal(str(run)), load_tokenizer(str(run))
    model.save_pretrained(out)
    words.tokenizer().save_pretrained(out)


def _where(name: str) -> tuple[str, dict[str, Any]]:
    """What transformers calls a model, and how it may load it."""
    options: dict[str, Any] = {"trust_remote_code": False}
    if name.startswith(HUB):
        return name.removeprefix(HUB), options
    path = folder_of(name)
    options["local_files_only"] = True
    if path.suffix == ".gguf" and path.is_file():
        return str(path.parent), options | {"gguf_file": path.name}
    if (path / "command.txt").is_file():  # a run, and not its model
        raise ConfigError(
            f"{name} has no language model: it is a run of something else, or stopped before its first checkpoint"
        )
    if not ((path / "config.json").is_file() or (path / CONFIG).is_file()):
        raise ConfigError(
            f"{name!r} is neither a folder with a model, a GGUF file, hf:ID, nor tiny:dense, tiny:medium, "
            "tiny:moe, tiny:table"
        )
    return str(path), options


def _ends(name: str) -> list[int]:
    """More ids that end a response, from the generation settings beside a model; an adapter's are its base's."""
    if name.startswith(HUB):
        from transformers import GenerationConfig

        try:
            found = GenerationConfig.from_pretrained(name.removeprefix(HUB)).eos_token_id
        except OSError:  # it has none
            found = None
    else:
        folder = Path(_where(name)[0])
        path = folder / "generation_config.json"
        if not path.is_file() and (folder / CONFIG).is_file():
            return _ends(base_of(folder))
        try:
            found = (
                json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.is_file() else None
            )
        except (ValueError, AttributeError) as error:
            raise ConfigError(f"{path} is no settings of generation: {error}") from None
    ids = found if isinstance(found, list) else [] if found is None else [found]
    if not all(type(number) is int for number in ids):
        raise ConfigError(f"{name} is generated to the end {found!r}, which is no id of a token")
    return [number for number in ids if number >= 0]  # some say -1 for none


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
