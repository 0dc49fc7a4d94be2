"""A small Llama that writes film reviews: its tokenizer, and its training from scratch."""

import torch
from reviews import Reviewer, vocabulary
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import nn
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

STEPS, BATCH, LEARNING_RATE = 500, 32, 4e-3


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word; text split at spaces comes back exactly, so prompts end where their tokens do."""
    words = ["<pad>", "<eos>", "<unk>", *vocabulary()]
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        model_input_names=["input_ids", "attention_mask"],
    )


def train(tokenizer: PreTrainedTokenizerFast, reviewer: Reviewer, device: str) -> LlamaForCausalLM:
    """Train a model of 0.7 million parameters on fresh reviews."""
    model = LlamaForCausalLM(_config(tokenizer)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=STEPS, pct_start=0.1)
    progress = tqdm(range(STEPS), desc="language model", mininterval=2)
    for _ in progress:
        texts = [f"{reviewer.review()} {tokenizer.eos_token}" for _ in range(BATCH)]
        batch = tokenizer(texts, padding=True, return_tensors="pt").to(device)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        loss = model(**batch, labels=labels).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        progress.set_postfix(loss=f"{loss.item():.2f}", refresh=False)
    return model.eval()


def _config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
