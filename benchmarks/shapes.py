"""Models and batches that are measured."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """A Llama-style decoder with tied embeddings."""

    name: str
    width: int
    inner: int
    layers: int
    heads: int

    @property
    def body(self) -> int:
        """B, the parameters of its matrices outside the embeddings."""
        return self.layers * (4 * self.width**2 + 3 * self.width * self.inner)


SMALL = Size("small", 256, 688, 6, 4)
PYTHIA = Size("Pythia-1.4B class", 2048, 5504, 24, 16)
SEVEN_B = Size("7B class", 4096, 11008, 32, 32)


@dataclass(frozen=True)
class Shape:
    """One batch: pairs of a prompt with two responses, all of the same length, and the model that reads it."""

    pairs: int
    prompt: int
    response: int
    vocab: int
    packed: bool = False
    lora: bool = False
    size: Size = SMALL

    def __str__(self) -> str:
        extras = (", packed" if self.packed else "") + (", LoRA" if self.lora else "")
        return f"{self.pairs} × {self.prompt} × {self.response}, {self.vocab:,}{extras}"


FIRST, SECOND, THIRD = Shape(4, 256, 64, 32_000), Shape(4, 64, 192, 32_000), Shape(2, 256, 64, 128_256)
LONG, LONGER = Shape(4, 512, 128, 32_000), Shape(2, 1024, 128, 32_000)  # prompts, as in the data of the paper
SHORT = Shape(2, 192, 48, 32_000)
