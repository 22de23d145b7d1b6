"""Draws beside transformers' cuts, counts of draws, and the kernel beside its reference."""

import os

import pytest
import torch
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from gristmill.kernels import sampling
from gristmill.kernels.sampling import (
    DrawTable,
    Need,
    draw,
    draw_reference,
    inverse_cdf,
    uniform,
    uniforms,
    verify,
    verify_drawn,
    weights,
)

CUTS = [
    {},
    {"temperature": 0.3},
    {"temperature": 0.0},
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 10_000},
    {"top_p": 0.6},
    {"top_p": 1e-6},
    {"min_p": 0.2},
    {"min_p": 1.0},
    {"temperature": 1.5, "top_k": 20, "top_p": 0.8},
    {"temperature": 2.0, "top_k": 30, "top_p": 0.9, "min_p": 0.1},
]


def table(rows, device="cpu"):
    """A slot for each of `rows`, with the defaults for what it does not name."""
    defaults = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 0}
    types = {"temperature": torch.float32, "top_k": torch.int32, "top_p": torch.float32, "min_p": torch.float32}
    columns = {name: [row.get(name, default) for row in rows] for name, default in defaults.items()}
    return DrawTable(*(torch.tensor(v, dtype=types.get(n, torch.int64), device=device) for n, v in columns.items()))


def example(rows, vocab, device="cpu", scale=2.0):
    return (scale * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(rows * vocab))).to(device)


def warped(logits_V, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """transformers' distribution."""
    scores = logits_V[None] / temperature
    for warper in (
        TopKLogitsWarper(top_k) if top_k else None,
        TopPLogitsWarper(top_p) if top_p < 1 else None,
        MinPLogitsWarper(min_p) if min_p else None,
    ):
        scores = scores if warper is None else warper(None, scores)
    return scores.softmax(-1)[0]


def chi_square(tokens, probs_V):
    """The statistic in standard deviations from its mean, over tokens expected at least five times."""
    counts = torch.bincount(tokens, minlength=len(probs_V)).double()
    expected = probs_V.double() * len(tokens)
    assert not counts[probs_V == 0].any(), "a token of probability 0 was drawn"
    often = expected >= 5
    freedom = int(often.sum()) - 1
    statistic = ((counts - expected).square() / expected)[often].sum().item()
    return (statistic - freedom) / (2 * freedom) ** 0.5 if freedom else 0.0


@pytest.fixture
def kernel():
    pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("start pytest with TRITON_INTERPRET=1 to run kernels in Triton's interpreter")
    from gristmill.kernels.sampling_triton import draw_kernel

    return draw_kernel


def test_philox_gives_the_published_numbers():
    """Counter 0 and key 0 of the authors' known answers: 6627e8d5 e169c58d bc57ac4c 9b00dbd8."""
    assert uniform(0, 0) == (0x6627E8D5 * 2**21 + (0xE169C58D >> 11)) / 2**53


def test_numbers_of_rows_are_those_of_each_alone():
    seeds = torch.tensor([0, 1, -1, 2**63 - 1, 5, 6, 7] * 4)
    positions = torch.arange(28) * 3
    for stream in (0, 2):
        expected = [uniform(s % 2**64, p, stream) for s, p in zip(seeds.tolist(), positions.tolist(), strict=True)]
        assert uniforms(seeds, positions, stream).tolist() == expected
    assert len(set(expected)) == 28


@pytest.mark.parametrize("row", [row for row in CUTS if row.get("temperature") != 0.0], ids=str)
@pytest.mark.parametrize("candidates", [256, 8], ids=["few tokens", "beyond the candidates"])
def test_weights_are_transformers_distribution(monkeypatch, row, candidates):
    monkeypatch.setattr(sampling, "CANDIDATES", candidates)
    logits = example(1, 50)
    one = table([row])
    found = weights(logits, logits.amax(-1), one.temperature_S, one, torch.tensor([0]), Need())[0]
    torch.testing.assert_close(found / found.sum(), warped(logits[0], **row), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("row", CUTS[:2] + CUTS[-2:], ids=str)
def test_draws_have_the_distribution(row):
    logits = example(1, 40)
    count = 20_000
    drawn, _ = draw(logits.expand(count, -1), table([row]), torch.zeros(count, dtype=torch.int64), torch.arange(count))
    assert abs(chi_square(drawn, warped(logits[0], **row))) < 5


def test_a_row_draws_as_if_alone(monkeypatch):
    monkeypatch.setattr(sampling, "CANDIDATES", 8)
    logits, many = example(len(CUTS), 60), table([dict(row, seed=9 + i) for i, row in enumerate(CUTS)])
    slots = torch.arange(len(CUTS))
    for position in range(30):
        positions = torch.full_like(slots, position)
        together, _ = draw(logits, many, slots, positions)
        alone = [draw(logits[i : i + 1], many, slots[i : i + 1], positions[:1])[0].item() for i in slots.tolist()]
        assert together.tolist() == alone


def test_equal_tokens_stay_together_at_a_cut():
    logits = torch.tensor([[0.0, 2.0, 1.0, 1.0, 1.0, -1.0]])
    for row in ({"top_k": 2}, {"top_p": 0.5}, {"min_p": 0.36}):
        one = table([row])
        kept = weights(logits, logits.amax(-1), one.temperature_S, one, torch.tensor([0]), Need())[0] > 0
        assert kept.nonzero()[:, 0].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("form", ["torch", "kernel"])
def test_impossible_tokens_are_never_drawn_and_bad_rows_are_told(form, request):
    run = draw_reference if form == "torch" else request.getfixturevalue("kernel")
    logits = torch.full((6, 40), -torch.inf)
    logits[:, 17], logits[:, 21] = 0.0, 1.0
    logits[2, 3], logits[3, 2], logits[4] = torch.nan, torch.inf, -torch.inf
    slots = torch.tensor([0, 1, 0, 0, 0, 2])
    rows = table([{}, {"top_p": 0.99, "top_k": 30}, {"temperature": 1e-30}])
    for position in range(6):
        tokens, finite = run(logits, rows, slots, torch.full((6,), position))
        assert finite.tolist() == [True, True, False, False, False, True]
        assert {tokens[0].item(), tokens[1].item()} <= {17, 21}
        assert tokens[5] == 21


def test_the_largest_number_finds_a_token():
    assert inverse_cdf(torch.tensor([[0.0, 0.3, 0.0]]), torch.tensor([1 - 2**-53]).double()).tolist() == [1]


@pytest.mark.parametrize("vocab", [5, 600])
def test_the_kernel_is_its_reference(kernel, monkeypatch, vocab):
    """A row's number falls between two tokens' sums by less than float32's rounding too rarely to show here."""
    from gristmill.kernels import sampling_triton

    monkeypatch.setattr(sampling_triton, "LONGEST_BLOCK", 256)
    rows = table([dict(row, seed=i - 3) for i, row in enumerate(CUTS)])
    slots = torch.arange(len(CUTS)).flip(0)
    logits = example(len(CUTS), vocab)
    for position in (0, 7):
        positions = torch.full_like(slots, position)
        expected, _ = draw_reference(logits, rows, slots, positions)
        tokens, finite = kernel(logits, rows, slots, positions)
        assert tokens.tolist() == expected.tolist()
        assert finite.all()
    tokens, _ = kernel(logits, rows, slots, positions, Need(False, False))
    assert tokens.tolist() == logits.argmax(-1).tolist()


def test_a_draft_of_probability_one_stays_while_it_is_drawn():
    drawn = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4]])
    drafts = torch.tensor([[1, 2, 3], [1, 9, 3], [1, 2, 3]])
    accepted, following = verify_drawn(drawn, drafts, torch.tensor([3, 3, 1]))
    assert accepted.tolist() == [3, 1, 1]
    assert following.tolist() == [4, 2, 2]


def test_rejection_sampling_keeps_the_models_distribution():
    """Drafts of two tokens from a distribution far from the model's, which depends on the token before."""
    generator = torch.Generator().manual_seed(1)
    count, vocab = 40_000, 5
    target, guess = (torch.rand(vocab, vocab, generator=generator).pow(2) for _ in range(2))
    target, guess = (x / x.sum(-1, keepdim=True) for x in (target, guess))
    first = torch.multinomial(guess[0], count, True, generator=generator)
    second = torch.multinomial(guess[first], 1, generator=generator)[:, 0]
    drafts = torch.stack([first, second], 1)
    target_BJV = torch.stack([target[0].expand(count, -1), target[first], target[second]], 1)
    guess_BKV = torch.stack([guess[0].expand(count, -1), guess[first]], 1)
    numbers = torch.rand(2, count, 3, generator=generator, dtype=torch.float64)
    accepted, following = verify(target_BJV, drafts, torch.full((count,), 2), guess_BKV, numbers)
    out = torch.where(accepted > 0, first, following)
    assert abs(chi_square(out, target[0])) < 5
    for token in range(vocab):  # the second token, where there is one, has the distribution behind the first
        chosen = (accepted > 0) & (first == token)
        then = torch.where(accepted > 1, second, following)[chosen]
        assert abs(chi_square(then, target[token])) < 5
    for token in range(vocab):  # and the one behind a draft that stayed to its end
        chosen = (accepted == 2) & (second == token)
        assert abs(chi_square(following[chosen], target[token])) < 5
    expected = torch.minimum(target[0], guess[0]).sum()
    assert abs((accepted > 0).double().mean() - expected) < 0.01


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
@pytest.mark.parametrize("vocab", [1000, 49_152, 151_936])
def test_the_compiled_kernel_is_its_reference(vocab):
    pytest.importorskip("triton")
    rows = [dict(row, seed=i) for i, row in enumerate(CUTS)]
    logits = example(len(CUTS), vocab)
    slots = torch.arange(len(CUTS))
    differing = 0
    for position in range(20):
        positions = torch.full_like(slots, position)
        expected, _ = draw_reference(logits, table(rows), slots, positions)
        tokens, finite = draw(logits.cuda(), table(rows, "cuda"), slots.cuda(), positions.cuda())
        assert finite.all()
        differing += (tokens.cpu() != expected).sum().item()
    assert differing <= 2, "sums in another order move a border by less than a token in a thousand"
