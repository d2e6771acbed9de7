"""Sampling by a vLLM server on the same machine, with the weights of the model that is trained.

    VLLM_SERVER_DEV_MODE=1 vllm serve SERVED_FOLDER --logprobs-mode processed_logprobs
    offrl llm train grpo --model FOLDER --generation vllm-server:http://localhost:8000 ...

SERVED_FOLDER is a copy of FOLDER: before sampling the weights in it are replaced, then the server is told to read them
again and to forget cached prompts. Prompts go there and responses come back as token ids, so that no text is tokenized
twice; log-probabilities are the server's, and how far they are from training's is ``engine_gap``.
"""

import http.client
import json
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from offrl.errors import ConfigError
from offrl.llm.text import Prompts, Responses

TIMEOUT = 600.0
CONNECTIONS = 64
"""Requests that wait at once."""
NEUTRAL = {
    "top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}  # fmt: skip
"""In place of the defaults that vLLM takes from a model's generation_config.json."""


class Served:
    """What samples in place of a policy.

    Args:
        address: of the server, without a path.
        policy: that is trained, a model of transformers.
        base: where its first weights came from; never written to.

    Raises:
        ConfigError: no server there, or one whose folder cannot be used.
    """

    def __init__(self, address: str, policy: Any, base: Path) -> None:
        self.address, self.policy = address.rstrip("/"), policy
        try:
            card = self._ask("/v1/models")["data"][0]
            self.name, self.folder = str(card["id"]), Path(str(card.get("root", "")))
        except (KeyError, IndexError, TypeError, AttributeError):
            raise ConfigError(f"{address} lists no models: is a vLLM server there?") from None
        if not (self.folder / "config.json").is_file():
            raise ConfigError(
                f"{address} serves {str(self.folder)!r}, which is no folder of a model on this machine"
            )
        if self.folder.resolve() == base.resolve():
            raise ConfigError(
                f"{address} serves {base} itself, whose weights would be replaced: let it serve a copy"
            )
        if not hasattr(policy, "model"):
            raise ConfigError("a server samples from models of transformers, not from a table")

    def synchronize(self) -> None:
        """Sample with the policy's weights from now on."""
        self.policy.model.save_pretrained(self.folder)
        self._ask("/collective_rpc", {"method": "reload_weights"})
        self._ask("/reset_prefix_cache", {})

    def respond(
        self, prompts: Prompts, copies: int, temperature: float, generator: torch.Generator | None
    ) -> Responses:
        """As ``generate.sample``."""
        rows: list[tuple[list[int], list[float]]] = [([], [])] * (len(prompts) * copies)
        for limit in prompts.limits.unique().tolist():
            chosen = (prompts.limits == limit).nonzero()[:, 0].tolist()
            asked = [prompts.tokens[i][prompts.mask[i]].tolist() for i in chosen]
            found = self._completions(asked, copies, limit, temperature, generator)
            for k, row in enumerate(found):
                rows[chosen[k // copies] * copies + k % copies] = row
        return self._responses(rows, prompts.tokens.device)

    def _completions(
        self, asked: list[list[int]], copies: int, limit: int, temperature: float, generator: torch.Generator | None
    ) -> list[tuple[list[int], list[float]]]:  # fmt: skip
        """Token ids and log-probabilities, those of a prompt beside each other.

        A request each: prompts of one request would share its seed, and with it all their random numbers.
        """
        device = "cpu" if generator is None else generator.device
        allowed = (self.policy.forbidden == 0).nonzero()[:, 0].tolist()
        request = NEUTRAL | {
            "model": self.name, "n": copies, "max_tokens": limit, "temperature": temperature, "logprobs": 1,
            "return_token_ids": True, "stop_token_ids": self.policy.ends.tolist(),
        }  # fmt: skip
        if len(allowed) < len(self.policy.forbidden):
            request["allowed_token_ids"] = allowed
        seeds = torch.randint(2**31, (len(asked),), generator=generator, device=device).tolist()
        requests = [request | {"prompt": [ids], "seed": seed} for ids, seed in zip(asked, seeds, strict=True)]
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            return [row for rows in pool.map(self._completed, requests) for row in rows]

    def _completed(self, request: dict[str, Any]) -> list[tuple[list[int], list[float]]]:
        """The responses to one prompt."""
        copies, limit = request["n"], request["max_tokens"]
        try:
            choices = sorted(
                self._ask("/v1/completions", request)["choices"], key=lambda choice: int(choice["index"])
            )
        except (KeyError, TypeError):
            raise ConfigError(f"{self.address}/v1/completions gave no choices") from None
        if len(choices) != copies:
            raise ConfigError(f"{self.address} gave {len(choices)} responses where {copies} were asked for")
        return [self._checked(choice, limit) for choice in choices]

    def _checked(self, choice: Any, limit: int) -> tuple[list[int], list[float]]:
        try:
            ids, log_probs = choice["token_ids"], choice["logprobs"]["token_logprobs"]
            ended = ids[-1] in self.policy.ends.tolist()
        except (KeyError, TypeError, IndexError):
            raise ConfigError(
                f"{self.address} gives no token_ids or logprobs: it needs vLLM 0.10.2 or later"
            ) from None
        if len(ids) != len(log_probs) or not (ended or len(ids) == limit):
            raise ConfigError(f"{self.address} gave a response that neither ended nor is {limit} tokens long")
        return ids, log_probs

    def _responses(self, rows: list[tuple[list[int], list[float]]], device: torch.device) -> Responses:
        width = max(len(ids) for ids, _ in rows)
        lengths = torch.tensor([len(ids) for ids, _ in rows])
        tokens = torch.tensor([ids + [self.policy.pad] * (width - len(ids)) for ids, _ in rows])
        log_probs: Tensor = torch.tensor([values + [0.0] * (width - len(values)) for _, values in rows])
        mask = torch.arange(width) < lengths[:, None]
        return Responses(tokens.to(device), mask.to(device), log_probs.to(device))

    def _ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.address + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as reply:
                text = reply.read()
        except urllib.error.HTTPError as error:
            missing = error.code == 404 and not path.startswith("/v1/")
            hint = ": start vLLM with VLLM_SERVER_DEV_MODE=1" if missing else ""
            raise ConfigError(f"{self.address}{path} answered {error.code}{hint}") from None
        except (OSError, http.client.HTTPException) as error:
            raise ConfigError(f"no answer from {self.address}: {error}") from None
        try:
            return json.loads(text) if text.strip() else {}
        except ValueError:
            raise ConfigError(f"{self.address}{path} answered something else than JSON") from None
