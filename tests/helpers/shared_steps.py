"""Steps that compute once or twice what a pair begins with, and whether they are the same.

Float32. Other shapes add in another order, up to 4e-6 of a parameter's largest gradient when it was measured; the
tolerance is five times that.
"""

from functools import partial

import torch
from tiny import TWO_PAIRS, Pairs, decoder, make_step, runner

from sparsepo_plugin.layout import Batch

TOLERANCE = 2e-5
LEARNED = {"mask": "learned", "shared": False, "l1_reward": 1e-3, "l1_kl": 2e-3}
ALIKE = Pairs(TWO_PAIRS, alike=2)


def take(share, name="llama", pairs=ALIKE, section=LEARNED, loss="sparsepo", laid="padded", **changes):
    """One step that shares or does not, and its gradients by name; `changes` are of the models' config."""
    policy, reference = decoder(name, **changes).train(), decoder(name, seed=1, **changes)
    step = make_step({**section, "share_prefix": share}, policy, reference, loss=loss)
    return step_of(step, reference, pairs, laid)


def step_of(step, reference, pairs=ALIKE, laid="padded"):
    """The step on a batch that lies padded or packed: its output, the loss with that of a mixture, and gradients."""
    inputs, tokens = (pairs.inputs, pairs.tokens) if laid == "padded" else (pairs.packed_inputs, pairs.packed_tokens)
    batch = Batch(pairs.input_ids, pairs.attention_mask, packed=laid == "packed")
    output = step(partial(step.policy, **inputs), tokens, runner(reference, inputs), number=1, batch=batch)
    total = output.loss if output.aux_loss is None else output.loss + 0.1 * output.aux_loss
    total.backward()
    grads = {name: p.grad for name, p in step.policy.named_parameters() if p.grad is not None}
    return output, total, grads


def assert_same(one, other):
    """Two results of `step_of`."""
    (output, total, grads), (plain, plain_total, plain_grads) = one, other
    torch.testing.assert_close(total, plain_total, atol=TOLERANCE, rtol=TOLERANCE)
    torch.testing.assert_close(output.chosen_rewards, plain.chosen_rewards, atol=TOLERANCE, rtol=TOLERANCE)
    if plain.masks is not None:
        torch.testing.assert_close(output.masks.reward, plain.masks.reward, atol=TOLERANCE, rtol=TOLERANCE)
    assert grads.keys() == plain_grads.keys()
    assert any(grad.abs().max() > 1e-3 for grad in grads.values())
    for name, grad in grads.items():
        scale = max(1.0, plain_grads[name].abs().max().item())
        torch.testing.assert_close(grad, plain_grads[name], atol=TOLERANCE * scale, rtol=0, msg=name)
