"""Bits per byte: closed forms, a plain forward pass as the oracle, and every token counted once."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gristmill.evaluate import bpb
from gristmill.evaluate.bpb import bits_per_byte, domain_tokens, token_bits, windows
from gristmill.model.config import ModelConfig
from gristmill.model.decoder import Decoder

VOCAB = 40
TOKEN_BYTES = np.array([0, 0, 0, *np.arange(3, VOCAB) % 5 + 1])


class Unigram(nn.Module):
    """Predicts the same distribution everywhere: what comes before makes no difference."""

    def __init__(self, logits_V: Tensor):
        super().__init__()
        self.logits_V = nn.Parameter(logits_V)
        self.largest = 0
        self.seen: list[Tensor] = []

    def hidden_states(self, input_ids_BT: Tensor) -> Tensor:
        self.seen.append(input_ids_BT)
        return torch.zeros(*input_ids_BT.shape, 1)

    def logits(self, hidden: Tensor) -> Tensor:
        logits = self.logits_V.expand(*hidden.shape[:-1], -1)
        self.largest = max(self.largest, logits.shape[0])
        return logits


def stream(length: int, seed: int = 0) -> np.ndarray:
    tokens = np.random.default_rng(seed).integers(0, VOCAB, length)
    tokens[0] = 0
    return tokens


def tiny_decoder() -> Decoder:
    config = ModelConfig(
        vocab_size=VOCAB, hidden_size=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8, intermediate_size=32,
        max_seq_len=64,
    )  # fmt: skip
    model = Decoder(config).init_weights(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8.0)  # far enough from uniform that context matters
    return model.eval()


def test_uniform_model_spends_log2_of_the_vocabulary_per_counted_token() -> None:
    tokens = stream(101)
    counted = TOKEN_BYTES[tokens[1:]] > 0
    result = bits_per_byte(Unigram(torch.zeros(VOCAB)), tokens, TOKEN_BYTES, window=16, stride=8)  # type: ignore[arg-type]
    assert result.bytes == TOKEN_BYTES[tokens[1:]].sum()
    assert result.bits == pytest.approx(math.log2(VOCAB) * counted.sum(), rel=1e-6)
    assert result.value == pytest.approx(math.log2(VOCAB) * counted.sum() / result.bytes, rel=1e-6)


def test_special_tokens_are_seen_but_not_counted() -> None:
    """A model that hates special tokens is not punished for it: they stand for no bytes."""
    logits = torch.zeros(VOCAB)
    logits[:3] = -30.0
    tokens = np.array([0, 5, 6, 1, 0, 7, 8, 1])
    result = bits_per_byte(Unigram(logits), tokens, TOKEN_BYTES, window=4, stride=2)  # type: ignore[arg-type]
    assert result.bits == pytest.approx(4 * math.log2(VOCAB - 3), rel=1e-5)


@pytest.mark.parametrize(("window", "stride"), [(8, 8), (8, 1), (8, 3), (100, 50), (200, 200)])
def test_stride_makes_no_difference_to_a_model_without_context(window: int, stride: int) -> None:
    model = Unigram(torch.linspace(-2, 2, VOCAB))
    tokens = stream(100)
    expected = -F.log_softmax(model.logits_V, 0).detach().numpy()[tokens[1:]] / math.log(2)
    found = token_bits(model, tokens, window=window, stride=stride, batch_size=3)  # type: ignore[arg-type]
    assert found[0] == 0
    np.testing.assert_allclose(found[1:], expected, rtol=1e-5)


def test_one_window_equals_a_plain_forward_pass() -> None:
    model, tokens = tiny_decoder(), stream(33)
    with torch.no_grad():
        logits = model(torch.from_numpy(tokens[None, :-1]))[0]
    expected = F.cross_entropy(logits, torch.from_numpy(tokens[1:]), reduction="none").numpy() / math.log(2)
    np.testing.assert_allclose(token_bits(model, tokens, window=32, stride=16)[1:], expected, rtol=1e-4, atol=1e-5)


def test_windows_give_each_prediction_the_context_they_promise() -> None:
    """Every token's bits equal those of a forward pass over exactly the tokens of its window before it."""
    model, tokens = tiny_decoder(), stream(70)
    found = token_bits(model, tokens, window=16, stride=6, batch_size=4)
    for start, first, end in windows(69, 16, 6):
        with torch.no_grad():
            logits = model(torch.from_numpy(tokens[None, start:end]))[0, first - start :]
        expected = F.cross_entropy(logits, torch.from_numpy(tokens[first + 1 : end + 1]), reduction="none")
        np.testing.assert_allclose(found[first + 1 : end + 1], expected / math.log(2), rtol=1e-4, atol=1e-5)


def test_batch_size_does_not_change_the_result() -> None:
    model, tokens = tiny_decoder(), stream(90)
    one = token_bits(model, tokens, window=16, stride=8, batch_size=1)
    np.testing.assert_allclose(token_bits(model, tokens, window=16, stride=8, batch_size=16), one, rtol=1e-4, atol=1e-5)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 300), st.integers(1, 40), st.data())
def test_every_prediction_is_scored_once_in_context(predictions: int, window: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, window))
    length = min(window, predictions)
    scored = []
    for number, (start, first, end) in enumerate(windows(predictions, window, stride)):
        assert 0 <= start <= first < end <= start + length <= predictions
        scored += range(first, end)
        if number:
            assert end == start + length
            assert first - start >= window - stride
    assert scored == list(range(predictions))


def test_logits_are_made_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpb, "HEAD_ROWS", 10)
    model = Unigram(torch.zeros(VOCAB))
    token_bits(model, stream(200), window=32, stride=32, batch_size=4)  # type: ignore[arg-type]
    assert model.largest == 10
    assert max(len(batch) for batch in model.seen) == 4


def test_a_stream_without_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match="no token that stands for bytes"):
        bits_per_byte(Unigram(torch.zeros(VOCAB)), np.array([5, 1, 0]), TOKEN_BYTES, window=4, stride=4)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="stride"):
        windows(10, 4, 5)


def test_domain_tokens_takes_documents_in_order_and_cuts_the_last() -> None:
    tokens, offsets = np.arange(20, dtype=np.uint16), np.array([0, 5, 9, 20])
    store = SimpleNamespace(tokens=lambda split, domain: tokens, offsets=lambda split, domain: offsets)
    for limit, expected in ((9, [0, 5, 9]), (12, [0, 5, 9, 12]), (3, [0, 3]), (100, [0, 5, 9, 20])):
        ids, starts = domain_tokens(store, "web", limit)  # type: ignore[arg-type]
        assert starts.tolist() == expected
        assert ids.tolist() == list(range(expected[-1]))
    ids, starts = domain_tokens(store, "web", 10, max_document_tokens=4)  # type: ignore[arg-type]
    assert starts.tolist() == [0, 4, 8, 10]
    assert ids.tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 9, 10]
