"""Policies: causal language models of transformers, tiny ones from random weights among them, and a table.

Others come by folder, GGUF file or ``hf:ID`` (``offrl.llm.pretrained``), any architecture whose logits are one product
of its last states: each is compared with its own plain forward pass when it is loaded.

``tiny:dense``   2 layers of width 64        ``tiny:medium``  4 layers of width 128
``tiny:moe``     dense with 4 experts, 2 active             ``tiny:table``   one row of logits a prefix (task t3)
"""

import inspect
import json
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from offrl.errors import ConfigError
from offrl.llm.lora import add_adapter
from offrl.llm.pretrained import folder_of, load_causal, require_transformers
from offrl.llm.tasks.prompts import PromptTask
from offrl.llm.tasks.string_target import LENGTH, SYMBOLS, StringTarget
from offrl.llm.tasks.task import Task
from offrl.llm.text import BOS, EOS, PAD, Words
from offrl.training.seeding import stream

PRESETS = ("tiny:dense", "tiny:medium", "tiny:moe", "tiny:table")
INITIAL_STD = 0.05
"""Of random weights. At transformers' 0.02, meant for wide models, states of tiny ones hardly depend on the prompt at
first, and policies collapse before they tell prompts apart."""
FORBIDDEN = -1e9
"""Logit of a token that must not be sampled; finite, so that 0 times it is 0."""


class LanguageModel(Protocol):
    """What sampling and scoring need of a model."""

    pad: int
    ends: Tensor
    """Ids that end a response."""

    @property
    def head(self) -> Tensor:
        """(V, H)."""

    @property
    def bias(self) -> Tensor:
        """(V,) added to the logits: ``FORBIDDEN`` at what may not be sampled."""

    def hidden(self, prompt_tokens: Tensor, prompt_mask: Tensor, tokens: Tensor, owners: Tensor) -> Tensor:
        """The states that predict each token of the responses, with gradients.

        Args:
            prompt_tokens: (N, P).
            prompt_mask: (N, P).
            tokens: (B, T).
            owners: (B,), which of the N prompts each response answers.

        Returns:
            (B, T, H).
        """

    def begin(self, prompt_tokens: Tensor, prompt_mask: Tensor, copies: int | Tensor) -> tuple[Tensor, Any]:
        """The states that predict the first tokens, (N copies, H), and what ``advance`` goes on from."""

    def advance(self, state: Any, tokens: Tensor, seen: Tensor | None = None) -> Tensor:
        """The states after one more token a row, (B,), or several, (B, K): -> (B, H); changes ``state``.

        Where (B, K) bool ``seen`` is given, the others are padding on the left of each row's own.
        """

    def narrow(self, state: Any, rows: Tensor) -> None:
        """Only these rows go on, (K,): changes ``state``."""


class Transformer(nn.Module):
    """A causal language model of transformers.

    Args:
        model: for instance a Qwen2ForCausalLM.
        allowed: bool, what may be sampled; ids beyond its end may not.
        pad: padding id.
        ends: ids that end a response.
    """

    forbidden: Tensor
    ends: Tensor

    def __init__(self, model: Any, allowed: Tensor, pad: int, ends: list[int]) -> None:
        super().__init__()
        self.model, self.pad = model, pad
        self.bf16 = False  # whether its layers compute in bfloat16
        self.adapters: tuple[
            Any, ...
        ] = ()  # peft's view of the same model, in a tuple so that it is no second module
        taken = inspect.signature(model.get_decoder().forward).parameters
        self.cache_name = "cache" if "cache" in taken else "past_key_values"
        self.takes_positions = "position_ids" in taken
        size = len(model.get_output_embeddings().weight)
        forbidden = torch.full((size,), FORBIDDEN)
        forbidden[: len(allowed)].masked_fill_(allowed[:size], 0.0)
        self.register_buffer("forbidden", forbidden, persistent=False)
        self.register_buffer("ends", torch.tensor(ends), persistent=False)
        self.eval()

    @property
    def head(self) -> Tensor:
        """(V, H)."""
        weight: Tensor = self.model.get_output_embeddings().weight
        return weight

    @property
    def bias(self) -> Tensor:
        """(V,), the model's own included."""
        own = getattr(self.model.get_output_embeddings(), "bias", None)
        return self.forbidden if own is None else self.forbidden + own

    def hidden(self, prompt_tokens: Tensor, prompt_mask: Tensor, tokens: Tensor, owners: Tensor) -> Tensor:
        """Each prompt is read once for all of its responses; see ``LanguageModel``."""
        states, cache = self._read(prompt_tokens, prompt_mask)
        first = states[owners, -1:]
        if tokens.shape[1] == 1:
            return first
        cache.batch_select_indices(owners)
        answer = tokens[:, :-1]
        seen = torch.cat([prompt_mask[owners], torch.ones_like(answer, dtype=torch.bool)], dim=1)
        return torch.cat([first, self._run(answer, seen, cache)], dim=1)

    def prompt_states(self, prompt_tokens: Tensor, prompt_mask: Tensor) -> Tensor:
        """(N, P, H), the last states of prompts."""
        return self._read(prompt_tokens, prompt_mask)[0]

    def begin(self, prompt_tokens: Tensor, prompt_mask: Tensor, copies: int | Tensor) -> tuple[Tensor, Any]:
        """Reads the prompts once; see ``LanguageModel``."""
        states, cache = self._read(prompt_tokens, prompt_mask)
        cache.batch_repeat_interleave(copies)
        seen = prompt_mask.repeat_interleave(copies, dim=0)
        return states[:, -1].repeat_interleave(copies, dim=0), {"cache": cache, "seen": seen}

    def advance(self, state: Any, tokens: Tensor, seen: Tensor | None = None) -> Tensor:
        """One pass; see ``LanguageModel``."""
        new = tokens.view(len(tokens), -1)
        there = torch.ones_like(new, dtype=torch.bool) if seen is None else seen
        state["seen"] = torch.cat([state["seen"], there], dim=1)
        return self._run(new, state["seen"], state["cache"])[:, -1]

    def narrow(self, state: Any, rows: Tensor) -> None:
        """Drops the others from the cache; see ``LanguageModel``."""
        state["cache"].batch_select_indices(rows)
        state["seen"] = state["seen"][rows]

    def _read(self, prompt_tokens: Tensor, prompt_mask: Tensor) -> tuple[Tensor, Any]:
        """States of all prompt tokens, and the cache after them."""
        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.config)
        return self._run(prompt_tokens, prompt_mask, cache), cache

    def _run(self, ids: Tensor, seen: Tensor, cache: Any) -> Tensor:
        """Last hidden states; ``seen`` is False at padding, which nothing may attend to."""
        new = ids.shape[1]
        options: dict[str, Any] = {"use_cache": True}
        options[self.cache_name] = cache
        if bool(seen.all()):
            first = seen.shape[1] - new
            positions = torch.arange(first, first + new, device=ids.device)[None]
        else:
            options["attention_mask"] = seen.long()
            positions = (seen.long().cumsum(dim=1) - 1).clamp(min=0)[:, -new:]
        if self.takes_positions:
            options["position_ids"] = positions
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=self.bf16):
            states: Tensor = self.model.get_decoder()(input_ids=ids, **options).last_hidden_state
        return states.to(self.bias.dtype)

    def save(self, directory: Path, task: Task) -> None:
        """A Hugging Face directory: the model, or the adapter alone, and the tokenizer."""
        for adapter in self.adapters:
            adapter.save_pretrained(directory, save_embedding_layers=False)  # "auto" would ask the network
        if not self.adapters:
            self.model.save_pretrained(directory)
        task.vocabulary.tokenizer().save_pretrained(directory)


class Table(nn.Module):
    """Logits for each prefix of a string of task t3, whatever the prompt: an exact, tiny policy."""

    bias: Tensor
    ends: Tensor
    head: Tensor

    def __init__(self, task: StringTarget, logits: Tensor | None = None) -> None:
        super().__init__()
        self.first, self.pad = task.first, PAD
        start = task.base_logits.float() if logits is None else logits
        self.logits = nn.Parameter(start.clone())
        size = len(task.vocabulary)
        head = torch.zeros(size, len(SYMBOLS))
        head[self.first : self.first + len(SYMBOLS)] = torch.eye(len(SYMBOLS))
        self.register_buffer("head", head, persistent=False)
        self.register_buffer(
            "bias", torch.zeros(size).masked_fill(~task.allowed, FORBIDDEN), persistent=False
        )
        self.register_buffer("ends", torch.tensor([EOS]), persistent=False)

    def hidden(self, prompt_tokens: Tensor, prompt_mask: Tensor, tokens: Tensor, owners: Tensor) -> Tensor:
        """The rows of each prefix; see ``LanguageModel``."""
        node = torch.zeros_like(tokens[:, 0])
        nodes = [node]
        for symbol in (tokens[:, :-1] - self.first).T:
            nodes.append(node := len(SYMBOLS) * node + symbol + 1)
        return self.logits[torch.stack(nodes, dim=1)]

    def begin(self, prompt_tokens: Tensor, prompt_mask: Tensor, copies: int | Tensor) -> tuple[Tensor, Any]:
        """The first row; see ``LanguageModel``."""
        node = torch.zeros_like(prompt_tokens[:, 0]).repeat_interleave(copies)
        return self.logits[node], {"node": node}

    def advance(self, state: Any, tokens: Tensor, seen: Tensor | None = None) -> Tensor:
        """The rows that many symbols further; see ``LanguageModel``."""
        new = tokens.view(len(tokens), -1)
        there = torch.ones_like(new, dtype=torch.bool) if seen is None else seen
        for symbol, counts in zip(new.T, there.T, strict=True):
            node = len(SYMBOLS) * state["node"] + symbol - self.first + 1
            state["node"] = node.where(counts, state["node"])
        return self.logits[state["node"]]

    def narrow(self, state: Any, rows: Tensor) -> None:
        """Drops the others; see ``LanguageModel``."""
        state["node"] = state["node"][rows]

    def save(self, directory: Path, task: Task) -> None:
        """``table.safetensors``."""
        from safetensors.torch import save_file

        directory.mkdir(parents=True, exist_ok=True)
        save_file({"logits": self.logits.detach().contiguous()}, directory / "table.safetensors")


def load_model(name: str, task: Task, seed: int, lora_rank: int = 0) -> Transformer | Table:
    """A preset with random weights of ``seed``, or a model from a run, a Hugging Face folder, a GGUF file or the hub.

    Args:
        name: of the model.
        task: that it is for.
        seed: of random weights.
        lora_rank: of an adapter to train instead of the weights; 0: none.

    Raises:
        ConfigError: an unknown name, or a model that the task does not fit.
        MissingExtraError: without transformers.
    """
    tabular = (folder_of(name) / "table.safetensors").is_file()
    if lora_rank and (name.startswith("tiny:") or tabular):
        raise ConfigError(f"{name} is too small for an adapter: leave --lora-rank out")
    if name.startswith("tiny:"):
        return _preset(name, task, seed)
    if tabular:
        from safetensors.torch import load_file

        return Table(_string_target(task), load_file(folder_of(name) / "table.safetensors")["logits"])
    model, words = load_causal(name), task.vocabulary
    size = len(model.get_input_embeddings().weight)
    if isinstance(task, PromptTask):
        if task.highest >= size:
            raise ConfigError(
                f"{name} knows {size} tokens, its tokenizer makes token {task.highest} of a prompt"
            )
        ends = [token for token in task.vocabulary.ends if token < size]
        policy = Transformer(model, task.allowed, task.vocabulary.filler, ends)
    else:
        if size != len(words):
            raise ConfigError(
                f"{name} has a vocabulary of {size}, task {task.name} of {len(words)}: "
                "it was made for another task"
            )
        if other := _other_words(name, words):
            raise ConfigError(
                f"{name} has another token for {other!r} than task {task.name}: it was made for another task"
            )
        policy = Transformer(model, task.allowed, PAD, [EOS])
    _check(policy, name, task)
    if lora_rank:
        policy.adapters = (add_adapter(model, lora_rank, str(folder_of(name)), seed),)
    return policy


def _other_words(name: str, words: Words) -> str:
    """A word of a task for which the tokenizer beside a model has another token; empty: there is none."""
    path = folder_of(name) / "tokenizer.json"
    if not path.is_file():
        return ""
    try:
        theirs = dict(json.loads(path.read_text(encoding="utf-8"))["model"]["vocab"])
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{path} is no tokenizer of words") from None
    own: dict[str, int] = words.tokenizer().get_vocab()
    return next((word for word, number in own.items() if theirs.get(word) != number), "")


@torch.no_grad()
def _check(policy: Transformer, name: str, task: Task) -> None:
    """Whether states, padding and cache do what they must, on two short prompts of unequal length.

    Raises:
        ConfigError: they do not, or the model is too short.
    """
    room = getattr(policy.model.config, "max_position_embeddings", None)
    if room is not None and room < task.max_prompt + task.max_response:
        raise ConfigError(
            f"{name} reads at most {room} tokens, but prompts of {task.max_prompt} and responses of "
            f"{task.max_response} are asked for"
        )
    ids = torch.arange(5, device=policy.bias.device)[None] % len(policy.bias)
    tokens = torch.cat([ids, ids.flip(1)])
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[1, :2] = False
    _, state = policy.begin(tokens[:, :-1], mask[:, :-1], 1)
    ours = policy.advance(state, tokens[:, -1]) @ policy.head.T + policy.bias
    rows = (tokens[:1], tokens[1:, 2:])
    theirs = torch.cat([policy.model(input_ids=row).logits[:, -1] for row in rows])
    scale = max(1.0, float(theirs.abs().max()))
    if float((ours - theirs)[:, policy.forbidden == 0].abs().max()) > 1e-3 * scale:
        raise ConfigError(
            f"{name} ({type(policy.model).__name__}) does more than one product after its last layer, or "
            "does not know padding on the left: it cannot be trained here"
        )


def _preset(name: str, task: Task, seed: int) -> Transformer | Table:
    if name == "tiny:table":
        return Table(_string_target(task))
    if name not in PRESETS:
        raise ConfigError(f"unknown model {name!r}; there are {', '.join(PRESETS)}, or a folder")
    require_transformers()
    from transformers import MixtralConfig, MixtralForCausalLM, Qwen2Config, Qwen2ForCausalLM

    layers, width = (4, 128) if name == "tiny:medium" else (2, 64)
    sizes: dict[str, Any] = {
        "vocab_size": len(task.vocabulary), "hidden_size": width, "intermediate_size": 2 * width,
        "num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 4,
        "max_position_embeddings": task.max_prompt + task.max_response, "tie_word_embeddings": False,
        "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS, "attn_implementation": "sdpa",
        "initializer_range": INITIAL_STD,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(seed, "model").initial_seed())
        if name == "tiny:moe":
            config = MixtralConfig(**sizes, num_local_experts=4, num_experts_per_tok=2)
            return Transformer(MixtralForCausalLM(config), task.allowed, PAD, [EOS])
        return Transformer(Qwen2ForCausalLM(Qwen2Config(**sizes)), task.allowed, PAD, [EOS])


def _string_target(task: Task) -> StringTarget:
    if not isinstance(task, StringTarget):
        raise ConfigError(f"tiny:table holds strings of {LENGTH} symbols: it is for task t3, not {task.name}")
    return task
