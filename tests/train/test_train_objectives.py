"""One loss and one gradient, however a batch is divided and its documents are packed."""

from functools import partial

import pytest
import torch

from gristmill.model.config import ModelConfig
from gristmill.model.decoder import Decoder
from gristmill.train.data import TokenBatch
from gristmill.train.objectives import behind_last_target, next_token_loss

SHAPE = {"vocab_size": 50, "hidden_size": 32, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "head_dim": 16,
         "intermediate_size": 64, "max_seq_len": 64}  # fmt: skip
DOCUMENTS = [7, 3, 12, 1, 9, 16, 4, 12]  # tokens; 64 together


def decoder(**changes) -> Decoder:
    model = Decoder(ModelConfig(**SHAPE | changes)).init_weights(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def examples() -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Inputs, targets and weights of each document; what the last token predicts is unknown."""
    generator = torch.Generator().manual_seed(2)
    found = []
    for length in DOCUMENTS:
        ids, weights = torch.randint(50, (length + 1,), generator=generator), torch.rand(length, generator=generator)
        weights[-1] = 0
        found.append((ids[:-1], ids[1:], weights))
    return found


def packed(length: int) -> TokenBatch:
    """The documents end to end in rows of `length`, none cut, padded on the right."""
    rows: list[list[int]] = [[]]
    for number, size in enumerate(DOCUMENTS):
        if sum(DOCUMENTS[i] for i in rows[-1]) + size > length:
            rows.append([])
        rows[-1].append(number)
    columns = torch.zeros(3, len(rows), length)
    segments = torch.zeros(len(rows), length, dtype=torch.int64)
    for row, numbers in enumerate(rows):
        place = 0
        for count, number in enumerate(numbers, start=1):
            end = place + DOCUMENTS[number]
            columns[:, row, place:end] = torch.stack([part.float() for part in examples()[number]])
            segments[row, place:end] = count
            place = end
    return TokenBatch(columns[0].long(), columns[1].long(), columns[2], segments)


def padded() -> TokenBatch:
    """A row for each document."""
    batch = packed(16)
    columns = torch.zeros(3, len(DOCUMENTS), 16)
    for row, parts in enumerate(examples()):
        columns[:, row, : len(parts[0])] = torch.stack([part.float() for part in parts])
    assert float(columns[2].sum()) == pytest.approx(batch.weight)
    return TokenBatch(columns[0].long(), columns[1].long(), columns[2])


def learned(model: Decoder, micro_batches: list[TokenBatch], z_loss: float) -> dict[str, torch.Tensor]:
    """The step's loss and gradients as the loop forms them."""
    model.zero_grad()
    weight = sum(batch.weight for batch in micro_batches)
    loss, squares = 0.0, 0.0
    for batch in micro_batches:
        total, sums = next_token_loss(model, batch, z_loss)
        (total / weight).backward()
        loss, squares = loss + total.detach() / weight, squares + sums.get("z_loss", torch.zeros(())) / weight
    grads = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    return {"loss": loss, "z_loss": squares} | grads


@pytest.mark.parametrize("z_loss", [0.0, 0.01])
@pytest.mark.parametrize("changes", [{}, {"positions": "learned", "tie_embeddings": False}], ids=["rope", "learned"])
def test_micro_batches_and_packing_change_neither_loss_nor_gradient(changes, z_loss):
    model = decoder(**changes)
    expected = learned(model, [padded()], z_loss)
    assert (expected["z_loss"] > 0) == (z_loss > 0)
    divided = {
        "one by one": padded().split(1),
        "by three": padded().split(3),
        "packed": [packed(64)],
        "packed in short rows": packed(16).split(2),
        "mixed": [packed(20).split(1)[0], *packed(20).split(1)[1:]],
    }
    for name, micro_batches in divided.items():
        found = learned(model, micro_batches, z_loss)
        for key, value in expected.items():
            torch.testing.assert_close(
                found[key], value, rtol=1e-6, atol=1e-6, msg=lambda m, n=name, k=key: f"{n}, {k}: {m}"
            )


def test_z_loss_draws_the_sum_of_the_softmax_towards_one():
    model = decoder()
    ids = torch.randint(50, (1, 17), generator=torch.Generator().manual_seed(0))
    batch = TokenBatch(ids[:, :-1], ids[:, 1:], torch.ones(1, 16))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    squares = []
    for _ in range(5):
        total, sums = next_token_loss(model, batch, z_loss=10.0)
        squares.append(float(sums["z_loss"]))
        total.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert squares == sorted(squares, reverse=True)
    assert squares[-1] < squares[0]
    assert not sums["z_loss"].requires_grad


def test_a_batch_without_weights_gives_zeros_and_gradients_of_zero():
    model = decoder()
    ids = torch.randint(50, (2, 9))
    total, _ = next_token_loss(model, TokenBatch(ids[:, :-1], ids[:, 1:], torch.zeros(2, 8)))
    total.backward()
    assert total.item() == 0
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize("is_packed", [False, True])
def test_nothing_is_read_from_the_device(is_packed, monkeypatch):
    """The meta device has no values: reading one is an error."""
    model = decoder().to("meta").train()
    total, sums = next_token_loss(model, packed(20) if is_packed else padded(), z_loss=0.1)
    total.backward()
    assert total.is_meta
    assert sums["z_loss"].is_meta


def test_padding_is_what_stands_behind_the_last_target():
    mark = partial(behind_last_target, device=torch.device("cpu"))
    assert mark(torch.tensor([[0.0, 1.0], [1.0, 1.0]])) is None
    marked = mark(torch.tensor([[0.0, 1, 0, 0], [0.5, 0, 0, 1], [0, 0, 0, 0]]))
    assert marked.tolist() == [[False, False, True, True], [False] * 4, [True] * 4]
