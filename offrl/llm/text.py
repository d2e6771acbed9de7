"""What the parts of the engine hand to each other: prompts, responses, and vocabularies of the tiny tasks."""

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

PAD, BOS, EOS = 0, 1, 2


class Words(Protocol):
    """What a task's tokens mean."""

    @property
    def pad(self) -> int:
        """What stands after the end of a demonstration."""

    def __len__(self) -> int: ...

    def text(self, ids: Tensor) -> str:
        """One row as text."""

    def tokenizer(self) -> Any:
        """As transformers knows it."""


@dataclass(frozen=True)
class Vocabulary:
    """Ids 0, 1, 2 are padding, begin and end; the symbols follow, one character each."""

    symbols: str
    pad: ClassVar[int] = PAD

    def __len__(self) -> int:
        return 3 + len(self.symbols)

    def ids(self, text: str) -> list[int]:
        """Of a text without special tokens."""
        return [3 + self.symbols.index(symbol) for symbol in text]

    def text(self, ids: Tensor) -> str:
        """One row as text: padding left out, the end shown as a full stop."""
        names = ["", "", ".", *self.symbols]
        return "".join(names[i] for i in ids.tolist())

    def tokenizer(self) -> Any:
        """The same as a transformers tokenizer, for saved models."""
        from tokenizers import Regex, Tokenizer
        from tokenizers.models import WordLevel
        from tokenizers.pre_tokenizers import Split
        from transformers import PreTrainedTokenizerFast

        names = ["<pad>", "<bos>", "<eos>", *self.symbols]
        model = Tokenizer(WordLevel({name: i for i, name in enumerate(names)}, unk_token="<pad>"))
        model.pre_tokenizer = Split(Regex("<eos>|."), "isolated")
        return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
            tokenizer_object=model, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
        )


@dataclass(frozen=True)
class Prompts:
    """N prompts, padded on the left."""

    tokens: Tensor
    """(N, P) int64."""
    mask: Tensor
    """(N, P) bool, False at padding."""
    limits: Tensor
    """(N,) int64, tokens of the longest response allowed."""
    ids: Tensor
    """(N,) int64, equal for equal prompts."""
    levels: Tensor
    """(N,) int64, difficulty from 1."""

    def __len__(self) -> int:
        return len(self.tokens)

    def rows(self, index: Tensor | slice) -> "Prompts":
        """Some of them."""
        return Prompts(*(getattr(self, field.name)[index] for field in dataclasses.fields(self)))

    def repeat(self, copies: int | Tensor) -> "Prompts":
        """Each ``copies`` times, or (N,) times each, equal ones beside each other."""
        return self.rows(torch.arange(len(self), device=self.tokens.device).repeat_interleave(copies))

    def to(self, device: torch.device | str) -> "Prompts":
        """On another device."""
        return Prompts(*(getattr(self, field.name).to(device) for field in dataclasses.fields(self)))


@dataclass(frozen=True)
class Responses:
    """One response a row, padded on the right."""

    tokens: Tensor
    """(N, T) int64."""
    mask: Tensor
    """(N, T) bool: tokens that were chosen, the end among them."""
    log_probs: Tensor
    """(N, T) of the policy that sampled, at its temperature; 0 outside the mask."""
    step_ids: Tensor | None = None
    """(N, T) int64, the turn that a chosen token belongs to, -1 elsewhere; None: there is one turn."""
    rewards: Tensor | None = None
    """(N, T) what an environment paid for a turn, at its last token; None: there is no environment."""
    cut: Tensor | None = None
    """(N,) bool, stopped by a limit; None: the end token tells."""
    segments: Tensor | None = None
    """(N, T) int64, the context that a token stands in, -1 where it was dropped from it; None: there is one."""
    contexts: Tensor | None = None
    """(N, S, C) what each context begins with, padded on the left; the first is the prompt."""
    context_mask: Tensor | None = None
    """(N, S, C) bool, False at padding and of contexts that a row does not have."""
    overlong: Tensor | None = None
    """(N,) bool: ran out of summaries."""

    @property
    def lengths(self) -> Tensor:
        """(N,) int64."""
        return self.mask.sum(dim=1)

    def row(self, index: int) -> Tensor:
        """The tokens of one, with what an environment said between them."""
        tokens = self.tokens[index]
        return tokens[self.mask[index] if self.step_ids is None else tokens != PAD]

    def rows(self, index: Tensor | slice) -> "Responses":
        """Some of them."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return Responses(**{name: x if x is None else x[index] for name, x in fields.items()})

    def to(self, device: torch.device | str) -> "Responses":
        """On another device."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return Responses(**{name: x if x is None else x.to(device) for name, x in fields.items()})

    @property
    def paid(self) -> Tensor:
        """(N,) sum of the environment's rewards."""
        return self.log_probs.new_zeros(len(self.tokens)) if self.rewards is None else self.rewards.sum(dim=1)


def stacked(parts: list[Prompts]) -> Prompts:
    """The rows of all parts, padded to the longest."""
    width = max(part.tokens.shape[1] for part in parts)

    def wide(x: Tensor) -> Tensor:
        return torch.nn.functional.pad(x, (width - x.shape[1], 0)) if x.dim() == 2 else x

    names = [field.name for field in dataclasses.fields(Prompts)]
    return Prompts(*(torch.cat([wide(getattr(part, name)) for part in parts]) for name in names))


def left_padded(rows: list[list[int]], width: int) -> tuple[Tensor, Tensor]:
    """(N, width) tokens and their mask."""
    tokens = torch.tensor([[PAD] * (width - len(row)) + row for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    return tokens, torch.arange(width) >= width - lengths[:, None]
