"""The rows that a run will train on, read as OpenRLHF reads them, and refused where they cannot be trained on."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ...errors import SparsePOError, first_line
from ...texts import joined

_FILE_ENDINGS = (".json", ".jsonl", ".csv", ".parquet", ".arrow", ".py")


def check_pairs(args: SimpleNamespace, strategy: Any) -> None:
    """Read the training and evaluation pairs as OpenRLHF will, and look at every row.

    Each rank looks at its share of the rows.

    Raises:
        SparsePOError: a file or column is missing, there are fewer pairs than a batch, or a row cannot be trained on;
            names the file and the row, counted from 1.
    """
    tokenizer = _load_tokenizer(args, strategy)
    for flag, names in (("data.dataset", args.data.dataset), ("eval.dataset", args.eval.dataset)):
        if names:
            data = _read(flag, names, args, strategy)
            _check_rows(names, data, args, tokenizer, strategy)
            if flag == "data.dataset" and len(data) < args.train.batch_size:
                raise SparsePOError(
                    f"{flag}: {names} has {len(data)} pairs, train.batch_size is {args.train.batch_size}"
                )


def first_pair(args: SimpleNamespace, strategy: Any) -> tuple[Any, tuple[str, str, str]]:
    """The tokenizer, and the first training row: prompt, chosen and rejected as they are joined."""
    tokenizer = _load_tokenizer(args, strategy)
    data = _read("data.dataset", args.data.dataset, args, strategy)
    _, prompt, responses = next(_texts(args.data.dataset, data, args, tokenizer, strategy))
    return tokenizer, (prompt, *responses.values())


def _load_tokenizer(args: SimpleNamespace, strategy: Any) -> Any:
    """The policy's tokenizer, as OpenRLHF loads it, with the chat template of the run.

    Raises:
        SparsePOError: a chat template is asked for and there is none.
    """
    from openrlhf.utils import get_tokenizer

    name, fast = args.model.model_name_or_path, not args.data.disable_fast_tokenizer
    remote_code = args.model.trust_remote_code
    tokenizer = get_tokenizer(name, None, "right", strategy, use_fast=fast, trust_remote_code=remote_code)
    if args.data.apply_chat_template:
        tokenizer.chat_template = args.data.tokenizer_chat_template or tokenizer.chat_template
        if not tokenizer.chat_template:
            raise SparsePOError("data.apply_chat_template: the tokenizer has none; give data.tokenizer_chat_template")
    return tokenizer


def _read(flag: str, names: str, args: SimpleNamespace, strategy: Any) -> Any:
    """The rows of training or evaluation."""
    from openrlhf.datasets.utils import blending_datasets

    _check_files(flag, names)
    training = flag == "data.dataset"
    probabilities, split = (args.data.dataset_probs, args.data.dataset_split) if training else (None, args.eval.split)
    try:
        data = blending_datasets(names, probabilities, strategy, args.train.seed, dataset_split=split)
    except (OSError, ValueError) as error:
        raise SparsePOError(f"{flag}: {names} cannot be read: {first_line(error)}") from error
    if hasattr(data, "keys"):
        raise SparsePOError(f"{flag}: {names} has the splits {', '.join(data)}; none is called {split!r}")
    return data.select(range(min(args.data.max_samples, len(data)))) if training else data


def _check_files(flag: str, names: str) -> None:
    for name in names.split(","):
        path = name.split("@")[0].strip()
        if path.endswith(_FILE_ENDINGS) and not Path(path).is_file():
            raise SparsePOError(f"{flag}: {path} does not exist; a file, a folder or a hub name is needed")


def _check_rows(names: str, data: Any, args: SimpleNamespace, tokenizer: Any, strategy: Any) -> None:
    keys = {"data.prompt_key": args.data.prompt_key, "data.chosen_key": args.data.chosen_key}
    for flag, key in {**keys, "data.rejected_key": args.data.rejected_key}.items():
        if key and key not in data.column_names:
            raise SparsePOError(f"{flag}: {names} has no column {key!r}; columns are {', '.join(data.column_names)}")
    for row, prompt, responses in _texts(names, data, args, tokenizer, strategy):
        if _length(tokenizer, prompt) >= args.data.max_len - 2:
            continue  # OpenRLHF drops such pairs itself
        for key, response in responses.items():
            if not response.strip():
                raise SparsePOError(f"{names}, row {row}: {key} is empty; a response needs at least one word")
            length = _length(tokenizer, joined(tokenizer, prompt, response))
            if length > args.data.max_len:
                raise SparsePOError(
                    f"{names}, row {row}: prompt and {key} have {length} tokens, data.max_len is {args.data.max_len}; "
                    "raise it or drop the row"
                )


def _texts(
    names: str, data: Any, args: SimpleNamespace, tokenizer: Any, strategy: Any
) -> Iterator[tuple[int, str, dict[str, str]]]:
    """Row number, prompt and responses of this rank's share of the rows, as OpenRLHF's RewardDataset makes them."""
    from openrlhf.datasets.reward_dataset import preprocess_data

    template = tokenizer.apply_chat_template if args.data.apply_chat_template else None
    keys = (args.data.prompt_key, args.data.chosen_key, args.data.rejected_key)
    for row in range(strategy.get_rank(), len(data), getattr(strategy, "world_size", 1)):
        try:
            texts = preprocess_data(data[row], args.data.input_template, *keys, template, is_dpo=True)[:3]
        except Exception as error:
            raise SparsePOError(f"{names}, row {row + 1}: {first_line(error)}") from error
        for key, text in zip(("prompt", *keys[1:]), texts, strict=True):
            if not isinstance(text, str):
                raise SparsePOError(
                    f"{names}, row {row + 1}: {key} is {type(text).__name__}, text is needed "
                    "(data.apply_chat_template turns messages into text)"
                )
        yield row + 1, texts[0], dict(zip(keys[1:], texts[1:], strict=True))


def _length(tokenizer: Any, text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])
