"""How texts are joined, against OpenRLHF's own RewardDataset on the same rows."""

from types import SimpleNamespace

import pytest
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sparsepo_plugin.hosts.openrlhf.overlay import activate
from sparsepo_plugin.texts import Joining, encode

activate()

from openrlhf.datasets import RewardDataset  # noqa: E402

TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
ROWS = [
    {"prompt": "w1 w2 ", "chosen": "w3 w4", "rejected": "w5"},
    {"prompt": "w1 w2", "chosen": " w3 w4 </s>", "rejected": " w5\n\n"},
    {"prompt": "w7 ", "chosen": "w3\n", "rejected": "w5\nw6"},
    {"prompt": "", "chosen": "w3 w4", "rejected": "spaces at the end  "},
]


@pytest.fixture(scope="module", params=[False, True], ids=["", "end is split"])
def tokenizer(request):
    """A token a byte: every space and line feed counts; the end-of-sequence text is one token, or several."""
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({byte: i for i, byte in enumerate(bytes_)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = {"pad_token": "<pad>", "eos_token": "</s>", "split_special_tokens": request.param}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=TEMPLATE, **special)


def host_sequences(rows, tokenizer, **data):
    """Ids of chosen and rejected, and the prompt's length, of every row, from the dataset that a run trains on."""
    keys = {"prompt_key": "prompt", "chosen_key": "chosen", "rejected_key": "rejected", "apply_chat_template": False}
    strategy = SimpleNamespace(args=SimpleNamespace(data=SimpleNamespace(**{**keys, **data})))
    template = data.get("input_template")
    dataset = RewardDataset(
        Dataset.from_list(rows), tokenizer, 64, strategy, input_template=template, is_dpo=True, num_processors=None
    )
    for chosen, _, rejected, _, prompt_len in (dataset[index] for index in range(len(dataset))):
        yield chosen[0].tolist(), rejected[0].tolist(), prompt_len


@pytest.mark.parametrize("template", [None, "Q {} w9 "])
@pytest.mark.parametrize("row", range(len(ROWS)))
def test_text_equals_the_hosts(row, template, tokenizer):
    joining = Joining(input_template=template)
    ours = [
        encode(tokenizer, *joining.texts(tokenizer, ROWS[row]["prompt"], ROWS[row][key]))
        for key in ("chosen", "rejected")
    ]
    ((chosen, rejected, prompt_len),) = host_sequences([ROWS[row]], tokenizer, input_template=template)
    assert ours == [(chosen, prompt_len), (rejected, prompt_len)]
    assert chosen[-1] == tokenizer.eos_token_id


def test_messages_equal_the_hosts(tokenizer):
    """With a chat template; a text is one message of the user, or of the assistant."""
    row = {
        "prompt": [{"role": "user", "content": "w1 w2"}],
        "chosen": [{"role": "assistant", "content": "w3"}],
        "rejected": [{"role": "assistant", "content": "w4 w5"}],
    }
    joining = Joining(chat_template=True)
    ((*sequences, prompt_len),) = host_sequences([row], tokenizer, apply_chat_template=True)
    for prompt, chosen, rejected in ((row["prompt"], row["chosen"], row["rejected"]), ("w1 w2", "w3", "w4 w5")):
        ours = [encode(tokenizer, *joining.texts(tokenizer, prompt, response)) for response in (chosen, rejected)]
        assert ours == [(ids, prompt_len) for ids in sequences]
    assert prompt_len == len("user: w1 w2\nassistant: ")
