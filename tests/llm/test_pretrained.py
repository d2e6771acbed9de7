"""Models and tokenizers of other origin: each says the same as transformers does, and nothing is unpickled."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from offrl.errors import ConfigError
from offrl.llm import data
from offrl.llm.generate import sample
from offrl.llm.models import load_model
from offrl.llm.options import LLMOptions
from offrl.llm.pretrained import Subwords, load_causal, load_tokenizer
from offrl.llm.score import score
from offrl.llm.tasks import load_task, task_for

USUAL = data._jsonl
KINDS = [
    "llama",
    "qwen2",
    "gpt2",
    "phi",
]  # tied head; a sliding window; absolute positions; a head with a bias


@pytest.fixture(autouse=True)
def _few_prompts(monkeypatch):
    monkeypatch.setattr(data, "_jsonl", lambda path: USUAL(path)[:20])


def made(model, **given):
    options = LLMOptions(
        **{"model": model, "task": "arithmetic", "max_response": 10, "max_prompt": 200, **given}
    )
    task = task_for(options)
    return task, load_model(model, task, 0)


def drawn(task, policy, temperature, count=4, copies=3):
    generator = torch.Generator().manual_seed(0)
    prompts = task.prompts(count, generator)
    return prompts, sample(policy, prompts, copies=copies, temperature=temperature, generator=generator)


@pytest.mark.parametrize("kind", KINDS)
def test_sampling_scoring_and_transformers_agree(kind, hugging_face):
    """Prompts of unequal lengths, read once for three responses each; against one plain pass a row without padding."""
    task, policy = made(hugging_face(kind))
    prompts, responses = drawn(task, policy, 0.8)
    assert not prompts.mask.all()
    owners = torch.arange(4).repeat_interleave(3)
    scores = score(
        policy, prompts.tokens, prompts.mask, responses.tokens, responses.mask, temperature=0.8, owners=owners
    )
    assert responses.log_probs[responses.mask].std() > 0.3
    torch.testing.assert_close(scores.log_probs, responses.log_probs, atol=1e-4, rtol=0)
    plain = load_causal(hugging_face(kind))
    for row, owner in enumerate(owners.tolist()):
        prompt, kept = prompts.tokens[owner][prompts.mask[owner]], responses.mask[row]
        answer = responses.tokens[row][kept]
        logits = plain(input_ids=torch.cat([prompt, answer])[None]).logits[0, len(prompt) - 1 : -1]
        log_p = (logits[:, : len(task.vocabulary)] / 0.8).log_softmax(-1)
        want = log_p.gather(1, answer[:, None])[:, 0]
        torch.testing.assert_close(responses.log_probs[row][kept], want, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["qwen2", "phi"])
def test_gradients_are_those_of_transformers(kind, hugging_face):
    task, policy = made(hugging_face(kind))
    prompts, responses = drawn(task, policy, 1.0, count=2, copies=1)
    scores = score(policy, prompts.tokens, prompts.mask, responses.tokens, responses.mask)
    scores.log_probs.sum().backward()
    plain = load_causal(hugging_face(kind))
    for row in range(2):
        prompt, answer = prompts.tokens[row][prompts.mask[row]], responses.tokens[row][responses.mask[row]]
        logits = plain(input_ids=torch.cat([prompt, answer])[None]).logits[0, len(prompt) - 1 : -1]
        log_p = logits[:, : len(task.vocabulary)].log_softmax(-1)
        log_p.gather(1, answer[:, None]).sum().backward()
    theirs = dict(plain.named_parameters())
    for name, parameter in policy.model.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, atol=1e-3, rtol=1e-3)


def test_ids_without_a_text_are_never_sampled(hugging_face):
    task, policy = made(hugging_face())
    assert (len(task.vocabulary), len(policy.bias)) == (259, 264)
    with torch.no_grad():
        policy.head[259:] = 50 * policy.head[:5]
    _, responses = drawn(task, policy, 2.0, copies=50)
    assert int(responses.tokens.max()) < 259


def test_a_row_ends_with_any_end_token(hugging_face, tmp_path):
    folder = Path(shutil.copytree(hugging_face(), tmp_path / "m"))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [257, 65]}))
    task, policy = made(str(folder))
    assert task.vocabulary.ends == [65, 257]
    _, responses = drawn(task, policy, 3.0, copies=40)
    for row, kept in zip(responses.tokens.tolist(), responses.mask.tolist(), strict=True):
        stops = [i for i, token in enumerate(row) if token in (65, 257) and kept[i]]
        assert len(stops) <= 1
        assert sum(kept) == (stops[0] + 1 if stops else 10)
    assert (responses.tokens == 65).any()


def test_prompts_follow_the_chat_template(hugging_face, tmp_path):
    words = load_tokenizer(hugging_face())
    ids = words.prompt("hi", "auto")
    assert (ids[0], ids.count(256), ids.count(257)) == (256, 2, 1)
    assert words.text(torch.tensor(ids)) == "user: hiassistant: "
    assert (
        words.prompt([{"role": "system", "content": "x"}, {"role": "user", "content": "hi"}], "auto")[0]
        == 256
    )
    assert words.text(torch.tensor(words.prompt("hi", "none"))) == "hi"
    assert len(words.prompt("hi", "none")) == 2
    own = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    assert words.text(torch.tensor(words.prompt("hi", own))) == "[hi]"
    plain = Subwords(load_tokenizer(hugging_face("llama", None)).tokenizer(), [])
    assert plain.text(torch.tensor(plain.prompt("hi", "auto"))) == "hi"
    with pytest.raises(ConfigError, match="no chat template"):
        plain.prompt([{"role": "user", "content": "hi"}], "auto")


def write_gguf(path, model, tokenizer):
    """A Llama as llama.cpp has it: rows of queries and keys interleaved for its rotary positions."""
    from gguf import GGUFWriter

    config, heads = (
        model.config,
        {"q": model.config.num_attention_heads, "k": model.config.num_key_value_heads},
    )
    out = GGUFWriter(str(path), "llama")
    out.add_context_length(config.max_position_embeddings)
    out.add_embedding_length(config.hidden_size)
    out.add_block_count(config.num_hidden_layers)
    out.add_feed_forward_length(config.intermediate_size)
    out.add_head_count(heads["q"])
    out.add_head_count_kv(heads["k"])
    out.add_layer_norm_rms_eps(config.rms_norm_eps)
    out.add_rope_dimension_count(config.hidden_size // heads["q"])
    out.add_rope_freq_base(10000.0)
    out.add_vocab_size(config.vocab_size)
    words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    words += ["\u0100\u0100", *(f"<unused{i}>" for i in range(config.vocab_size - len(words) - 1))]
    out.add_tokenizer_model("gpt2")
    out.add_token_list(words)
    out.add_token_types([3 if word.startswith("<") and len(word) > 1 else 1 for word in words])
    out.add_token_merges(["\u0100 \u0100"])
    out.add_bos_token_id(256)
    out.add_eos_token_id(257)
    out.add_unk_token_id(258)
    names = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"}
    names |= {"gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"}
    names |= {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    for name, tensor in model.state_dict().items():
        value = tensor.numpy().astype(np.float32)
        parts = name.split(".")
        if name.startswith("model.layers"):
            if parts[-2] in ("q_proj", "k_proj"):
                rows = value.reshape(heads[parts[-2][0]], 2, -1, value.shape[1])
                value = np.ascontiguousarray(rows.swapaxes(1, 2).reshape(value.shape))
            out.add_tensor(f"blk.{parts[2]}.{names[parts[-2]]}.weight", value)
        elif name != "lm_head.weight":
            out.add_tensor({"embed_tokens": "token_embd", "norm": "output_norm"}[parts[1]] + ".weight", value)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def test_a_gguf_file_is_the_model_that_it_was_made_from(hugging_face, byte_tokenizer, tmp_path, capfd):
    path, original = tmp_path / "tiny.gguf", load_causal(hugging_face())
    write_gguf(path, original, byte_tokenizer)
    task, policy = made(str(path), chat_template="none")
    assert task.vocabulary.ends == [257]
    assert task.vocabulary.text(torch.tensor(task.tokens[0])) == task.asked[0]
    ids = torch.tensor([task.tokens[0][:20]])
    torch.testing.assert_close(
        policy.model(input_ids=ids).logits, original(input_ids=ids).logits, atol=1e-4, rtol=0
    )
    assert "Converting" not in capfd.readouterr().err


def test_a_saved_model_is_a_hugging_face_directory(hugging_face, tmp_path):
    task, policy = made(hugging_face("gpt2"))
    with torch.no_grad():
        policy.head.add_(0.5)
    policy.save(tmp_path / "out", task)
    _, again = made(str(tmp_path / "out"))
    assert torch.equal(again.head, policy.head)
    assert not list((tmp_path / "out").glob("*.bin"))


class Calls:
    """Stands for a class of transformers; keeps what it was asked."""

    def __init__(self, result):
        self.result, self.calls = result, []

    def from_pretrained(self, *args, **kwargs):
        self.calls.append((args, kwargs))
        return self.result


def test_the_hub_is_asked_for_safetensors_and_no_code(hugging_face, byte_tokenizer, monkeypatch):
    import transformers

    models = Calls((load_causal(hugging_face()), {"missing_keys": set()}))
    tokenizers = Calls(byte_tokenizer)
    monkeypatch.setattr(transformers, "AutoModelForCausalLM", models)
    monkeypatch.setattr(transformers, "AutoTokenizer", tokenizers)
    settings = Calls(transformers.GenerationConfig(eos_token_id=[257, 65]))
    monkeypatch.setattr(transformers, "GenerationConfig", settings)
    task, _ = made("hf:someone/model")
    assert settings.calls == [(("someone/model",), {})]
    assert task.vocabulary.ends == [65, 257]
    ((name,), options), (_, about) = models.calls[0], tokenizers.calls[0]
    assert name == "someone/model"
    assert options["use_safetensors"] is True
    assert options["trust_remote_code"] is about["trust_remote_code"] is False


def test_pickled_weights_are_refused(hugging_face, tmp_path):
    folder = Path(shutil.copytree(hugging_face(), tmp_path / "m"))
    model = load_causal(hugging_face())
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="safetensors"):
        made(str(folder))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ("{", "generation_config.json is no settings of generation"),
        ("[]", "generation_config.json is no settings of generation"),
        ('{"eos_token_id": "257"}', "to the end '257', which is no id"),
        ('{"eos_token_id": [[257]]}', "which is no id"),
        ('{"eos_token_id": true}', "which is no id"),
    ],
)
def test_damaged_settings_of_generation_are_one_line(settings, says, hugging_face, tmp_path):
    folder = Path(shutil.copytree(hugging_face(), tmp_path / "m"))
    (folder / "generation_config.json").write_text(settings)
    with pytest.raises(ConfigError, match=says) as caught:
        load_tokenizer(str(folder))
    assert "\n" not in str(caught.value)


def test_an_end_of_minus_one_is_none(hugging_face, tmp_path):
    folder = Path(shutil.copytree(hugging_face(), tmp_path / "m"))
    (folder / "generation_config.json").write_text('{"eos_token_id": [-1, 65]}')
    assert load_tokenizer(str(folder)).ends == [65, 257]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_model_without_some_of_its_weights_is_refused(kind, hugging_face, tmp_path):
    """They would be drawn at random; tied ones are not missing."""
    folder = Path(shutil.copytree(hugging_face(kind), tmp_path / "m"))
    weights = load_file(folder / "model.safetensors")
    gone = next(name for name in sorted(weights) if ".1." in name)
    del weights[gone]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match=f"lacks 1 of its weights, {gone} among them"):
        load_causal(str(folder))
    load_causal(hugging_face(kind))


def test_code_beside_a_model_is_not_run(hugging_face, tmp_path):
    folder = Path(shutil.copytree(hugging_face(), tmp_path / "m"))
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "own",
        "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_causal(str(folder))
    assert not (tmp_path / "ran").exists()


def test_a_model_that_does_more_after_its_last_layer_is_refused(hugging_face, monkeypatch, tmp_path):
    from transformers import LlamaForCausalLM

    usual = LlamaForCausalLM.forward

    def capped(self, **given):
        out = usual(self, **given)
        out.logits = 5.0 * torch.tanh(out.logits / 5.0)
        return out

    monkeypatch.setattr(LlamaForCausalLM, "forward", capped)
    with pytest.raises(ConfigError, match="LlamaForCausalLM.* more than one product"):
        made(hugging_face())


def test_a_tokenizer_with_more_words_than_the_model_is_fine_until_a_prompt_has_one(hugging_face, tmp_path):
    folder = Path(shutil.copytree(hugging_face(), tmp_path / "m"))
    words = load_tokenizer(str(folder)).tokenizer()
    words.add_tokens([f"<new{i}>" for i in range(10)])
    words.save_pretrained(folder)
    task, policy = made(str(folder))
    assert len(task.vocabulary) == 269 > len(policy.bias) == 264
    drawn(task, policy, 1.0)
    (tmp_path / "d.jsonl").write_text(json.dumps({"prompt": "<new9>", "answer": 1}))
    with pytest.raises(ConfigError, match="knows 264 tokens, its tokenizer makes token 268"):
        made(str(folder), dataset=str(tmp_path / "d.jsonl"), reward=("integer",))


def test_what_does_not_fit_is_one_line(hugging_face, tmp_path):
    for given, says in (
        ({"max_response": 200}, "reads at most 300 tokens, but prompts of 1.. and responses of 200"),
        ({"model": str(tmp_path)}, "has no tokenizer|neither a folder"),
        ({"model": "tiny:dense"}, "tiny:dense has no tokenizer"),
    ):
        with pytest.raises(ConfigError, match=says) as caught:
            made(**{"model": hugging_face(), **given})
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="vocabulary of 264, task t1 of 14"):
        load_model(hugging_face(), load_task("t1"), 0)
