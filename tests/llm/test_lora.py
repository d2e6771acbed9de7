"""Adapters: only they are trained, saved and resumed; merged they give the same model."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from offrl.cli import main
from offrl.errors import ConfigError
from offrl.llm import session
from offrl.llm.learner import Learner, trained
from offrl.llm.lora import add_adapter, base_of
from offrl.llm.methods import load_method
from offrl.llm.models import load_model
from offrl.llm.options import LLMOptions
from offrl.llm.pretrained import load_causal, load_tokenizer
from offrl.llm.session import resume, start
from offrl.llm.tasks import task_for


@pytest.fixture
def options(hugging_face, tmp_path):
    data = tmp_path / "own.jsonl"
    rows = [{"prompt": f"{i} + 1 =" + " " * (i % 2), "answer": str(i)} for i in range(8)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def made(**given):
        small = {"prompts": 2, "group": 4, "steps": 3, "log_every": 1, "eval_every": 2, "checkpoint_every": 2}
        small |= {"eval_prompts": 4, "eval_samples": 2, "device": "cpu", "max_response": 4, "lr": 0.02}
        small |= {"reward": ("regex:[a-m]",), "chat_template": "none", "dataset": str(data), "lora_rank": 4}
        return LLMOptions(**{**small, "model": hugging_face(), "out": tmp_path / "runs", **given})

    return made


def built(options, name="grpo", **settings):
    return session.build(name, load_method(name).config(**settings), options)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_an_adapter_is_nothing_at_first_and_trains_alone(kind, options, hugging_face):
    made = built(options(model=hugging_face(kind)))
    plain = load_causal(hugging_face(kind))
    ids = torch.arange(6)[None]
    torch.testing.assert_close(
        made.policy.model(input_ids=ids).logits, plain(input_ids=ids).logits, atol=1e-5, rtol=0
    )
    before = {name: p.detach().clone() for name, p in made.policy.named_parameters()}
    for _ in range(3):
        made.update()
    changed = {name for name, p in made.policy.named_parameters() if not torch.equal(p, before[name])}
    assert changed
    assert all("lora_" in name for name in changed)
    assert {name for name in before if "lora_B" in name} <= changed
    assert sum(p.numel() for p in made.parameters) < 0.5 * sum(p.numel() for p in plain.parameters())


def test_the_random_half_is_the_seeds(options):
    one, same, other = (trained(built(options(seed=seed)).policy) for seed in (0, 0, 1))
    name = next(name for name in one if "lora_A" in name)
    assert torch.equal(one[name], same[name])
    task = task_for(options())
    torch.manual_seed(12345)  # whatever was drawn before, and nothing after it changes
    state = torch.get_rng_state()
    alone = trained(load_model(options().model, task, 0, 4))
    assert torch.equal(alone[name], one[name])
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(one[name], other[name])


def test_a_checkpoint_holds_the_adapter_and_nothing_else(options):
    made = built(options(), kl=0.1)
    for key in ("policy", "reference"):
        state = made.state_dict()[key]
        assert state
        assert all("lora_" in name for name in state)
    other = built(options(lora_rank=0))
    with pytest.raises(ConfigError, match="another model"):
        other.load_state_dict(made.state_dict())


def test_the_reference_shares_what_is_frozen_and_keeps_its_adapter(options):
    made = built(options(), kl=0.1)
    pairs = zip(made.policy.named_parameters(), made.reference.parameters(), strict=True)
    assert all((p is q) == ("lora_" not in name) for (name, p), q in pairs)
    made.update()
    state = trained(made.reference)
    assert all((value == 0).all() for name, value in state.items() if "lora_B" in name)


def test_a_stopped_run_goes_on_bit_for_bit(options, tmp_path, monkeypatch):
    whole = start("grpo", load_method("grpo").config(kl=0.1), options(out=tmp_path / "a")).directory
    usual, calls = Learner.update, []

    def update(self):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return usual(self)

    monkeypatch.setattr(Learner, "update", update)
    with pytest.raises(KeyboardInterrupt):
        start("grpo", load_method("grpo").config(kl=0.1), options(out=tmp_path / "b"))
    monkeypatch.setattr(Learner, "update", usual)
    (cut,) = (tmp_path / "b" / "grpo" / "own").iterdir()
    assert resume(cut).directory == cut
    for name in ("metrics.csv", "eval.csv", "accuracy.csv", "samples.csv", "model/adapter_model.safetensors"):
        assert (whole / name).read_bytes() == (cut / name).read_bytes(), name


def test_a_saved_adapter_loads_merged(options):
    run = start("grpo", load_method("grpo").config(), options()).directory
    names = {path.name for path in (run / "model").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= names
    assert "model.safetensors" not in names
    made = built(options())
    made.load_state_dict(torch.load(run / "checkpoint.pt", weights_only=True)["learner"])
    ids = torch.arange(9)[None]
    ours, theirs = made.policy.model(input_ids=ids).logits, load_causal(str(run))(input_ids=ids).logits
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    plain = load_causal(base_of(run / "model"))(input_ids=ids).logits
    assert float((plain - theirs).detach().abs().max()) > 1e-2


def test_an_export_is_the_merged_model_with_its_tokenizer(options, tmp_path, capsys):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run, out = start("grpo", load_method("grpo").config(), options(steps=1)).directory, tmp_path / "out"
    command = ["export", str(run), "--format", "huggingface", "--out", str(out)]
    assert main(command) == 0
    ids = torch.arange(9)[None]
    theirs = AutoModelForCausalLM.from_pretrained(out)(input_ids=ids).logits
    torch.testing.assert_close(load_causal(str(run))(input_ids=ids).logits, theirs, atol=1e-4, rtol=0)
    assert (
        AutoTokenizer.from_pretrained(out)("hi").input_ids
        == AutoTokenizer.from_pretrained(run / "model")("hi").input_ids
    )
    assert main(command) == 1
    assert "a model is written into a new folder" in capsys.readouterr().err
    assert main([*command[:1], str(tmp_path), *command[2:-1], str(tmp_path / "b")]) == 1
    assert "not the run of a language model" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_peft_loads_what_we_save(options):
    from peft import AutoPeftModelForCausalLM

    run = start("grpo", load_method("grpo").config(), options(steps=1)).directory
    ids = torch.arange(9)[None]
    theirs = AutoPeftModelForCausalLM.from_pretrained(run / "model")(input_ids=ids).logits
    torch.testing.assert_close(load_causal(str(run))(input_ids=ids).logits, theirs, atol=1e-4, rtol=0)


def test_a_run_goes_on_from_an_adapter(options):
    first = start("grpo", load_method("grpo").config(), options(steps=1)).directory
    whole = built(options(model=str(first), lora_rank=0))
    ids = torch.arange(9)[None]
    want = load_causal(str(first))(input_ids=ids).logits
    torch.testing.assert_close(whole.policy.model(input_ids=ids).logits, want)
    second = start("grpo", load_method("grpo").config(), options(steps=1, model=str(first))).directory
    assert base_of(second / "model") == str(first / "model")
    assert not torch.equal(load_causal(str(second))(input_ids=ids).logits, want)


def test_the_base_of_an_adapter_is_a_path_or_on_the_hub(options, hugging_face, tmp_path):
    add_adapter(load_causal(hugging_face()), 2, "hf:someone/model", 0).save_pretrained(
        tmp_path / "a", save_embedding_layers=False
    )
    assert base_of(tmp_path / "a") == "hf:someone/model"
    assert (
        json.loads((tmp_path / "a" / "adapter_config.json").read_text())["base_model_name_or_path"]
        == "someone/model"
    )


def test_a_trained_adapter_ends_as_its_base_does(options, hugging_face, tmp_path):
    base = Path(shutil.copytree(hugging_face(), tmp_path / "base"))
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": [257, 65]}))
    first = start("grpo", load_method("grpo").config(), options(model=str(base))).directory
    second = start("grpo", load_method("grpo").config(), options(model=str(first))).directory
    for run in (first, second):
        assert not (run / "model" / "generation_config.json").exists()
        assert load_tokenizer(str(run)).ends == [65, 257]
    shutil.rmtree(base)
    with pytest.raises(ConfigError, match=r"an adapter of \S+base, which is no longer there"):
        load_causal(str(first))


def test_pickled_adapters_and_tiny_models_are_refused(options, tmp_path):
    run = start("grpo", load_method("grpo").config(), options(steps=1)).directory
    folder = Path(shutil.copytree(run / "model", tmp_path / "m"))
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(ConfigError, match="safetensors only"):
        load_causal(str(folder))
    given = LLMOptions(lora_rank=2)
    with pytest.raises(ConfigError, match="leave --lora-rank out"):
        load_model("tiny:dense", task_for(given), 0, given.lora_rank)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ("{", "does not name the model"),
        ("{}", "does not name the model"),
        ("[]", "does not name the model"),
        ('{"base_model_name_or_path": BASE, "peft_type": "OWN"}', "cannot be merged: "),
    ],
)
def test_a_damaged_adapter_is_one_line(settings, says, hugging_face, tmp_path):
    (tmp_path / "adapter_config.json").write_text(settings.replace("BASE", json.dumps(hugging_face())))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match=says) as caught:
        load_causal(str(tmp_path))
    assert "\n" not in str(caught.value)
