"""A screen as a GUI agent sees it: the next action of an instruction of one to six operations, with a reward in parts.

Prompt: three widgets b, c, f, each with the row and the column of its left upper corner on a 6 x 6 grid, the
instruction, and how many of its operations are done: ``b12c40f35|bufc|2=``. A widget covers 2 x 2 cells. Operations
and their actions:

    b, c, f   click that widget      C row column, a cell of it
    u, d      swipe up or down       S u or S d
    x, y, z   type that letter       T x

and then the end. Rewards, CRAFT-GUI's composition with weights of ours: 0.1 for a well-formed action, 0.3 more for
the right kind, 0.6 more for the right parameters of the right kind. The difficulty is the number of operations: more
of them have to be counted.
"""

import torch
from torch import Tensor

from offrl.llm.tasks.task import only
from offrl.llm.text import BOS, EOS, PAD, Prompts, Responses, Vocabulary, left_padded

SIZE, WIDGETS, SWIPES, LETTERS, ACTIONS = 6, "bcf", "ud", "xyz", "CST"
OPERATIONS = WIDGETS + SWIPES + LETTERS
FORMAT, KIND, PARAMETERS = 0.1, 0.3, 0.6


class Screen:
    """Prompts of 1 to 6 operations, all equally likely."""

    name, levels, max_prompt, max_response = "gui", 6, 20, 4

    def __init__(self) -> None:
        digits = "0123456789"[:SIZE]
        self.vocabulary = Vocabulary("=|" + digits + OPERATIONS + ACTIONS)
        ids = self.vocabulary.ids
        self.zero, self.first_action = ids("0")[0], ids("C")[0]
        self.allowed = only(self.vocabulary, [EOS, *ids(digits + SWIPES + LETTERS + ACTIONS)])

    def prompts(self, count: int, generator: torch.Generator) -> Prompts:
        """Random screens, instructions and progress."""

        def draw(high: int, *shape: int) -> list[list[int]]:
            found: list[list[int]] = torch.randint(high, (count, *shape), generator=generator).tolist()
            return found

        corners = draw(SIZE - 1, 2 * len(WIDGETS))
        operations = draw(len(OPERATIONS), self.levels)
        lengths = torch.randint(1, self.levels + 1, (count,), generator=generator)
        done = (torch.rand(count, generator=generator) * lengths).long()
        rows = []
        for at, asked, length, past in zip(corners, operations, lengths.tolist(), done.tolist(), strict=True):
            screen = "".join(f"{w}{at[2 * i]}{at[2 * i + 1]}" for i, w in enumerate(WIDGETS))
            text = f"{screen}|{''.join(OPERATIONS[i] for i in asked[:length])}|{past}="
            rows.append([BOS, *self.vocabulary.ids(text)])
        tokens, mask = left_padded(rows, self.max_prompt)
        ids = torch.zeros_like(lengths)
        for column in tokens.T:  # a polynomial modulo 2^64: the places are too many to be counted exactly
            ids = 6364136223846793005 * ids + column
        return Prompts(tokens, mask, torch.full((count,), self.max_response), ids, lengths)

    def wanted(self, prompts: Prompts) -> tuple[Tensor, Tensor, Tensor]:
        """(N,) operation asked for next, as its place in ``OPERATIONS``; (N, 2) corner to click, (N,) its kind of
        action.
        """
        tokens, device = prompts.tokens, prompts.tokens.device
        bar = self.vocabulary.ids("|")[0]
        first = (tokens == bar).int().argmax(dim=1)  # before the instruction
        done = tokens[:, -2] - self.zero
        operation = tokens.gather(1, (first + 1 + done)[:, None])[:, 0] - self.vocabulary.ids(OPERATIONS)[0]
        widget = operation.clamp(max=len(WIDGETS) - 1)
        place = (first - 3 * len(WIDGETS) + 3 * widget)[:, None] + torch.arange(1, 3, device=device)
        kinds = torch.tensor([0] * len(WIDGETS) + [1] * len(SWIPES) + [2] * len(LETTERS), device=device)
        return operation, tokens.gather(1, place) - self.zero, kinds[operation]

    def rewards(self, prompts: Prompts, responses: Responses) -> dict[str, Tensor]:
        """Well-formed, of the right kind, with the right parameters; each needs the one before."""
        tokens = torch.nn.functional.pad(
            responses.tokens.where(responses.mask, PAD), (0, self.max_response - responses.tokens.shape[1])
        )
        ids = self.vocabulary.ids
        operation, corner, kind = self.wanted(prompts)
        action, digits = tokens[:, 0] - self.first_action, tokens[:, 1:3] - self.zero
        click = (action == 0) & ((digits >= 0) & (digits < SIZE)).all(dim=1) & (tokens[:, 3] == EOS)
        ends = tokens[:, 2] == EOS
        swipes, letters = (torch.tensor(ids(symbols), device=tokens.device) for symbols in (SWIPES, LETTERS))
        swipe = (action == 1) & torch.isin(tokens[:, 1], swipes) & ends
        typed = (action == 2) & torch.isin(tokens[:, 1], letters) & ends
        well_formed = click | swipe | typed
        right_kind = well_formed & (action == kind)
        inside = ((digits - corner >= 0) & (digits - corner < 2)).all(dim=1)
        same = tokens[:, 1] == operation + ids(OPERATIONS)[0]
        right = right_kind & torch.where(kind == 0, inside, same)
        return {
            "format": FORMAT * well_formed.float(), "kind": KIND * right_kind.float(),
            "parameters": PARAMETERS * right.float(),
        }  # fmt: skip

    def success(self, prompts: Prompts, responses: Responses) -> Tensor:
        """Whether it is the action asked for."""
        return self.rewards(prompts, responses)["parameters"] > 0

    def final_answers(self, prompts: Prompts, responses: Responses) -> Tensor:
        """The whole action."""
        tokens = responses.tokens.where(responses.mask, PAD)
        places = len(self.vocabulary) ** torch.arange(tokens.shape[1], device=tokens.device)
        return (tokens * places).sum(dim=1)

    def demonstrations(self, prompts: Prompts, generator: torch.Generator, noise: float) -> Tensor:
        """The action, at a random cell of a widget; with probability ``noise`` that of another operation."""
        count, ids = len(prompts), self.vocabulary.ids
        other = torch.randint(len(OPERATIONS), (count,), generator=generator)
        wrong = torch.rand(count, generator=generator) < noise
        cells = torch.randint(2, (count, 2), generator=generator)
        operation, _, _ = self.wanted(prompts)
        operation = torch.where(wrong, other, operation)
        bar = (prompts.tokens == ids("|")[0]).int().argmax(dim=1)
        rows = torch.full((count, self.max_response), PAD)
        for i, (o, first) in enumerate(zip(operation.tolist(), bar.tolist(), strict=True)):
            if o < len(WIDGETS):
                at = prompts.tokens[i, first - 3 * len(WIDGETS) + 3 * o + torch.tensor([1, 2])] + cells[i]
                row = [*ids("C"), *at.tolist(), EOS]
            else:
                row = [*ids("S" if OPERATIONS[o] in SWIPES else "T"), *ids(OPERATIONS[o]), EOS]
            rows[i, : len(row)] = torch.tensor(row)
        return rows

    def measures(self, policy: object) -> dict[str, float]:
        """Nothing."""
        return {}
