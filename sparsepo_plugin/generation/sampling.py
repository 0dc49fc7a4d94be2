"""Drawing completions: which one a prompt gets depends on the seed and the prompt's number, not on its batch."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from numpy.random import default_rng
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from ..decoder import max_positions
from ..errors import SparsePOError, fault
from ..texts import Joining, Text
from .prompts import Prompt

_SAMPLING_STREAM = 0  # of random numbers, beside that of prefixes


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn.

    Attributes:
        temperature: Logits are divided by it; 0 takes the likeliest token.
        top_p: Only the likeliest tokens are drawn from, as few as have this probability together; 1 leaves all.
        count: Completions of each prompt.
        max_new_tokens: The longest completion, in tokens.
        seed: Of the draws.
        batch_size: Completions at a time.

    Raises:
        SparsePOError: one is out of range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    count: int = 2
    max_new_tokens: int = 128
    seed: int = 0
    batch_size: int = 256

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise SparsePOError(f"--temperature is {self.temperature:g}, 0 or more is needed")
        if not 0 < self.top_p <= 1:
            raise SparsePOError(f"--top-p is {self.top_p:g}, more than 0 and at most 1 is needed")
        for name, least in (("count", 1), ("max_new_tokens", 1), ("seed", 0), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise SparsePOError(f"--{name.replace('_', '-')} is {getattr(self, name)}, {least} or more is needed")

    @property
    def prompts_at_once(self) -> int:
        """Prompts of a batch."""
        return max(1, self.batch_size // self.count)


@dataclass(frozen=True)
class Completion:
    """What was drawn after a prompt.

    Attributes:
        prompt: As in its file.
        prompt_index: Its number there, from 0.
        sample: Which of its completions, from 0.
        text: Without special tokens; prompt + text is the whole.
        ids: The tokens, the end of sequence included if it was drawn.
        prompt_ids: Those that it goes on from.
    """

    prompt: Text
    prompt_index: int
    sample: int
    text: str
    ids: list[int]
    prompt_ids: list[int]

    @property
    def sequence(self) -> tuple[list[int], int]:
        """Token ids of the whole, and how many of them are the prompt's."""
        return self.prompt_ids + self.ids, len(self.prompt_ids)


class Sampler:
    """Draws from one model.

    The sampled tokens are joined to the prompt's as training joins a response's, and are kept: nothing that is
    computed from them goes through text.

    Args:
        model: A Hugging Face causal language model, or a PEFT model around one. What its own generation settings say
            of sampling is not used.
        tokenizer: Its tokenizer.
        joining: How prompt and response become one sequence.
        sampling: How completions are drawn.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, joining: Joining, sampling: Sampling) -> None:
        self.model, self.tokenizer, self.joining, self.sampling = model, tokenizer, joining, sampling
        self._ends = _ends(model, tokenizer)
        self._pad = next((i for i in (tokenizer.pad_token_id, *sorted(self._ends)) if i is not None), 0)
        # Also the model's own, from which generate() fills in what another does not set.
        model.generation_config = GenerationConfig(
            do_sample=False,  # the draw is a processor's
            max_new_tokens=sampling.max_new_tokens,
            eos_token_id=sorted(self._ends) or None,
            pad_token_id=self._pad,
            use_cache=True,
        )

    def batches(self, prompts: list[Prompt], label: str, start: int = 0) -> Iterator[list[Completion]]:
        """The completions, batch by batch, those of a prompt together and in order.

        Args:
            prompts: All of them; each is looked at before the first is completed.
            label: Of the progress bar.
            start: Number of the prompt to begin with, the first of a batch.

        Raises:
            SparsePOError: a prompt is empty or too long, or does not go through the chat template; names the line.
        """
        encoded, size = [self._encode(prompt) for prompt in prompts], self.sampling.prompts_at_once
        with tqdm(total=len(prompts), initial=start, desc=label, unit="prompt", mininterval=2) as bar:
            for first in range(start, len(prompts), size):
                numbers = range(len(prompts))[first : first + size]
                rows = [(number, sample) for number in numbers for sample in range(self.sampling.count)]
                drawn = self._draw([encoded[number] for number, _ in rows], self._processors(numbers))
                yield [
                    Completion(
                        prompts[number].text, number, sample, self._text(encoded[number], ids), ids, encoded[number]
                    )
                    for (number, sample), ids in zip(rows, drawn, strict=True)
                ]
                bar.update(len(numbers))

    def _encode(self, prompt: Prompt) -> list[int]:
        try:
            ids = self.joining.encode_prompt(self.tokenizer, prompt.text)
        except Exception as error:  # whatever tokenizer and template raise
            line = error if isinstance(error, SparsePOError) else fault(error)
            raise SparsePOError(f"{prompt.place}: {line}") from error
        longest, allowed = len(ids) + self.sampling.max_new_tokens, max_positions(self.model.config)
        if not ids:
            raise SparsePOError(f"{prompt.place}: the prompt has no token to go on from")
        if allowed and longest > allowed:
            raise SparsePOError(
                f"{prompt.place}: the prompt has {len(ids)} tokens, with --max-new-tokens "
                f"{self.sampling.max_new_tokens} that is more than the {allowed} that the model has positions for"
            )
        return ids

    @torch.no_grad()
    def _draw(self, rows: list[list[int]], processors: LogitsProcessorList) -> list[list[int]]:
        """Tokens after each row, up to the first end of sequence."""
        ids = [torch.tensor(row, device=self.model.device) for row in rows]
        ones = [torch.ones_like(row) for row in ids]
        input_ids, attention_mask = (
            pad_sequence(padded, batch_first=True, padding_value=value, padding_side="left")
            for padded, value in ((ids, self._pad), (ones, 0))
        )
        try:
            drawn = self.model.generate(
                input_ids=input_ids, attention_mask=attention_mask, logits_processor=processors
            )
        except torch.OutOfMemoryError as error:
            raise SparsePOError(f"--batch-size {self.sampling.batch_size} is too much for the memory") from error
        return [self._until_end(row) for row in drawn[:, input_ids.shape[1] :].tolist()]

    def _processors(self, numbers: range) -> LogitsProcessorList:
        """What turns logits into a draw, for the prompts of these numbers."""
        sampling = self.sampling
        if sampling.temperature == 0:
            return LogitsProcessorList()
        shape = (sampling.count, sampling.max_new_tokens)
        uniform = [default_rng([_SAMPLING_STREAM, sampling.seed, number]).random(shape) for number in numbers]
        draw = _Draw(torch.cat([torch.from_numpy(of_prompt) for of_prompt in uniform]).to(self.model.device))
        nucleus = [TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []
        return LogitsProcessorList([TemperatureLogitsWarper(float(sampling.temperature)), *nucleus, draw])

    def _until_end(self, ids: list[int]) -> list[int]:
        end = next((place for place, token in enumerate(ids) if token in self._ends), len(ids))
        return ids[: end + 1]

    def _text(self, prompt_ids: list[int], ids: list[int]) -> str:
        decode = partial(self.tokenizer.decode, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        # Of a lone piece decoders drop or lack the space in front of it.
        before, whole = decode(prompt_ids), decode(prompt_ids + ids)
        text = whole[len(before) :] if whole.startswith(before) else decode(ids)
        ended = ids[-1] in self._ends
        return text.removesuffix(" ") if ended and self.joining.end == "spaced" else text  # training puts it there


class _Draw(LogitsProcessor):
    """Leaves each row the one token on which its next number falls in the cumulated probabilities.

    Args:
        uniform: Numbers from [0, 1), a row for each sequence, a column for each step. float64 [S, T].
    """

    def __init__(self, uniform: Tensor) -> None:
        self._steps = iter(uniform.T)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        mass = scores.double().softmax(-1).cumsum(-1)
        place = next(self._steps)[:, None] * mass[:, -1:]
        # From the right: a token without probability adds nothing, and is passed over.
        drawn = torch.searchsorted(mass, place, right=True).clamp(max=scores.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(1, drawn, 0.0)


def _ends(model: nn.Module, tokenizer: Any) -> set[int]:
    """Tokens that end a sequence, by the tokenizer and by the model's own settings, which chat models have more in."""
    own = getattr(model.generation_config, "eos_token_id", None)
    own = own if isinstance(own, list) else [own]
    return {token for token in (tokenizer.eos_token_id, *own) if token is not None}
