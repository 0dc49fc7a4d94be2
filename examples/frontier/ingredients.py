"""What some methods need beside the pairs: models that score tokens, and pairs with weights. All are in runs/frontier.

A method of more.yaml names a path there, and INGREDIENTS says what makes it; it is made when a method first needs it.
"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from commands import OUTPUT, sparsepo
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from sparsepo_plugin.sweep.grid import flatten

HERE = Path(__file__).parent
PAIRS = OUTPUT / "pairs.jsonl"


def needed(variant: dict[str, Any]) -> list[str]:
    """Names of the ingredients of a method."""
    values = [value for _, value in flatten(variant)]
    return [name for name in INGREDIENTS if str(OUTPUT / name) in values]


def prepared(name: str) -> Path:
    """An ingredient's path, made if it is not there yet; nothing half made takes the name."""
    path = OUTPUT / name
    if not path.exists():
        part = path.with_name(f"part-{name}")
        if part.is_dir():
            shutil.rmtree(part)
        part.unlink(missing_ok=True)
        INGREDIENTS[name](part)
        part.replace(path)
    return path


def _oracle(path: Path) -> None:
    """The first stage of SePO, TGDPO and TIS-DPO: DPO from the reference."""
    _train(path)


def _swapped(path: Path) -> None:
    """TIS-DPO's other model: DPO on the same pairs, each turned round."""
    _train(path, "--data.chosen_key", "rejected", "--data.rejected_key", "chosen")


def _train(path: Path, *flags: str) -> None:
    common = ("--loss", "dpo", "--train.seed", 0, "--ckpt.output_dir", path)
    sparsepo("train", HERE / "base.yaml", *common, *flags)


def _right(path: Path) -> None:
    """The first model of cDPO: the reference fine-tuned on chosen responses."""
    sparsepo("sft", HERE / "sft.yaml", "--data.output_key", "chosen", "--ckpt.output_dir", path)


def _wrong(path: Path) -> None:
    """The second model of cDPO: the reference fine-tuned on rejected responses."""
    sparsepo("sft", HERE / "sft.yaml", "--data.output_key", "rejected", "--ckpt.output_dir", path)


def _tis_dpo(path: Path) -> None:
    _to_column("tis", prepared("oracle"), prepared("swapped"), path)


def _cdpo(path: Path) -> None:
    _to_column("cdpo", prepared("right"), prepared("wrong"), path)


def _to_column(column: str, model: Path, reference: Path, path: Path) -> None:
    sparsepo("score", model, "--reference", reference, "--pairs", PAIRS, "--to-column", column, "-o", path)


def _mask_dpo(path: Path) -> None:
    """Mask-DPO's labels are of sentences that are false; these are of sentences that VADER finds negative."""
    rows = [json.loads(line) for line in PAIRS.read_text().splitlines()]
    vader = SentimentIntensityAnalyzer()
    for row in rows:
        for side in ("chosen", "rejected"):
            sentences = [text for text in re.findall(r"[^.!]+[.!]?", row[side]) if text.strip()]
            kinds = [_kind(vader.polarity_scores(text)["compound"]) for text in sentences]
            row[f"{side}_item"] = {"sents": sentences, "type": kinds}
    labels = OUTPUT / "labels.jsonl"
    labels.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sparsepo("data", "mask_dpo", "--input", labels, "--output", path)


def _kind(sentiment: float) -> str:
    """What a sentence is, in the words of Mask-DPO's files."""
    if sentiment == 0:
        return "neither"
    return "no_hallucination" if sentiment > 0 else "hallucination"


INGREDIENTS: dict[str, Callable[[Path], None]] = {
    "oracle": _oracle,
    "swapped": _swapped,
    "right": _right,
    "wrong": _wrong,
    "tis_dpo.jsonl": _tis_dpo,
    "cdpo.jsonl": _cdpo,
    "mask_dpo.jsonl": _mask_dpo,
}
