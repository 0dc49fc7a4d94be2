"""m_u = m_d = 1 through the command line against TDPO v1 (Zeng et al. 2024) written out with whole logits."""

import json

import torch
from host_runs import ON_OLDEST_AND_NEWEST, ONES
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM, AutoTokenizer, get_scheduler

pytestmark = ON_OLDEST_AND_NEWEST

BETA, STEPS, BATCH = 0.5, 10, 8


def test_masks_one_and_one_follow_tdpo_v1(train, tiny):
    run = train(sparsepo=ONES)
    losses, model = plain_tdpo(tiny)
    final = {f"model.{name}": value for name, value in model.state_dict().items()}
    assert torch.allclose(run.losses, torch.tensor(losses, dtype=torch.float64), rtol=0, atol=1e-5)
    # Two orders of fp32 additions, through ten Adam steps.
    for name, value in run.weights.items():
        assert torch.allclose(value, final[name], rtol=0, atol=1e-5), name


def plain_tdpo(tiny):
    policy = AutoModelForCausalLM.from_pretrained(tiny / "model", dtype=torch.float32)
    reference = AutoModelForCausalLM.from_pretrained(tiny / "model", dtype=torch.float32).requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(tiny / "model")
    pairs = [json.loads(line) for line in (tiny / "pairs.jsonl").read_text().splitlines()]
    # OpenRLHF's sampler: one permutation, seeded by train.seed + epoch.
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(42)).tolist()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3, betas=(0.9, 0.95), eps=1e-4, weight_decay=0.0)
    scheduler = get_scheduler(
        "cosine_with_min_lr", optimizer, 1, STEPS, scheduler_specific_kwargs={"min_lr_rate": 0.1}
    )
    losses = []
    for step in range(STEPS):
        batch = [pairs[i] for i in order[step * BATCH : (step + 1) * BATCH]]
        margins = torch.stack([margin(policy, reference, tokenizer, pair) for pair in batch])
        loss = -logsigmoid(margins).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    return losses, policy


def margin(policy, reference, tokenizer, pair):
    """u − δ of TDPO v1: u = β(Σr_chosen − Σr_rejected), δ = β·SeqKL(rejected) − β·SeqKL(chosen), KL(π_ref‖π)."""
    ratio, kl = {}, {}
    for side in ("chosen", "rejected"):
        prompt = tokenizer(pair["prompt"])["input_ids"]
        ids = torch.tensor(tokenizer(pair["prompt"] + pair[side] + " </s>")["input_ids"])
        logps = policy(ids[None]).logits[0, :-1].log_softmax(-1)[len(prompt) - 1 :]
        ref_logps = reference(ids[None]).logits[0, :-1].log_softmax(-1)[len(prompt) - 1 :]
        response = ids[len(prompt) :, None]
        ratio[side] = (logps.gather(1, response) - ref_logps.gather(1, response)).sum()
        kl[side] = (ref_logps.exp() * (ref_logps - logps)).sum()
    return BETA * (ratio["chosen"] - ratio["rejected"]) - BETA * (kl["rejected"] - kl["chosen"])
