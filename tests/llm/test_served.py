"""Sampling by a server that speaks as vLLM does: a local one that reads the weights it is told to read."""

import http.server
import json
import threading
from pathlib import Path

import pytest
import torch

from offrl.errors import ConfigError
from offrl.llm.generate import sample
from offrl.llm.learner import Learner
from offrl.llm.methods import load_method
from offrl.llm.models import load_model
from offrl.llm.options import LLMOptions, check
from offrl.llm.served import Served
from offrl.llm.tasks import load_task
from offrl.llm.text import Prompts

TASK = load_task("t1")


class FakeVLLM:
    """Completions of token ids from the weights in a folder; ``broken`` changes what it answers."""

    def __init__(self, folder):
        self.folder, self.policy, self.requests, self.broken = (
            folder,
            load_model(str(folder), TASK, 0),
            [],
            None,
        )
        fake = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def do_GET(self):
                self.answer({"data": [{"id": "served", "root": str(fake.folder)}]})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                fake.requests.append((self.path, body))
                if self.path == "/v1/completions":
                    self.answer(fake.completions(body))
                elif self.path == "/collective_rpc" and fake.broken != "no dev mode":
                    if fake.broken != "deaf":
                        fake.policy = load_model(str(fake.folder), TASK, 0)
                    self.answer({"results": [None]})
                elif self.path == "/reset_prefix_cache":
                    self.answer(None)
                else:
                    self.send_error(404)

            def answer(self, value):
                text = b"" if value is None else json.dumps(value).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def completions(self, body):
        choices = []
        for ids in body["prompt"]:
            generator = torch.Generator().manual_seed(body["seed"])  # as vLLM: of each prompt the same one
            tokens, one = torch.tensor([ids]), torch.ones(1).long()
            prompts = Prompts(tokens, tokens >= 0, body["max_tokens"] * one, one, one)
            found = sample(
                self.policy, prompts, copies=body["n"], temperature=body["temperature"], generator=generator
            )
            for row, mask, log_probs in zip(found.tokens, found.mask, found.log_probs, strict=True):
                given = {"token_logprobs": log_probs[mask].tolist()}
                choices.append({"index": len(choices), "token_ids": row[mask].tolist(), "logprobs": given})
        if self.broken == "empty":
            return {}
        if self.broken == "few":
            choices.pop()
        if self.broken == "old":
            choices[0].pop("token_ids")
        if self.broken == "cut":
            choices[0] |= {"token_ids": [5], "logprobs": {"token_logprobs": [-1.0]}}
        return {"choices": choices[::-1]}


@pytest.fixture
def server(tmp_path):
    load_model("tiny:dense", TASK, 3).save(tmp_path / "served", TASK)
    made = FakeVLLM(tmp_path / "served")
    yield made
    made.server.shutdown()
    made.server.server_close()


def learner(server, name="grpo", **options):
    given = {"prompts": 4, "group": 4, "lr": 3e-2, "generation": f"vllm-server:{server.address}", **options}
    method, o = load_method(name), LLMOptions(**given)
    return Learner(method, method.config(), TASK, load_model("tiny:dense", TASK, 0), o)


def test_it_samples_with_the_weights_of_every_step(server):
    made = learner(server, group=64)  # some succeed in every batch
    for _ in range(3):
        before = {name: value.clone() for name, value in made.policy.state_dict().items()}
        metrics = made.update()
        assert float(metrics["engine_gap"]) < 1e-5  # its log-probabilities are those of training
        assert all(torch.equal(v, server.policy.state_dict()[n]) for n, v in before.items())
    moved = made.policy.state_dict()
    assert any(not torch.equal(v, moved[n]) for n, v in server.policy.state_dict().items())
    assert [path for path, _ in server.requests] == [
        "/collective_rpc", "/reset_prefix_cache", *["/v1/completions"] * 4
    ] * 3  # fmt: skip
    assert server.requests[0][1] == {"method": "reload_weights"}


def test_a_server_that_keeps_its_weights_shows_in_the_gap(server):
    server.broken = "deaf"
    made = learner(server)
    assert float(made.update()["engine_gap"]) > 0.01


def test_what_is_asked_and_where_responses_go(server):
    """Prompts without padding, a request each, responses of a prompt beside each other."""
    policy = load_model(str(server.folder), TASK, 0)
    served = Served(server.address, policy, Path("elsewhere"))
    three = TASK.prompts(3, torch.Generator().manual_seed(0))
    limits = torch.tensor([4, 1, 4])
    padded = torch.nn.functional.pad(three.tokens, (2, 0))
    prompts = Prompts(padded, padded > 0, limits, three.ids, three.levels)
    greedy = sample(served, prompts, copies=2, temperature=0.0)
    own = sample(
        policy, Prompts(three.tokens, three.mask, limits, three.ids, three.levels), copies=2, temperature=0.0
    )
    assert torch.equal(greedy.tokens, own.tokens)
    assert torch.equal(greedy.mask, own.mask)
    torch.testing.assert_close(greedy.log_probs, own.log_probs, atol=1e-5, rtol=0)
    long, other, short = sorted((body for _, body in server.requests), key=lambda body: -body["max_tokens"])
    assert [body["max_tokens"] for body in (long, other, short)] == [4, 4, 1]
    assert short["prompt"] == [three.tokens[1].tolist()]
    assert sorted(long["prompt"] + other["prompt"]) == sorted(three.tokens[[0, 2]].tolist())
    neutral = {"top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
    neutral |= {"presence_penalty": 0.0, "frequency_penalty": 0.0}
    assert {name: long[name] for name in neutral} == neutral  # not those of generation_config.json
    assert long["stop_token_ids"] == [2]
    assert long["allowed_token_ids"] == TASK.allowed.nonzero()[:, 0].tolist()
    assert long["return_token_ids"] is True
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 0, 1)]
    draws = [sample(served, prompts, copies=8, temperature=1.0, generator=g).tokens for g in generators]
    assert torch.equal(draws[0], draws[1])
    assert draws[0].shape != draws[2].shape or not torch.equal(draws[0], draws[2])


def test_prompts_do_not_share_their_random_numbers(server):
    """Equal prompts of one batch get different responses, as unequal ones must."""
    served = Served(server.address, load_model(str(server.folder), TASK, 0), Path("elsewhere"))
    one = TASK.prompts(1, torch.Generator().manual_seed(0))
    drawn = sample(served, one.repeat(6), copies=4, generator=torch.Generator().manual_seed(0))
    groups = drawn.tokens.view(6, -1).tolist()
    assert len({tuple(group) for group in groups}) == 6


@pytest.mark.parametrize(
    ("reply", "beyond", "says"),
    [
        (b"<html>", 0, "/v1/models answered something else than JSON"),
        (b"[]", 0, "lists no models: is a vLLM server there"),
        (b'{"data": []}', 0, "lists no models"),
        (b'{"data": [', 9, "no answer from .*IncompleteRead"),
    ],
)
def test_what_is_no_server_of_models(reply, beyond, says, tmp_path):
    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(reply) + beyond))
            self.end_headers()
            self.wfile.write(reply)

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as other:
        threading.Thread(target=other.handle_request, daemon=True).start()
        with pytest.raises(ConfigError, match=says):
            Served(f"http://127.0.0.1:{other.server_port}", load_model("tiny:dense", TASK, 0), tmp_path)


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ("empty", "/v1/completions gave no choices"),
        ("few", "gave 3 responses where 4 were asked for"), ("old", "needs vLLM 0.10.2 or later"),
        ("cut", "neither ended nor is 4 tokens long"), ("no dev mode", "collective_rpc answered 404: start vLLM with VLLM_SERVER_DEV_MODE=1"),
    ],
)  # fmt: skip
def test_answers_that_cannot_be_used(server, broken, says):
    server.broken = broken
    with pytest.raises(ConfigError, match=says):
        learner(server).update()


def test_servers_that_cannot_be_used(server, tmp_path):
    policy = load_model("tiny:dense", TASK, 0)
    with pytest.raises(ConfigError, match="itself, whose weights would be replaced: let it serve a copy"):
        Served(server.address, policy, server.folder)
    with pytest.raises(ConfigError, match=r"no answer from http://127.0.0.1:9"):
        Served("http://127.0.0.1:9", policy, tmp_path)
    with pytest.raises(ConfigError, match="from models of transformers, not from a table"):
        Served(server.address, load_model("tiny:table", load_task("t3"), 0), tmp_path)
    server.folder = tmp_path / "nowhere"
    with pytest.raises(ConfigError, match="which is no folder of a model on this machine"):
        Served(server.address, policy, tmp_path)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"generation": "vllm"}, "generation is own or vllm-server:URL with http, got 'vllm'"),
        ({"delay": 2}, "leave --delay out"), ({"engine": "fp8"}, "leave --engine out"),
        ({"lora_rank": 4}, "leave --lora-rank out"),
        ({"allocator": "knapsack", "pool": 64}, "leave --allocator out"),
    ],
)  # fmt: skip
def test_options_that_do_not_go_with_a_server(given, says):
    with pytest.raises(ConfigError, match=says):
        LLMOptions(**{"generation": "vllm-server:http://localhost:1", **given})


def test_methods_that_do_not_go_with_a_server():
    options = LLMOptions(generation="vllm-server:http://localhost:1", group=1)
    with pytest.raises(ConfigError, match="sft samples nothing: leave --generation out"):
        check("sft", load_method("sft"), options)
    minirl = load_method("minirl")
    replayed = minirl.config(replay="R3")
    assert "a server does not tell" in minirl.unfit(replayed, options, TASK)
    assert minirl.unfit(minirl.config(), options, TASK) is None
