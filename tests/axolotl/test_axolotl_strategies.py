"""How texts are joined, against Axolotl's own prompt strategies on a row."""

import inspect

import pytest
from axolotl.prompt_strategies.dpo import load
from axolotl.utils.dict import DictDefault
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from sparsepo_plugin import SparsePOError
from sparsepo_plugin.hosts.axolotl.strategies import describe_joining
from sparsepo_plugin.texts import Joining

TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}> {{ message.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)
TEXTS = {"prompt": "why {so}?", "chosen": "because", "rejected": "who knows"}
FORMATS = {"prompt_format": "Q: {prompt}\nA: ", "chosen_format": "{chosen}!", "rejected_format": "{rejected}!"}
BY_TRL = Joining(end="appended")


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", chat_template=TEMPLATE)


def described(tokenizer, *types, columns=("prompt", "chosen", "rejected"), joining=BY_TRL):
    datasets = [{"path": "pairs.jsonl", "type": each} for each in types]
    cfg = DictDefault({"datasets": datasets, "chat_template": "tokenizer_default"})
    return describe_joining(cfg, tokenizer, list(columns), joining)


@pytest.mark.parametrize(
    "strategy",
    [
        *("chatml.prompt_pairs", "chatml.default", "llama3.prompt_pairs", "llama3.default", "passthrough.default"),
        *(
            {"field_prompt": "prompt"},
            FORMATS,
            {"field_prompt": "ask", "field_chosen": "good", "field_rejected": "bad"},
        ),
        "chat_template.default",
        None,
    ],
    ids=str,
)
def test_text_equals_the_strategys(strategy, tokenizer):
    joining = described(tokenizer, strategy)
    assert (joining.unknown, joining.end) == (None, "appended")
    for response in ("chosen", "rejected"):
        ours = joining.texts(tokenizer, TEXTS["prompt"], TEXTS[response])
        made = made_by(strategy, tokenizer)
        assert ours == (made["prompt"], made[response])


def made_by(strategy, tokenizer):
    """The row that Axolotl's strategy makes."""
    if strategy is None:
        return TEXTS
    fields = strategy if isinstance(strategy, dict) else {}
    row = {fields.get(f"field_{key}", key): text for key, text in TEXTS.items()}
    row["messages"] = TEXTS["prompt"]
    name = "user_defined.default" if fields else strategy
    cfg = DictDefault({"datasets": [{"type": strategy}], "chat_template": "tokenizer_default"})
    transform = load(name, cfg, dataset_idx=0)
    function = transform[0] if isinstance(transform, tuple) else transform
    return function(row, **({"tokenizer": tokenizer} if "tokenizer" in inspect.signature(function).parameters else {}))


@pytest.mark.parametrize(
    ("types", "over", "says"),
    [
        (["chatml.argilla_chat"], {}, "chatml.argilla_chat does more than put text around them"),
        (["zephyr.nectar"], {}, "zephyr.nectar does more than"),
        (["chatml.ultra"], {}, "chatml.ultra does more than"),
        (
            ["chatml.prompt_pairs"],
            {"columns": ("system", "prompt", "chosen", "rejected")},
            "chatml.prompt_pairs does more",
        ),
        (["chatml.prompt_pairs", None], {}, "its data sets have different prompt strategies"),
        (["chatml.prompt_pairs"], {"joining": Joining(end="appended", chat_template=True)}, "makes messages"),
    ],
)
def test_what_cannot_be_described_says_why(types, over, says, tokenizer):
    joining = described(tokenizer, *types, **over)
    with pytest.raises(SparsePOError, match="how the run joined prompt and response cannot be said: ") as caught:
        joining.texts(tokenizer, "w1", "w2")
    assert says in str(caught.value)


def test_messages_without_a_chat_template(tokenizer):
    with pytest.raises(SparsePOError, match="text is needed"):
        described(tokenizer, "chatml.prompt_pairs").texts(tokenizer, [{"role": "user", "content": "w1"}], "w2")
