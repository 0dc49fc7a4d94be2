"""A finished run, asked about texts: `load_run("runs/first").tokens(prompt=…, chosen=…, rejected=…)`."""

from dataclasses import dataclass, fields
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from .checkpoint import RunDescription, load_masks, versions_of
from .config import LossConfig
from .decoder import load_decoder, loading, max_positions
from .errors import SparsePOError
from .masks import Masks
from .policy import REFERENCE_ADAPTER, MaskedPolicy
from .reference import FeatureRequest, Runner, read_frozen
from .step import PreferenceStep, StepOutput
from .texts import Joining, Text, token_text
from .tokens import ResponseTokens


@dataclass
class TokenTable:
    """The N response tokens of one text or one pair, a row each, and what the run makes of them.

    Attributes:
        text: Each token as text, its spaces and line feeds included.
        response: Whose token it is: `chosen`, `rejected`, or `response` where one was asked about.
        labels: Each token's id. int64 [N].
        logps: log π(y_t). float32 [N].
        reference_logps: log π_ref(y_t), [N]; this and what follows from it is None without a reference.
        log_ratio: r_t = log π(y_t) − log π_ref(y_t). [N].
        kl: Token KL over the vocabulary, KL(π_ref‖π), or KL(π‖π_ref) with `expectation: policy`. [N].
        mask_reward: m_u, or None for a loss without masks. [N].
        mask_kl: m_d. [N].
        advantage: What each token adds to its response's reward before the scale β, or None if the objective does not
            say. [N].
    """

    text: list[str]
    response: list[str]
    labels: Tensor
    logps: Tensor
    reference_logps: Tensor | None = None
    log_ratio: Tensor | None = None
    kl: Tensor | None = None
    mask_reward: Tensor | None = None
    mask_kl: Tensor | None = None
    advantage: Tensor | None = None

    def __len__(self) -> int:
        return len(self.text)

    @property
    def masked_reward(self) -> Tensor | None:
        """m_u·r_t; with a loss that has no masks r_t itself. [N]."""
        return _weighed(self.mask_reward, self.log_ratio)

    @property
    def masked_kl(self) -> Tensor | None:
        """m_d·KL; with a loss that has no masks the KL itself. [N]."""
        return _weighed(self.mask_kl, self.kl)

    def of(self, response: str) -> "TokenTable":
        """The rows of one response: `chosen`, `rejected` or `response`."""
        return self.take([row for row, name in enumerate(self.response) if name == response])

    def take(self, rows: list[int]) -> "TokenTable":
        """Some rows, in the order given."""
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        return TokenTable(**{name: _take(column, rows) for name, column in columns.items()})


@dataclass
class Run:
    """A trained policy with its masks and its reference, ready to be asked.

    Attributes:
        policy: Hugging Face model, or PEFT model, in evaluation mode.
        reference: The frozen model; None when it is the policy with its adapter off, or there is none.
        masks: m_u and m_d, or None for a loss without any.
        tokenizer: The run's.
        description: What the run's `sparsepo.json` says.
        oracle: The model whose log-probabilities the masks read, if they do.
    """

    policy: nn.Module
    reference: nn.Module | None
    masks: Masks | None
    tokenizer: Any
    description: RunDescription
    oracle: nn.Module | None = None

    def __post_init__(self) -> None:
        self._model = MaskedPolicy(self.policy, self.reference, self.description.loss, masks=self.masks).eval()
        # The KL is shown for every loss that has a reference, also where training has no use for it.
        self._model.needs_reference |= self.reference is not None
        if self._model.needs_reference:
            self._model.expectation = self._model.expectation or "reference"
        self._step = PreferenceStep(self._model)

    @torch.no_grad()
    def tokens(
        self,
        prompt: Text,
        chosen: Text | None = None,
        rejected: Text | None = None,
        response: Text | None = None,
        *,
        chosen_weights: list[dict[str, Any]] | None = None,
        rejected_weights: list[dict[str, Any]] | None = None,
        response_weights: list[dict[str, Any]] | None = None,
    ) -> TokenTable:
        """What the run makes of every token of a pair, or of one response, by the step that trained it.

        Args:
            prompt: As in the training data; it is joined to the responses as in training.
            chosen: The better response; with `rejected`.
            rejected: The worse one.
            response: One response alone, in place of the two.
            chosen_weights: Spans of the better response with their weights, for masks that read those of the data;
                without them all characters weigh the mask's default.
            rejected_weights: The same of the worse one.
            response_weights: The same of the one response.

        Raises:
            SparsePOError: neither a pair nor one response is given, or weights that no mask reads or that are none.
        """
        given = {"chosen": chosen, "rejected": rejected, "response": response}
        given = {name: text for name, text in given.items() if text is not None}
        if set(given) not in ({"chosen", "rejected"}, {"response"}):
            raise SparsePOError("tokens: give chosen and rejected, or response alone")
        names = list(given) if len(given) == 2 else ["response", "response"]  # one response is a pair with itself
        spans = {"chosen": chosen_weights, "rejected": rejected_weights, "response": response_weights}
        self._refuse_idle_weights({name for name, value in spans.items() if value is not None}, set(given))
        inputs, tokens = self._batch(prompt, [(name, given[name], spans[name]) for name in names])
        output = self._step(
            partial(self._model, **inputs),
            tokens,
            reference=_runner(self.reference, inputs),
            oracle=_runner(self.oracle, inputs),
        )
        table = self._table(output, tokens, names)
        return table.take(list(range(len(table) // 2))) if len(given) == 1 else table

    @property
    def has_reference(self) -> bool:
        """Whether there is a model to compare the policy with."""
        return self.reference is not None or self.description.shared_reference

    @torch.no_grad()
    def divergence(self, sequences: list[tuple[list[int], int]]) -> Tensor:
        """Response-level KL(π‖π_ref) and log-ratio, in nats: sums over response tokens (paper Figures 2 and 11).

        On samples of the policy's own at temperature 1 both have the same expectation, the KL of whole responses.

        Args:
            sequences: Token ids of S prompts with responses, and how many of them are the prompt's.

        Returns:
            float32 [2, S], on the CPU: Σ_t KL(π‖π_ref), each over the vocabulary, and Σ_t log π(y_t) − log π_ref(y_t).

        Raises:
            SparsePOError: there is no reference, or a sequence is longer than the model can take.
        """
        if not self.has_reference:
            raise SparsePOError("divergence: the run has no reference to compare with (load_run takes reference=…)")
        even = sequences + sequences[-1:] * (len(sequences) % 2)  # an index is of pairs
        inputs, tokens = self._padded(even)
        features = read_frozen(tokens, FeatureRequest(), _runner(self.reference, inputs))
        logps, reference_logps, kl = self._compared(tokens=tokens, features=features, **inputs)["statistics"]
        return tokens.sum(torch.stack([kl, logps - reference_logps]))[:, : len(sequences)].cpu()

    @cached_property
    def _compared(self) -> MaskedPolicy:
        """Policy and reference without masks, compared under the policy's distribution whatever the loss read."""
        model = MaskedPolicy(self.policy, self.reference, LossConfig.from_section(None, "dpo")).eval()
        model.expectation = "policy"
        return model

    def _table(self, output: StepOutput, tokens: ResponseTokens, names: list[str]) -> TokenTable:
        stats, masks = output.statistics, output.masks
        sign = 1 if self._model.expectation == "policy" else -1
        columns = {
            "labels": tokens.labels,
            "logps": stats.policy_logps,
            "reference_logps": stats.reference_logps,
            "log_ratio": None if stats.reference_logps is None else stats.policy_logps - stats.reference_logps,
            "kl": None if stats.expected_log_ratio is None else sign * stats.expected_log_ratio,
            "mask_reward": None if masks is None else masks.reward,
            "mask_kl": None if masks is None else masks.kl,
            "advantage": output.advantage,
        }
        return TokenTable(
            text=[token_text(self.tokenizer, label) for label in tokens.labels.tolist()],
            response=[names[sequence] for sequence in tokens.sequence.tolist()],
            **{name: column if column is None else column.cpu() for name, column in columns.items()},
        )

    def _refuse_idle_weights(self, weighed: set[str], given: set[str]) -> None:
        for name in sorted(weighed):
            if self.description.loss.column is None:
                raise SparsePOError(f"tokens: {name}_weights has no effect, no mask reads weights of the data")
            if name not in given:
                raise SparsePOError(f"tokens: {name}_weights has no effect without {name}")

    def _batch(self, prompt: Text, asked: list[tuple[str, Text, Any]]) -> tuple[dict[str, Tensor], ResponseTokens]:
        """A padded batch of responses, each with its name and its spans, which masks may read."""
        sequences = self.description.joining.encode(self.tokenizer, prompt, [response for _, response, _ in asked])
        inputs, tokens = self._padded(sequences)
        if self.description.loss.column is None:
            return inputs, tokens
        weights = [
            self._weigh(prompt, *each, prompt_len) for each, (_, prompt_len) in zip(asked, sequences, strict=True)
        ]
        return inputs, tokens.weighed(weights)

    def _weigh(self, prompt: Text, name: str, response: Text, spans: Any, prompt_len: int) -> Tensor:
        joining, column = self.description.joining, self.description.loss.column
        try:
            _, weights = joining.weigh(self.tokenizer, prompt, response, spans, column)
        except SparsePOError as error:
            raise SparsePOError(f"{name}_weights: {error}") from error
        return torch.tensor(weights[max(prompt_len, 1) :])  # nothing predicts a sequence's first token

    def _padded(self, sequences: list[tuple[list[int], int]]) -> tuple[dict[str, Tensor], ResponseTokens]:
        """A padded batch on the policy's device."""
        device = self.policy.device
        longest, allowed = max(len(ids) for ids, _ in sequences), max_positions(self.policy.config)
        if allowed and longest > allowed:
            raise SparsePOError(
                f"tokens: prompt and response have {longest} tokens, the model has positions for {allowed}"
            )
        ids = [torch.tensor(ids, device=device) for ids, _ in sequences]
        input_ids = pad_sequence(ids, batch_first=True, padding_value=self.tokenizer.eos_token_id)
        attention_mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
        tokens = ResponseTokens.from_padded(input_ids, attention_mask, [prompt_len for _, prompt_len in sequences])
        return {"input_ids": input_ids, "attention_mask": attention_mask}, tokens


def load_run(
    folder: str | Path,
    *,
    reference: str | nn.Module | None = None,
    device: str | torch.device | None = None,
    allow_code: bool = False,
) -> Run:
    """A finished run: policy, reference and masks as they were trained.

    Args:
        folder: What the run left in its output folder: a model or an adapter, with `sparsepo.json`.
        reference: Another place of the reference model, or the model; by default where the description says.
        device: By default a GPU if there is one.
        allow_code: Import the modules that the description names, and run code that models bring; whoever wrote the
            files chose it.

    Raises:
        SparsePOError: a file or a model is missing, or code is named that is not allowed.
    """
    masks, described = load_masks(folder, allow_code)
    device = torch.device(device or default_device())
    policy, tokenizer = load_policy(folder, described, device=device, allow_code=allow_code)
    dtype = getattr(torch, described.dtype)
    load = partial(load_decoder, dtype=dtype, device=device, trust_remote_code=allow_code)
    if reference is None and not described.shared_reference:
        reference = described.reference
    if isinstance(reference, str):
        reference = load(reference, "the reference (load_run takes another place as reference=…)")
    oracle = described.loss.oracle
    return Run(
        policy=policy,
        reference=reference if reference is None else reference.to(device).eval(),
        masks=masks if masks is None else masks.to(device),
        tokenizer=tokenizer,
        description=described,
        oracle=None if oracle is None else load(oracle, "the oracle"),
    )


def compare(
    policy: str,
    reference: str,
    joining: Joining,
    *,
    device: str | torch.device | None = None,
    allow_code: bool = False,
) -> Run:
    """Two models that need not be of a run, asked as if DPO had made the one of the other.

    Args:
        policy: Folder or hub name; its tokenizer is taken.
        reference: The same, of the model to compare with.
        joining: How prompt and response become one sequence.
        device: By default a GPU if there is one.
        allow_code: Run code that models bring.

    Raises:
        SparsePOError: a model or the tokenizer cannot be loaded, or it has no end-of-sequence token.
    """
    from transformers import AutoTokenizer  # here, because loading transformers takes seconds

    device = torch.device(device or default_device())
    load = partial(load_decoder, dtype="auto", device=device, trust_remote_code=allow_code)
    model, other = load(policy, "the model"), load(reference, "the reference")
    with loading("the tokenizer", policy):
        tokenizer = AutoTokenizer.from_pretrained(policy, trust_remote_code=allow_code)
    if tokenizer.eos_token is None:
        raise SparsePOError(f"the tokenizer of {policy} has no eos_token, with which every response ends")
    config = model.config.get_text_config()
    description = RunDescription(
        versions=versions_of(),
        host="none",
        loss=LossConfig.from_section(None, "dpo"),
        base_model=policy,
        reference=reference,
        shared_reference=False,
        dtype=str(model.dtype).removeprefix("torch."),
        hidden_size=config.hidden_size,
        num_layers=config.num_hidden_layers,
        joining=joining,
    )
    return Run(model, other, None, tokenizer, description)


def load_policy(
    folder: str | Path,
    described: RunDescription,
    *,
    device: str | torch.device | None = None,
    allow_code: bool = False,
) -> tuple[nn.Module, Any]:
    """The policy of a finished run, in evaluation mode, and its tokenizer, without masks and reference.

    Args:
        folder: The run's.
        described: What its description says.
        device: By default a GPU if there is one.
        allow_code: Run code that models bring.

    Raises:
        SparsePOError: a file or a model is missing.
    """
    from transformers import AutoTokenizer  # here, because loading transformers takes seconds

    dtype, device = getattr(torch, described.dtype), torch.device(device or default_device())
    load = partial(load_decoder, dtype=dtype, device=device, trust_remote_code=allow_code)
    adapter = (Path(folder) / "adapter_config.json").is_file()
    policy = load(described.base_model, "the base model") if adapter else load(str(folder), "the policy")
    if adapter:
        from peft import PeftModel

        with loading("the adapter", folder):
            policy = PeftModel.from_pretrained(policy, str(folder))
            if (Path(folder) / REFERENCE_ADAPTER).is_dir():
                policy.load_adapter(str(Path(folder) / REFERENCE_ADAPTER), REFERENCE_ADAPTER)
            policy = policy.to(device)
    with loading("the tokenizer", folder):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=allow_code)
    return policy.eval(), tokenizer


def default_device() -> torch.device:
    """A GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _runner(model: nn.Module | None, inputs: dict[str, Tensor]) -> Runner | None:
    return None if model is None else Runner(model, partial(model, **inputs))


def _weighed(mask: Tensor | None, values: Tensor | None) -> Tensor | None:
    return values if mask is None or values is None else mask * values


def _take(column: list | Tensor | None, rows: list[int]) -> list | Tensor | None:
    return [column[row] for row in rows] if isinstance(column, list) else column if column is None else column[rows]
