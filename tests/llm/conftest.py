"""Small models and a tokenizer as transformers itself saves them."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.utils import logging

TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


def tokenizer(template=TEMPLATE):
    """Bytes, and three special tokens of which padding is none."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {word: i for i, word in enumerate([*letters, "<s>", "</s>", "<unk>"])}
    model = Tokenizer(BPE(words, [], unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=model, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    made.chat_template = template
    return made


def model(kind):
    """Random weights, large enough to be far from uniform."""
    sizes = {"vocab_size": 264, "bos_token_id": 256, "eos_token_id": 257}
    wide = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    wide |= {"max_position_embeddings": 300}
    torch.manual_seed(0)
    made = {
        "llama": lambda: LlamaForCausalLM(
            LlamaConfig(**sizes, **wide, num_key_value_heads=2, tie_word_embeddings=True)
        ),
        "qwen2": lambda: Qwen2ForCausalLM(
            Qwen2Config(
                **sizes,
                **wide,
                num_key_value_heads=2,
                use_sliding_window=True,
                sliding_window=6,
                max_window_layers=1,
            )
        ),
        "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**sizes, n_embd=32, n_layer=2, n_head=4, n_positions=300)),
        "phi": lambda: PhiForCausalLM(PhiConfig(**sizes, **wide)),
    }[kind]()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5.0)
            elif kind == "phi":
                parameter.add_(0.3 * torch.randn(parameter.shape))
    return made.eval()


def save(folder, kind="llama", template=TEMPLATE):
    """A Hugging Face directory."""
    logging.disable_progress_bar()
    model(kind).save_pretrained(folder)
    tokenizer(template).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def hugging_face(tmp_path_factory):
    """kind -> a directory with such a model and the tokenizer."""
    made = {}

    def get(kind="llama", template=TEMPLATE):
        if (kind, template) not in made:
            made[kind, template] = save(tmp_path_factory.mktemp("model"), kind, template)
        return made[kind, template]

    return get


@pytest.fixture(scope="session")
def byte_tokenizer():
    """The tokenizer of those models."""
    return tokenizer()
