"""A tokenizer of one token a word, for the tiny models, whose text shows which tokens there are."""

from tiny import VOCABULARY
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

WORDS = ["<pad>", "<s>", "</s>", *(f"w{i}" for i in range(VOCABULARY - 3))]
CHAT = "{% for m in messages %}{{ m['role'] == 'user' and 'w1 ' or 'w2 ' }}{{ m['content'] }} </s> {% endfor %}"
CHAT += "{% if add_generation_prompt %}w2 {% endif %}"


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Words `w0` to `w33`, padding, and ends; its chat template begins a turn with `w1` or `w2`."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = ["input_ids", "attention_mask"]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", model_input_names=names
    )
    fast.chat_template = CHAT
    return fast
