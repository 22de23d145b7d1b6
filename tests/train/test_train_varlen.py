"""Attention for training beside the masked form of model/attention.py, which is the reference."""

import dataclasses

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor

from gristmill.model.attention import AttentionSpec, DocumentAttention, causal_attention
from gristmill.train import varlen
from gristmill.train.varlen import (
    PackedAttention,
    block_mask,
    document_attention,
    document_starts,
    fits_flash,
    packed_flash,
    score_mod,
    training_attention,
    whole_rows,
)

CPU = torch.device("cpu")
SPEC = AttentionSpec(layer=0, num_heads=4, num_kv_heads=2, head_dim=8, scale=0.3, value_dim=8)
# Documents of 1 to 300 tokens over blocks of 128, one of them a whole row.
SEGMENTS = torch.stack(
    [
        torch.arange(5).repeat_interleave(torch.tensor([3, 200, 1, 96, 100])),
        torch.tensor([1, 2, 0]).repeat_interleave(torch.tensor([130, 126, 144])),
        torch.zeros(400, dtype=torch.int64),
    ]
)
VARIANTS = {
    "plain": {},
    "encoder": {"causal": False},
    "window": {"window": 50},
    "encoder's window": {"window": 50, "causal": False},
    "sink tokens": {"window": 20, "sink_tokens": 3},
    "soft-cap": {"softcap": 2.0},
    "ALiBi": {"alibi": True, "causal": False},
    "soft-cap, window and ALiBi": {"softcap": 2.0, "alibi": True, "window": 140},
    "learned sinks": {"sinks": torch.tensor([0.5, -1.0, 0.0, 2.0])},
}


def inputs(spec: AttentionSpec, device="cpu", dtype=torch.float32, shape=SEGMENTS.shape) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    heads = (spec.num_heads, spec.num_kv_heads, spec.num_kv_heads)
    drawn = [torch.randn(*shape, number, spec.head_dim, generator=generator) for number in heads]
    return [x.to(device, dtype).requires_grad_() for x in drawn]


def with_gradients(attend, spec, tensors):
    out = attend(spec, *tensors)
    return out, *torch.autograd.grad((out.float() * torch.linspace(-1, 1, out[0, 0].numel(), device=out.device)
                                      .view(out.shape[2:])).sum(), tensors)  # fmt: skip


def assert_same(found, expected, **tolerance):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **tolerance)


def test_documents_are_runs_that_end_with_their_row():
    segments = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 2], [7, 7, 7, 7]])
    assert document_starts(segments).tolist() == [0, 2, 4, 7, 8, 12]


@pytest.mark.parametrize("pairs", [0, 10**9], ids=["call a document", "mask"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_on_a_processor_both_ways_are_the_masked_form(variant, pairs, monkeypatch):
    monkeypatch.setattr(varlen, "PAIRS_OF_A_CALL", pairs)
    spec = dataclasses.replace(SPEC, **VARIANTS[variant])
    tensors = inputs(spec)
    found = with_gradients(document_attention(SEGMENTS, CPU), spec, tensors)
    assert_same(found, with_gradients(DocumentAttention(SEGMENTS), spec, tensors), rtol=1e-4, atol=1e-5)


def test_many_short_documents_are_masked_and_few_long_ones_called(monkeypatch):
    calls = []
    monkeypatch.setattr(varlen, "causal_attention", lambda *a: calls.append(1) or causal_attention(*a))
    tensors = inputs(SPEC, shape=(2, 64))
    document_attention(torch.arange(64).expand(2, 64), CPU)(SPEC, *tensors)
    assert not calls
    tensors = inputs(SPEC)
    document_attention(SEGMENTS, CPU)(SPEC, *tensors)
    assert len(calls) == 9


@pytest.fixture
def flash_calls():
    """FlashAttention's operators, which have no form for processors, in plain torch; what they were called with."""
    calls = []

    def documents(q, k, v, starts, longest, scale, window_size_left, window_size_right):
        """Weights, and the three inputs with heads repeated, of each document."""
        assert starts.dtype == torch.int32
        for start, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            assert end - start <= longest
            at = torch.arange(end - start)
            ahead = at - at[:, None]
            seen = (window_size_left < 0) | (-ahead <= window_size_left)
            seen &= (window_size_right < 0) | (ahead <= window_size_right)
            one, two, three = (x[start:end].transpose(0, 1) for x in (q, k, v))
            two, three = (x.repeat_interleave(q.shape[1] // k.shape[1], 0) for x in (two, three))
            scores = (one @ two.transpose(1, 2) * scale).masked_fill(~seen, float("-inf"))
            yield slice(start, end), scores.softmax(-1), one, two, three

    def forward(q, k, v, starts, _starts, longest, _longest, dropout, causal, debug, **options):
        calls.append((starts.tolist(), longest, causal))
        outs = [(p @ values).transpose(0, 1) for _, p, _, _, values in documents(q, k, v, starts, longest, **options)]
        empty = q.new_empty(0)
        return torch.cat(outs), q.new_zeros(q.shape[1], q.shape[0]), empty, empty, empty

    def backward(
        grad, q, k, v, out, sums, starts, _starts, longest, _longest, dropout, causal, state, unused, **options
    ):
        grads = [torch.zeros_like(x) for x in (q, k, v)]
        for rows, p, one, two, three in documents(q, k, v, starts, longest, **options):
            of_out = grad[rows].transpose(0, 1)
            of_p = of_out @ three.transpose(1, 2)
            of_scores = p * (of_p - (of_p * p).sum(-1, keepdim=True)) * options["scale"]
            found = of_scores @ two, of_scores.transpose(1, 2) @ one, p.transpose(1, 2) @ of_out
            for whole, part in zip(grads, found, strict=True):
                whole[rows] = part.unflatten(0, (whole.shape[1], -1)).sum(1).transpose(0, 1)
        return tuple(grads)

    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("_flash_attention_forward", forward, "CPU")
        library.impl("_flash_attention_backward", backward, "CPU")
        yield calls


@pytest.mark.parametrize("variant", ["plain", "encoder", "window", "encoder's window"])
def test_flash_is_told_the_documents_of_the_batch(variant, flash_calls):
    spec = dataclasses.replace(SPEC, **VARIANTS[variant])
    assert fits_flash(spec, torch.bfloat16)
    starts = document_starts(SEGMENTS)
    offsets = torch.full((SEGMENTS.numel() + 1,), SEGMENTS.numel(), dtype=torch.int32)
    offsets[: len(starts)] = starts
    extent = torch.tensor([len(starts) - 1, 400])
    tensors = inputs(spec)
    found = with_gradients(lambda *a: packed_flash(*a, offsets, extent), spec, tensors)
    assert_same(found, with_gradients(DocumentAttention(SEGMENTS), spec, tensors), rtol=1e-4, atol=1e-5)
    assert flash_calls[0] == (starts.tolist(), 400, variant == "plain")


def test_flash_is_not_given_what_it_cannot_do():
    changes = ({"softcap": 1.0}, {"alibi": True}, {"window": 4, "sink_tokens": 1}, {"value_dim": 16}, {"head_dim": 6})
    assert not any(fits_flash(dataclasses.replace(SPEC, **change), torch.bfloat16) for change in changes)
    assert not fits_flash(SPEC, torch.float32)
    assert fits_flash(SPEC, torch.float16)


def test_a_compiler_sees_one_program_whatever_the_documents(flash_calls):
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    program = torch.compile(lambda *a: packed_flash(SPEC, *a), backend=counter, fullgraph=True)
    for lengths in ([5, 3, 4, 4], [16], [1, 15]):
        offsets = torch.full((17,), 16, dtype=torch.int32)
        offsets[: len(lengths) + 1] = torch.tensor([0, *lengths]).cumsum(0)
        tensors = inputs(SPEC, shape=(2, 8))
        out = program(*tensors, offsets, torch.tensor([len(lengths), max(lengths)]))
        out.sum().backward()
        assert all(tensor.grad is not None for tensor in tensors)
    assert counter.frame_count == 1
    assert [documents for documents, _, _ in flash_calls] == [[0, 5, 8, 12, 16], [0, 16], [0, 1, 16]]


def test_on_a_processor_a_compiler_sees_one_program_whatever_the_documents():
    counter = torch._dynamo.testing.CompileCounter()
    program = torch.compile(lambda attend, *a: attend(SPEC, *a), backend=counter, fullgraph=True)
    for shift in range(3):
        segments, tensors = SEGMENTS.roll(11 * shift, 1), inputs(SPEC)
        expected = DocumentAttention(document_numbers(segments))(SPEC, *tensors)
        torch.testing.assert_close(program(document_attention(segments, CPU), *tensors), expected)
    assert counter.frame_count == 1


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "learned sinks"])
def test_flex_attentions_masks_and_scores_are_the_masked_form(variant):
    from torch.nn.attention.flex_attention import flex_attention

    spec = dataclasses.replace(SPEC, **VARIANTS[variant])
    packed = PackedAttention(SEGMENTS, CPU)
    mask = block_mask(packed, spec)
    with torch.no_grad():
        q, k, v = (x.detach().transpose(1, 2) for x in inputs(spec))
        # As written, FlexAttention computes all blocks: those that a kernel would skip are taken out here.
        kept = mask.to_dense().bool().repeat_interleave(128, 2).repeat_interleave(128, 3)[..., :400, :400]
        skipped = block_mask(packed, spec)
        visible = mask.mask_mod
        skipped.mask_mod = lambda b, h, i, j: visible(b, h, i, j) & kept[b, 0, i, j]
        out = flex_attention(q, k, v, score_mod(spec, CPU), skipped, spec.scale, True).transpose(1, 2)
        expected = DocumentAttention(SEGMENTS)(spec, *inputs(spec))
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


def test_a_compiler_sees_one_flex_attention_whatever_the_documents():
    spec = dataclasses.replace(SPEC, **VARIANTS["soft-cap, window and ALiBi"])
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    program = torch.compile(lambda packed, *a: packed._flex(spec, *a), backend=counter, fullgraph=True)
    with torch.no_grad():
        for shift in range(3):
            segments = SEGMENTS.roll(11 * shift, 1)
            packed, tensors = PackedAttention(segments, CPU), [x.detach() for x in inputs(spec)]
            packed._prepare(spec)
            expected = DocumentAttention(document_numbers(segments))(spec, *tensors)
            torch.testing.assert_close(program(packed, *tensors), expected, rtol=1e-4, atol=1e-5)
    assert counter.frame_count == 1


def document_numbers(segments: Tensor) -> Tensor:
    """Runs of one number, numbered through."""
    return PackedAttention(segments, CPU).places().eq(0).cumsum(1)


def test_blocks_between_documents_are_skipped():
    packed = PackedAttention(SEGMENTS, CPU)
    met = block_mask(packed, SPEC).to_dense()[:, 0].int().tolist()
    assert met[1] == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    assert met[2] == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    window = block_mask(packed, dataclasses.replace(SPEC, window=50)).to_dense()[2, 0].int().tolist()
    assert window == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]


def test_rows_without_documents_need_nothing_on_a_processor():
    attend = training_attention(SEGMENTS.shape, CPU, [SPEC])
    assert attend is whole_rows
    tensors = inputs(SPEC)
    assert torch.equal(attend(SPEC, *tensors), causal_attention(SPEC, *tensors))


def on_a_gpu(test):
    return pytest.mark.gpu(pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")(test))


@on_a_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_on_a_gpu_documents_are_the_masked_form(variant, dtype):
    spec = dataclasses.replace(SPEC, head_dim=64, value_dim=64, scale=0.125, **VARIANTS[variant])
    if spec.sinks is not None:
        spec = dataclasses.replace(spec, sinks=spec.sinks.cuda())
    expected = with_gradients(DocumentAttention(SEGMENTS.cuda()), spec, inputs(spec, "cuda"))
    attend = document_attention(SEGMENTS, torch.device("cuda"), [spec])
    found = with_gradients(attend, spec, inputs(spec, "cuda", dtype))
    tolerance = 2e-3 if dtype == torch.float32 else 4e-2  # products of float32 may run in TF32
    assert_same([x.float() for x in found], expected, rtol=tolerance, atol=tolerance)


@on_a_gpu
@pytest.mark.parametrize("variant", VARIANTS)
def test_on_a_gpu_whole_rows_are_the_masked_form(variant):
    spec = dataclasses.replace(SPEC, head_dim=64, value_dim=64, scale=0.125, **VARIANTS[variant])
    if spec.sinks is not None:
        spec = dataclasses.replace(spec, sinks=spec.sinks.cuda())
    attend = training_attention(SEGMENTS.shape, torch.device("cuda"), [spec])
    found = with_gradients(attend, spec, inputs(spec, "cuda", torch.bfloat16))
    expected = with_gradients(causal_attention, spec, inputs(spec, "cuda"))
    assert_same([x.float() for x in found], expected, rtol=4e-2, atol=4e-2)


@on_a_gpu
@pytest.mark.parametrize("variant", ["plain", "soft-cap"])
def test_on_a_gpu_nothing_waits_and_nothing_is_compiled_again(variant):
    spec = dataclasses.replace(SPEC, head_dim=64, value_dim=64, **VARIANTS[variant])
    counter = torch._dynamo.testing.CompileCounterWithBackend("inductor")

    @torch.compile(backend=counter, fullgraph=True)
    def program(attend, *tensors):
        return attend(spec, *tensors).float().square().sum()

    tensors = inputs(spec, "cuda", torch.bfloat16)
    for shift in range(4):
        with torch.autocast("cuda", torch.bfloat16):
            torch.cuda.set_sync_debug_mode("error" if shift else "default")
            try:
                program(
                    document_attention(SEGMENTS.roll(7 * shift, 1), torch.device("cuda"), [spec]), *tensors
                ).backward()
            finally:
                torch.cuda.set_sync_debug_mode("default")
    assert counter.frame_count <= 2
