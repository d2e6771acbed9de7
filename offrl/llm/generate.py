"""Sampling: a batched loop with the model's cache; each prompt is read once, whatever the number of its responses.

Meant for models of up to a few hundred million parameters; a serving engine (``offrl.llm.served``) is faster beyond.
"""

import torch
from torch import Tensor

from offrl.errors import PolicyError
from offrl.llm.models import LanguageModel
from offrl.llm.served import Served
from offrl.llm.text import Prompts, Responses


def chosen(logits: Tensor, temperature: float, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """A token a row and its log-probability: (N, V) -> (N,), (N,).

    Args:
        logits: forbidden tokens included.
        temperature: they are divided by it; 0 takes the most probable token.
        generator: the random stream; not needed at temperature 0.

    Raises:
        PolicyError: they are not finite.
    """
    log_p = (logits / (temperature or 1.0)).log_softmax(dim=-1)
    if log_p[:, 0].isnan().any():  # a whole row is, if anything of it
        raise PolicyError(
            f"the model's probabilities at temperature {temperature:g} are not finite: have its weights diverged?"
        )
    if temperature == 0.0:
        choice = log_p.argmax(dim=-1)
    else:
        choice = torch.multinomial(log_p.exp(), 1, generator=generator)[:, 0]
    return choice, log_p.gather(1, choice[:, None])[:, 0]


@torch.no_grad()
def sample(
    policy: LanguageModel | Served,
    prompts: Prompts,
    *,
    copies: int | Tensor = 1,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Responses:
    """Responses to each prompt, those to the same one beside each other: (N copies, T).

    A row ends with the end token or at its prompt's limit; what follows is padding.

    Args:
        policy: what samples, or the server that does.
        prompts: N of them.
        copies: responses a prompt; (N,) for numbers of their own.
        temperature: logits are divided by it; 0 takes the most probable token.
        generator: the random stream; not needed at temperature 0.
    """
    if isinstance(policy, Served):
        assert isinstance(copies, int)  # see options.check_served
        return policy.respond(prompts, copies, temperature, generator)
    limits = prompts.limits.repeat_interleave(copies)
    alive = torch.ones_like(limits, dtype=torch.bool)
    tokens: list[Tensor] = []
    masks: list[Tensor] = []
    log_probs: list[Tensor] = []
    hidden, state = policy.begin(prompts.tokens, prompts.mask, copies)
    for step in range(int(limits.max())):
        logits = torch.nn.functional.linear(hidden, policy.head).to(policy.bias.dtype) + policy.bias
        choice, log_prob = chosen(logits, temperature, generator)
        masks.append(alive)
        tokens.append(choice.where(alive, policy.pad))
        log_probs.append(log_prob.where(alive, 0.0))
        alive = alive & ~torch.isin(choice, policy.ends) & (step + 1 < limits)
        if not alive.any():
            break
        hidden = policy.advance(state, tokens[-1])
    return Responses(torch.stack(tokens, 1), torch.stack(masks, 1), torch.stack(log_probs, 1))
