"""How a prompt and a response become one sequence of tokens: in training, in checks, and when a run is asked."""

from typing import Any

from pydantic import BaseModel, Field

from .options import STRICT

Text = str | list[dict[str, str]]


class Joining(BaseModel):
    """What a run does to the texts of its data before they are joined."""

    model_config = STRICT

    input_template: str | None = Field(None, description="a format string around each prompt, with {} for it")
    chat_template: bool = Field(False, description="messages go through the tokenizer's chat template instead")

    def texts(self, tokenizer: Any, prompt: Text, response: Text) -> tuple[str, str]:
        """Prompt and response as `encode` takes them.

        Args:
            tokenizer: The run's, with its chat template.
            prompt: Text; where the run has a chat template also messages, text being one message of the user.
            response: The same, text being one message of the assistant.
        """
        if not self.chat_template:
            return self.input_template.format(prompt) if self.input_template else prompt, response
        asked, answered = _messages(prompt, "user"), _messages(response, "assistant")
        start = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        return start, tokenizer.apply_chat_template(asked + answered, tokenize=False)[len(start) :]


def encode(tokenizer: Any, prompt: str, response: str) -> tuple[list[int], int]:
    """Token ids of a sequence, not truncated, and how many of them are the prompt's."""
    ids = tokenizer(joined(tokenizer, prompt, response), add_special_tokens=False)["input_ids"]
    ids[-1] = tokenizer.eos_token_id
    return ids, len(tokenizer(prompt, add_special_tokens=False)["input_ids"])


# The convention of OpenRLHF's data set; a host with another one will need a key in `Joining`.
def joined(tokenizer: Any, prompt: str, response: str) -> str:
    """The text of a sequence: line feeds at its end dropped, its end-of-sequence token after a space unless there."""
    text = (prompt + response).rstrip("\n")
    return text if text.endswith(tokenizer.eos_token) else f"{text} {tokenizer.eos_token}"


def _messages(text: Text, role: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}] if isinstance(text, str) else text
