import pytest
import torch
from optimizer_cases import give_gradients, names_of, optimizer_of, tiny, weights_of

from gristmill.train.optimizers import adam8bit, export_state, init_state
from gristmill.train.optimizers.adam8bit import AVERAGES, ROOTS, block_size, dequantize, quantize

BOOKS = pytest.mark.parametrize("book", [AVERAGES, ROOTS], ids=["averages", "roots"])


def numbers_of(book):
    """The numbers from the lowest code to the highest."""
    return book.decode(torch.arange(-127, 128, dtype=torch.int8) if book.signed else torch.arange(256).byte())


def test_the_books_are_what_they_say():
    roots, averages = numbers_of(ROOTS), numbers_of(AVERAGES)
    assert (roots.diff() > 0).all()
    assert (roots[0], roots[-1]) == (2.0**-16 * (1 + 1 / 16), 1.0)
    assert (averages.diff() > 0).all()
    assert (averages[127], averages[254]) == (0.0, 1.0)
    assert torch.equal(averages, -averages.flip(0))
    for values, bits in ((roots, 4), (averages[128:], 3)):
        fractions = values / 2.0 ** values.log2().floor()
        assert torch.equal(fractions * 2**bits, (fractions * 2**bits).round())


@BOOKS
def test_every_code_decodes_to_a_number_that_encodes_to_it(book):
    codes = torch.arange(-127, 128, dtype=torch.int8) if book.signed else torch.arange(256).byte()
    assert torch.equal(book.encode(book.decode(codes)), codes)


@BOOKS
def test_numbers_go_to_the_nearest_in_the_book(book):
    generator = torch.Generator().manual_seed(0)
    numbers = torch.rand(4000, generator=generator) ** 6
    if book.signed:
        numbers = numbers * torch.randn(4000, generator=generator).sign()
    table = numbers_of(book)
    nearest = (numbers[:, None] - table).abs().min(dim=1).values
    found = (numbers - book.decode(book.encode(numbers))).abs()
    above = numbers.abs() > 2.0**-15  # below, the way to zero or to the smallest is the only one
    torch.testing.assert_close(found[above], nearest[above], atol=1e-7, rtol=1e-6)
    assert (found <= 2.0**-15).logical_or(above).all()


@BOOKS
def test_blocks_are_scaled_by_their_largest_and_twice_is_once(book):
    generator = torch.Generator().manual_seed(1)
    blocks = torch.randn(50, 64, generator=generator).exp() * torch.logspace(-12, 6, 50)[:, None]
    codes, scales = quantize(blocks, book)
    assert torch.equal(scales, blocks.amax(dim=1, keepdim=True))
    restored = dequantize(codes, scales, book)
    error = 2.0 ** -(book.bits + 1)
    assert ((restored - blocks).abs() <= error * blocks * 1.001 + 2.0**-16 * scales).all()
    again, same = quantize(restored, book)
    assert torch.equal(again, codes)
    assert torch.equal(same, scales)


@BOOKS
def test_blocks_of_zeros_stay_zeros(book):
    assert dequantize(*quantize(torch.zeros(2, 32), book), book).abs().max() == 0


def test_nothing_that_divides_is_rounded_to_zero():
    codes, scales = quantize(torch.tensor([[1.0, 1e-9, 0.0]]), ROOTS)
    assert dequantize(codes, scales, ROOTS).min() > 1e-6


@pytest.mark.parametrize(
    ("shape", "size"),
    [((64, 768), 256), ((64, 576), 192), ((64, 1000), 250), ((64, 96), 96), ((4, 64, 48), 48), ((64, 257), None),
     ((100_000,), None), ((8, 64), None)],
)  # fmt: skip
def test_blocks_divide_rows(shape, size):
    assert block_size(torch.empty(shape, device="meta")) == size


def test_two_bytes_and_a_little_for_each_parameter():
    model = tiny(hidden_size=256, intermediate_size=512, vocab_size=512)
    optimizer = optimizer_of(model, "adam8bit")
    init_state(optimizer)
    state = export_state(optimizer, names_of(model))
    stored = sum(value.numel() * value.element_size() for value in state.values())
    assert 2 < stored / sum(p.numel() for p in model.parameters()) < 2.1
    assert state["norm.weight/exp_avg"].dtype == torch.float32


def moved(name, steps):
    model = tiny()
    before = weights_of(model)
    optimizer = optimizer_of(model, name, weight_decay=0.2)
    for step in range(steps):
        give_gradients(model, step)
        optimizer.step()
    return {key: value - before[key] for key, value in weights_of(model).items()}


def test_the_first_step_is_adamws():
    ours, theirs = moved("adam8bit", 1), moved("adamw", 1)
    for name, change in theirs.items():
        torch.testing.assert_close(ours[name], change, atol=1e-7, rtol=1e-4)


def test_later_steps_stay_near_adamws():
    ours, theirs = moved("adam8bit", 12), moved("adamw", 12)
    for name, change in theirs.items():
        error = (ours[name] - change).norm() / change.norm()
        assert error < 0.05, (name, error)
        assert (error > 1e-6) == (change.numel() >= 4096), name  # small ones are kept in full


def test_small_portions_give_what_large_ones_give(monkeypatch):
    large = moved("adam8bit", 3)
    monkeypatch.setattr(adam8bit, "CPU_PORTION_ELEMENTS", 1)
    for name, change in moved("adam8bit", 3).items():
        assert torch.equal(change, large[name]), name


@pytest.mark.parametrize("beta2", [0.95, 0.999])
def test_a_model_learns_as_with_adamw(beta2):
    losses = {}
    for name in ("adamw", "adam8bit"):
        model = tiny()
        optimizer = optimizer_of(model, name, learning_rate=0.01, beta2=beta2)
        total = 0.0
        for step in range(40):
            start = torch.randint(0, 96, (8, 1), generator=torch.Generator().manual_seed(step))
            tokens = (start + 7 * torch.arange(13)) % 96  # the next token follows from the last
            logits = model(tokens[:, :-1])
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            total += loss.item() if step >= 30 else 0.0
        losses[name] = total / 10
    assert losses["adamw"] < 0.7
    assert losses["adam8bit"] == pytest.approx(losses["adamw"], rel=0.04)
