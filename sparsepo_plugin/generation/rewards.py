"""What completions are worth: VADER, a classifier's probability, a reward model's logit, or one's own function."""

import inspect
import math
from collections.abc import Callable
from functools import partial
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ..decoder import loading, max_positions
from ..errors import SparsePOError, naming_faults, shown
from ..registry import import_module
from ..texts import Text
from .sampling import Completion

Reward = Callable[[list[Text], list[str]], list[float]]

ALLOWED = (
    "vader, package.module:function, or the folder or hub name of a classifier with the labels NEGATIVE and POSITIVE "
    "or of a reward model with one output"
)
_BATCH = 32  # texts at a time


def load_reward(name: str, device: torch.device) -> Reward:
    """A function of prompts and their completions that gives a finite number for each.

    - `vader`: the compound sentiment of the completion, from -1 to 1;
    - a transformers model for the classification of texts with two labels: the probability that the completion is
      POSITIVE, score(y) of paper §3.1;
    - one with a scalar head: its logit for the whole of prompt and completion, through its chat template where the
      prompt is a list of messages;
    - `package.module:function`: called with a list of prompts and a list of texts.

    Args:
        name: Of the reward. Only what is named here is imported; a model brings no code.
        device: Where a model goes.

    Raises:
        SparsePOError: nothing has that name, or what has cannot be loaded; later, a score is not a finite number.
    """
    if name == "vader":
        score = _vader()
    elif ":" in name:
        score = _function(name)
    else:
        score = _model(name, device)
    return partial(_checked, name, score)


def scored(reward: Reward, completions: list[Completion]) -> list[dict[str, Any]]:
    """A batch of completions as rows for a file: `prompt_index`, `sample`, `prompt`, `completion`, `reward`.

    Raises:
        SparsePOError: a score is not a finite number.
    """
    texts = [completion.text for completion in completions]
    rewards = reward([completion.prompt for completion in completions], texts)
    return [
        {
            "prompt_index": completion.prompt_index,
            "sample": completion.sample,
            "prompt": completion.prompt,
            "completion": completion.text,
            "reward": value,
        }
        for completion, value in zip(completions, rewards, strict=True)
    ]


def _checked(name: str, score: Reward, prompts: list[Text], completions: list[str]) -> list[float]:
    scores = score(prompts, completions)
    if not isinstance(scores, list) or len(scores) != len(completions):
        raise SparsePOError(f"--reward {name} gave {shown(scores)}, a list of {len(completions)} numbers is needed")
    for value, completion in zip(scores, completions, strict=True):
        if not (isinstance(value, Real) and math.isfinite(value)):
            raise SparsePOError(
                f"--reward {name} gave {shown(value)} for the completion {shown(completion)}, "
                "a finite number is needed"
            )
    return [float(value) for value in scores]


def _vader() -> Reward:
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError:
        raise SparsePOError(
            "--reward vader needs vaderSentiment: pip install 'sparsepo-plugin[analysis]' brings it"
        ) from None
    scorer = SentimentIntensityAnalyzer()
    return lambda prompts, completions: [scorer.polarity_scores(text)["compound"] for text in completions]


def _function(name: str) -> Reward:
    module, _, attribute = name.partition(":")
    function = getattr(import_module(module, f"--reward {name}"), attribute, None)
    if not callable(function):
        raise SparsePOError(f"--reward {name}: {module} has no function {attribute!r}; allowed are {ALLOWED}")
    source = inspect.getsourcefile(function) if inspect.isfunction(function) else None

    def score(prompts: list[Text], completions: list[str]) -> list[float]:
        with naming_faults(f"--reward {name}", source):
            return function(prompts, completions)

    return score


def _model(name: str, device: torch.device) -> Reward:
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    with _naming(name):
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        positive = _positive(name, config)
        model, found = AutoModelForSequenceClassification.from_pretrained(
            name, config=config, trust_remote_code=False, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    if found["missing_keys"]:  # transformers draws them at random
        missing = ", ".join(sorted(found["missing_keys"]))
        raise SparsePOError(f"--reward {name}: the model has no weights for {missing}; allowed are {ALLOWED}")
    return _Scorer(name, model.to(device).eval(), tokenizer, positive)


def _naming(name: str) -> Any:
    """Within the context what cannot be loaded is one line that says what is allowed."""
    return loading(f"--reward: allowed are {ALLOWED}; as a model", name)


def _positive(name: str, config: Any) -> int | None:
    """Number of the label POSITIVE; None for a model with one output.

    Raises:
        SparsePOError: the labels are others.
    """
    labels = {label.upper(): number for number, label in config.id2label.items()}
    if len(labels) > 1 and (len(labels) != 2 or "POSITIVE" not in labels):
        raise SparsePOError(f"--reward {name} has the labels {', '.join(labels)}; allowed are {ALLOWED}")
    return labels["POSITIVE"] if len(labels) == 2 else None


class _Scorer:
    """A model that classifies completions, or that rates them with their prompts."""

    def __init__(self, name: str, model: nn.Module, tokenizer: Any, positive: int | None) -> None:
        self._name, self._model, self._tokenizer, self._positive = name, model, tokenizer, positive
        self._longest = min(max_positions(model.config) or math.inf, tokenizer.model_max_length)
        # Without a padding token that the model knows, its head would read the padding.
        self._batch = 1 if model.config.get_text_config().pad_token_id is None else _BATCH

    def __call__(self, prompts: list[Text], completions: list[str]) -> list[float]:
        rows = [self._encode(*pair) for pair in zip(prompts, completions, strict=True)]
        batches = (rows[start : start + self._batch] for start in range(0, len(rows), self._batch))
        return [score for batch in batches for score in self._rate(batch)]

    @torch.no_grad()
    def _rate(self, rows: list[Tensor]) -> list[float]:
        pad = self._model.config.get_text_config().pad_token_id or 0
        input_ids = pad_sequence(rows, batch_first=True, padding_value=pad)
        attention_mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        logits = self._model(input_ids=input_ids, attention_mask=attention_mask).logits.float()
        return (logits[:, 0] if self._positive is None else logits.softmax(-1)[:, self._positive]).tolist()

    def _encode(self, prompt: Text, completion: str) -> Tensor:
        if self._positive is not None:
            ids = self._tokenizer(completion)["input_ids"]
        elif isinstance(prompt, str):
            ids = self._tokenizer(prompt + completion)["input_ids"]
        else:
            ids = self._through_template([*prompt, {"role": "assistant", "content": completion}])
        if not 0 < len(ids) <= self._longest:
            raise SparsePOError(
                f"--reward {self._name} takes 1 to {self._longest} tokens, the completion {shown(completion)} makes "
                f"{len(ids)}"
            )
        return torch.tensor(ids, device=self._model.device)

    def _through_template(self, messages: list[dict[str, str]]) -> list[int]:
        if not self._tokenizer.chat_template:
            raise SparsePOError(f"--reward {self._name} has no chat template, and prompts are messages")
        with naming_faults(f"--reward {self._name}: its chat template", None):
            text = self._tokenizer.apply_chat_template(messages, tokenize=False)
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]
