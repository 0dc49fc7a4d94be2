"""ResponseTokens against hand-worked batches."""

import pytest
import torch
from tiny import TWO_PAIRS, Pairs

from sparsepo_plugin import ResponseTokens, SparsePOError

# Two pairs by hand, "_" is padding: the labels, the rows that predict them, and their places.
#   0  a b|c d e      prompt 2, response c d e
#   1  f|g            prompt 1, response g
#   2  h i|j          prompt 2, response j
#   3  k|l m          prompt 1, response l m
RIGHT = [[3, 4, 5, 6, 7], [8, 9, 0, 0, 0], [10, 11, 12, 0, 0], [13, 14, 15, 0, 0]]
RIGHT_MASK = [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 0, 0]]
LEFT = [[3, 4, 5, 6, 7], [0, 0, 0, 8, 9], [0, 0, 10, 11, 12], [0, 0, 13, 14, 15]]
LEFT_MASK = [row[::-1] for row in RIGHT_MASK]
PACKED = [3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]
PROMPTS, LENS = [2, 1, 2, 1], [5, 2, 3, 3]
LABELS, SEQUENCE, POSITION = [5, 6, 7, 9, 12, 14, 15], [0, 0, 0, 1, 2, 3, 3], [0, 1, 2, 0, 0, 0, 1]


@pytest.mark.parametrize(
    ("ids", "mask", "rows"),
    [(RIGHT, RIGHT_MASK, [1, 2, 3, 5, 11, 15, 16]), (LEFT, LEFT_MASK, [1, 2, 3, 8, 13, 17, 18])],
    ids=["right", "left"],
)
@pytest.mark.parametrize("as_list", [False, True], ids=["tensor", "list"])
def test_padded_by_hand(ids, mask, rows, as_list):
    prompts = PROMPTS if as_list else torch.tensor(PROMPTS)
    tokens = ResponseTokens.from_padded(torch.tensor(ids), torch.tensor(mask), prompts)
    assert tokens.labels.tolist() == LABELS
    assert tokens.rows.tolist() == rows
    assert tokens.sequence.tolist() == SEQUENCE
    assert tokens.position.tolist() == POSITION
    assert (tokens.num_pairs, tokens.num_sequences, len(tokens)) == (2, 4, 7)
    assert all(field.dtype == torch.int64 for field in (tokens.labels, tokens.rows, tokens.sequence, tokens.position))
    assert tokens.chosen.tolist() == [True] * 4 + [False] * 3


@pytest.mark.parametrize("shape", ["flat", "row", "padded"])
def test_packed_by_hand(shape):
    ids = torch.tensor(PACKED + [0, 0] * (shape == "padded"))
    tokens = ResponseTokens.from_packed(
        ids[None] if shape == "row" else ids, torch.tensor(LENS), torch.tensor(PROMPTS)
    )
    assert tokens.labels.tolist() == LABELS
    assert tokens.rows.tolist() == [1, 2, 3, 5, 8, 10, 11]
    assert tokens.sequence.tolist() == SEQUENCE
    assert tokens.position.tolist() == POSITION
    assert tokens.num_pairs == 2


def test_boolean_mask_is_the_same():
    ids, mask = torch.tensor(LEFT), torch.tensor(LEFT_MASK)
    tokens = ResponseTokens.from_padded(ids, mask.bool(), PROMPTS)
    assert torch.equal(tokens.rows, ResponseTokens.from_padded(ids, mask, PROMPTS).rows)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("seed", range(5))
def test_packed_equals_padded(side, seed):
    """Whatever the layout, the same tokens are indexed and the same hidden rows picked."""
    generator = torch.Generator().manual_seed(seed)
    pairs = Pairs(torch.randint(1, 7, (6, 2), generator=generator).tolist(), seed, side)
    padded, packed = pairs.tokens, pairs.packed_tokens
    for field in ("labels", "sequence", "position", "context"):
        assert torch.equal(getattr(padded, field), getattr(packed, field))
    # A hidden state that says which token it stands on.
    assert torch.equal(pairs.input_ids.flatten()[padded.rows], torch.cat(pairs.sequences)[packed.rows])


def test_context_tells_what_comes_before_and_nothing_else():
    """By hand: the same prompt; then the responses part at the second token, and the third follows another one."""
    first, second, other = [9, 8, 1, 2, 3], [9, 8, 1, 4, 3], [8, 9, 1, 2, 3]
    lens = [5, 5, 5, 5]
    packed = ResponseTokens.from_packed(torch.tensor([*first, *second, *other, *first]), lens, [2, 2, 2, 2])
    one, two, three, four = packed.context.view(4, 3).tolist()
    assert one == four and one[:2] == two[:2]
    assert len({*one, two[2], *three}) == 7


@pytest.mark.parametrize("layout", ["tokens", "packed_tokens"])
def test_first_token_of_an_empty_prompt_has_no_predicting_row(layout):
    pairs = Pairs([(0, 3), (2, 2)], side="left")
    tokens = getattr(pairs, layout)
    assert tokens.sequence.tolist() == [0, 0, 1, 1]
    assert tokens.position.tolist() == [0, 1, 0, 1]
    assert tokens.labels.tolist() == [*pairs.sequences[0][1:].tolist(), *pairs.sequences[1][2:].tolist()]
    assert (tokens.rows >= 0).all()


def test_a_marked_first_token_has_no_predicting_row_either():
    tokens = ResponseTokens.from_mask(torch.tensor([[3, 4, 5], [6, 7, 8]]), torch.tensor([[1, 0, 1], [1, 1, 1]]))
    assert (tokens.labels.tolist(), tokens.rows.tolist()) == ([5, 7, 8], [1, 3, 4])
    assert tokens.position.tolist() == [0, 0, 1]


@pytest.mark.parametrize("layout", ["tokens", "packed_tokens"])
def test_one_pair_of_one_token_responses(layout):
    tokens = getattr(Pairs([(1, 1), (4, 1)]), layout)
    assert tokens.sequence.tolist() == [0, 1]
    assert tokens.position.tolist() == [0, 0]
    assert tokens.sum(torch.tensor([2.0, 3.0])).tolist() == [2.0, 3.0]


def test_sequence_without_response():
    tokens = ResponseTokens.from_padded(torch.tensor([[3, 4], [5, 6]]), torch.ones(2, 2), [2, 1])
    values = torch.tensor([7.0])
    assert tokens.sum(values).tolist() == [0.0, 7.0]
    assert tokens.mean(values).tolist() == [0.0, 7.0]
    assert tokens.count().tolist() == [0.0, 1.0]
    low, high = tokens.extremes(values)
    assert low.tolist() == [float("inf"), 7.0]
    assert high.tolist() == [float("-inf"), 7.0]


def test_reductions_by_hand():
    tokens = ResponseTokens.from_padded(torch.tensor(RIGHT), torch.tensor(RIGHT_MASK), PROMPTS)
    values = torch.tensor([1.0, -2.0, 4.0, 5.0, -6.0, 7.0, 9.0])
    assert tokens.sum(values).tolist() == [3.0, 5.0, -6.0, 16.0]
    assert tokens.count().tolist() == [3.0, 1.0, 1.0, 2.0]
    assert tokens.mean(values).tolist() == [1.0, 5.0, -6.0, 8.0]
    low, high = tokens.extremes(values)
    assert not any(extreme.requires_grad for extreme in tokens.extremes(values.requires_grad_()))
    assert low.tolist() == [-2.0, 5.0, -6.0, 7.0]
    assert high.tolist() == [4.0, 5.0, -6.0, 9.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sum_and_mean_are_differentiable(dtype):
    tokens = ResponseTokens.from_padded(torch.tensor(RIGHT), torch.tensor(RIGHT_MASK), PROMPTS)
    weights = torch.tensor([1.0, 10.0, 100.0, 1000.0], dtype=dtype)
    values = torch.randn(7, dtype=dtype, requires_grad=True)
    (grad,) = torch.autograd.grad(tokens.sum(values) @ weights, values)
    assert grad.tolist() == [1, 1, 1, 10, 100, 1000, 1000]
    (grad,) = torch.autograd.grad(tokens.mean(values) @ weights, values)
    torch.testing.assert_close(grad, weights[tokens.sequence] / tokens.count().to(dtype)[tokens.sequence])
    assert tokens.sum(values).dtype == tokens.mean(values).dtype == dtype


@pytest.mark.parametrize(
    "make",
    [
        lambda: ResponseTokens.from_padded(torch.ones(3, 4).long(), torch.ones(3, 4), torch.ones(3).long()),
        lambda: ResponseTokens.from_packed(torch.ones(6).long(), torch.tensor([2, 2, 2]), torch.ones(3).long()),
        lambda: ResponseTokens.from_padded(torch.ones(2, 4).long(), torch.ones(2, 4), torch.ones(4).long()),
        lambda: ResponseTokens.from_mask(torch.ones(2, 4, 1).long(), torch.ones(2, 4, 1)),
    ],
    ids=["padded", "packed", "prompts", "dimensions"],
)
def test_odd_number_of_sequences_is_refused(make):
    with pytest.raises(SparsePOError, match="an even number is needed"):
        make()


def test_shapes_that_disagree_are_refused():
    with pytest.raises(SparsePOError, match=r"attention_mask \(2, 3\)"):
        ResponseTokens.from_padded(torch.ones(2, 4).long(), torch.ones(2, 3), [1, 1])
    with pytest.raises(SparsePOError, match="add up to 9, the packed row has 8"):
        ResponseTokens.from_packed(torch.ones(8).long(), [4, 5], [1, 1])


def test_shards_cover_the_row():
    """A ring-attention rank owns the tokens whose predicting rows it holds, labels of the next rank included."""
    tokens = Pairs(TWO_PAIRS).packed_tokens
    shards = [tokens.shard(start, start + 8, None) for start in (0, 8, 16)]
    for field in ("labels", "sequence", "position", "context"):
        assert torch.equal(torch.cat([getattr(shard, field) for shard in shards]), getattr(tokens, field))
    rows = torch.cat([shard.rows + start for shard, start in zip(shards, (0, 8, 16), strict=True)])
    assert torch.equal(rows, tokens.rows)
    assert all(shard.num_pairs == 2 for shard in shards)
