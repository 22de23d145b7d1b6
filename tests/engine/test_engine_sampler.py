"""The sampler's tables, penalties and log probabilities beside transformers' processors and closed forms."""

from __future__ import annotations

import pytest
import torch
from transformers import MinNewTokensLengthLogitsProcessor, RepetitionPenaltyLogitsProcessor

from gristmill.engine.request import Request
from gristmill.engine.sampler import Sampler, prompt_logprobs
from gristmill.engine.sampling import SamplingParams

VOCAB = 30


def request(prompt_ids=(1, 2), output_ids=(), **params):
    return Request(0, list(prompt_ids), SamplingParams(**params), output_ids=list(output_ids))


def sampler_of(*requests, stop_ids=(), vocab=VOCAB):
    made = Sampler(len(requests), vocab, "cpu", stop_ids)
    for slot, one in enumerate(requests):
        made.place(slot, one)
    return made


def logits_of(rows, seed=0, vocab=VOCAB):
    return 2 * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed))


def draw(sampler, logits, slots=None, positions=None, masks=None):
    slots = list(range(len(logits))) if slots is None else slots
    positions = [2] * len(slots) if positions is None else positions
    return sampler.sample(logits, torch.tensor(slots), torch.tensor(positions), masks).read()


def ready(sampler, logits, position, masks=None):
    """Logits as they are drawn from, of slot 0."""
    slots = torch.zeros(1, dtype=torch.int64)
    sampler.write_placed()
    return sampler._ready(logits, slots, torch.tensor([position]), masks, sampler.asked([0]))


def packed(allowed_BV):
    """A bit for each token."""
    padded = torch.nn.functional.pad(allowed_BV.long(), (0, -allowed_BV.shape[1] % 32)).view(len(allowed_BV), -1, 32)
    words = (padded << torch.arange(32)).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).int()


def test_greedy_rows_take_the_likeliest_beside_others():
    logits = logits_of(3)
    drawn = draw(sampler_of(request(temperature=0), request(), request(temperature=0)), logits)
    best = logits.argmax(-1).tolist()
    assert [drawn.token_ids[0], drawn.token_ids[2]] == [best[0], best[2]]
    assert drawn.finite == [True] * 3
    assert drawn.logprobs == {}


def test_a_seed_gives_the_same_tokens_in_any_slot_batch_and_after_preemption():
    logits, seeded = logits_of(1), request(seed=7)
    alone = [draw(sampler_of(seeded), logits, positions=[p]).token_ids[0] for p in range(20)]
    others = [request(seed=i, temperature=0.5, top_k=3, presence_penalty=1.0) for i in range(20)]
    batch = sampler_of(*others, seeded)
    for position in range(20):
        if position == 10:
            batch.place(3, seeded)  # it ran elsewhere and comes back to another slot
        slots = [*range(3), 3 if position >= 10 else 20]
        rows = torch.cat([logits_of(3, position), logits])
        assert draw(batch, rows, slots, [position] * 4).token_ids[3] == alone[position]
    assert len(set(alone)) > 3


@pytest.mark.parametrize("seed", [-1, 2**64 + 5, 2**63, 0])
def test_any_whole_number_is_a_seed(seed):
    tokens = [draw(sampler_of(request(seed=seed)), logits_of(1), positions=[p]).token_ids[0] for p in range(8)]
    assert tokens == [draw(sampler_of(request(seed=seed)), logits_of(1), positions=[p]).token_ids[0] for p in range(8)]


def test_repetition_penalty_is_transformers():
    prompt, output, logits = [1, 2, 2, 5], [7, 7, 9], logits_of(1)
    expected = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([prompt + output]), logits.clone())
    found = ready(sampler_of(request(prompt, output, repetition_penalty=1.7)), logits, 7)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_presence_and_frequency_penalties_are_of_the_output_alone():
    logits = logits_of(1)
    sampler = sampler_of(request([1, 2, 7], [7, 7, 9], presence_penalty=0.5, frequency_penalty=0.25))
    expected = logits.clone()
    expected[0, 7] -= 0.5 + 2 * 0.25
    expected[0, 9] -= 0.5 + 0.25
    torch.testing.assert_close(ready(sampler, logits, 6), expected)


def test_a_drawn_token_counts_at_the_next_draw():
    logits = torch.zeros(1, VOCAB)
    logits[0, 4], logits[0, 5] = 1.0, 0.9
    sampler = sampler_of(request(temperature=0, frequency_penalty=0.2))
    assert [draw(sampler, logits, positions=[p]).token_ids[0] for p in range(2, 6)] == [4, 5, 4, 5]
    again = sampler_of(request((1, 2), (4, 5), temperature=0, frequency_penalty=0.2))
    assert torch.equal(
        ready(again, logits, 4), ready(sampler_of(request((1, 2), (5, 4), frequency_penalty=0.2)), logits, 4)
    )
    assert draw(again, logits, positions=[4]).token_ids == [4]


def test_counts_are_made_when_first_needed_and_belong_to_the_slots_request():
    sampler = sampler_of(request(temperature=0), request(temperature=0))
    draw(sampler, logits_of(2))
    assert sampler.counted is None
    sampler.place(0, request((1,), (3,), temperature=0, presence_penalty=2.0))
    draw(sampler, logits_of(2))
    assert sampler.counted is not None
    sampler.place(0, request((1,), (), temperature=0, presence_penalty=2.0))
    logits = logits_of(1)
    torch.testing.assert_close(ready(sampler, logits, 1), logits)
    sampler.place(0, request(temperature=0))
    assert not sampler.asked().penalties


def test_logit_bias_and_min_tokens():
    logits = logits_of(1)
    bias = {3: -100.0, 8: 2.5, 29: 1.0}
    sampler = sampler_of(request([1, 2], min_tokens=3, logit_bias=bias, stop_token_ids=[6]), stop_ids=[5, 999])
    expected = logits.clone()
    for token, value in bias.items():
        expected[0, token] += value
    torch.testing.assert_close(ready(sampler, logits, 5), expected)
    oracle = MinNewTokensLengthLogitsProcessor(2, 3, [5, 6], device="cpu")
    for position in (2, 3, 4):
        ids = torch.zeros(1, position, dtype=torch.int64)
        torch.testing.assert_close(ready(sampler, logits, position), oracle(ids, expected))
    ignoring = sampler_of(request([1, 2], min_tokens=3, stop_token_ids=[6], ignore_eos=True), stop_ids=[5])
    assert ready(ignoring, logits, 2).isinf().nonzero().tolist() == [[0, 6]]


def test_a_slots_next_request_has_nothing_of_the_last_ones_bias():
    logits = logits_of(2)
    sampler = sampler_of(request(logit_bias={3: 100}, temperature=0), request(logit_bias={4: 100}, temperature=0))
    assert draw(sampler, logits).token_ids == [3, 4]
    sampler.place(0, request(temperature=0))
    assert draw(sampler, logits).token_ids == [logits[0].argmax().item(), 4]
    sampler.free(1)
    assert sampler.asked().entries == 0


def test_a_freed_slots_bias_is_not_its_next_ones_beside_another_with_a_bias():
    sampler = sampler_of(request(temperature=0, logit_bias={7: 100}), request(temperature=0, logit_bias={3: 100}))
    sampler.free(0)
    sampler.place(0, request(temperature=0))
    logits = logits_of(2)
    assert draw(sampler, logits).token_ids == [int(logits[0].argmax()), 3]


def test_masks_leave_what_their_bits_allow():
    allowed = torch.zeros(2, VOCAB, dtype=torch.bool)
    allowed[0, [0, 29]] = True
    allowed[1, 17] = True
    sampler = sampler_of(request(seed=1), request(temperature=0, logit_bias={3: 100}))
    found = {tuple(draw(sampler, torch.zeros(2, VOCAB), None, [p, p], packed(allowed)).token_ids) for p in range(40)}
    assert found == {(0, 17), (29, 17)}
    nothing = draw(sampler, logits_of(2), masks=packed(torch.zeros_like(allowed)))
    assert nothing.finite == [False, False]
    assert packed(torch.ones(1, 32, dtype=torch.bool)).tolist() == [[-1]]


def test_logprobs_are_the_models_own_and_only_of_rows_that_asked():
    logits = logits_of(3)
    sampler = sampler_of(
        request(),
        request(logprobs=True, temperature=0.4, top_k=2, logit_bias={1: 50}),
        request(logprobs=True, top_logprobs=5, temperature=0),
    )
    found = draw(sampler, logits)
    expected = logits.log_softmax(-1)
    assert set(found.logprobs) == {1, 2}
    assert found.logprobs[1] == (expected[1, 1].item(), [])
    value, top = found.logprobs[2]
    assert value == top[0][1] == expected[2].max().item()
    assert [i for i, _ in top] == expected[2].topk(5).indices.tolist()


def test_beams_are_ranked_by_what_the_bias_leaves():
    logits = logits_of(1)
    sampler = sampler_of(request(beam_width=3, min_tokens=2, logit_bias={7: 3.0}), stop_ids=[4, 5])
    _, top = draw(sampler, logits).logprobs[0]
    changed = logits.clone()
    changed[0, 7] += 3
    changed[0, [4, 5]] = -torch.inf
    best = changed.log_softmax(-1).topk(9)  # without two ends of each of three beams three are left
    assert [i for i, _ in top] == best.indices[0].tolist()
    torch.testing.assert_close(torch.tensor([v for _, v in top]), best.values[0])


def test_prompt_logprobs_by_chunks_are_those_of_all_at_once(monkeypatch):
    generator = torch.Generator().manual_seed(3)
    hidden, head = torch.randn(23, 8, generator=generator), torch.randn(VOCAB + 4, 8, generator=generator)
    targets = torch.randint(VOCAB, (23,), generator=generator)
    expected = (hidden @ head.T)[:, :VOCAB].log_softmax(-1)
    monkeypatch.setattr("gristmill.engine.sampler.PROMPT_CHUNK", 5 * VOCAB)
    sizes = []

    def logits(rows):
        sizes.append(len(rows))
        return rows @ head.T

    chosen, ids, values = prompt_logprobs(hidden, logits, targets, 4, VOCAB)
    assert max(sizes) == 5
    torch.testing.assert_close(chosen, expected[torch.arange(23), targets])
    torch.testing.assert_close(values, expected.topk(4).values)
    torch.testing.assert_close(expected.gather(1, ids), values)


def test_verification_of_sure_drafts_gives_the_tokens_of_plain_draws():
    """Greedy, seeded and cut rows with drafts that are right for a while."""
    sampler = sampler_of(request(temperature=0), request(seed=3), request(seed=4, top_p=0.7))
    logits = torch.stack([logits_of(4, seed=i) for i in range(3)])
    plain = [draw(sampler, logits[:, j], positions=[2 + j] * 3).token_ids for j in range(4)]
    plain = torch.tensor(plain).T
    drafts = plain[:, :3].clone()
    drafts[1, 1] = (drafts[1, 1] + 1) % VOCAB
    for probs in (None, torch.zeros(3, 3, VOCAB)):
        found = sampler.verify(logits, torch.arange(3), torch.full((3,), 2), drafts, torch.tensor([3, 3, 2]), probs)
        assert found.accepted_B.tolist() == [3, 1, 2]
        assert found.next_B.tolist() == [plain[0, 3], plain[1, 1], plain[2, 2]]


def test_verification_of_drawn_drafts_has_the_targets_distribution():
    """One-token drafts from a uniform distribution; the target has temperature and a cut."""
    count, vocab = 20_000, 6
    params = {"temperature": 0.7, "top_k": 4}
    sampler = sampler_of(request(seed=11, **params), vocab=vocab)
    logits = logits_of(1, seed=5, vocab=vocab)
    kept = logits[0] >= logits[0].topk(4).values[-1]
    target = torch.where(kept, logits[0] / 0.7, -torch.inf).softmax(-1)
    drafts = torch.randint(vocab, (count, 1), generator=torch.Generator().manual_seed(0))
    found = sampler.verify(
        logits[None].expand(count, 2, -1),
        torch.zeros(count, dtype=torch.int64),
        3 * torch.arange(count),
        drafts,
        torch.ones(count, dtype=torch.int64),
        torch.full((count, 1, vocab), 1 / vocab),
    )
    first = torch.where(found.accepted_B > 0, drafts[:, 0], found.next_B)
    for tokens in (first, found.next_B[found.accepted_B > 0]):
        counts = torch.bincount(tokens, minlength=vocab)
        assert not counts[~kept].any()
        expected = target * len(tokens)
        statistic = ((counts - expected).square() / expected)[kept].sum()
        assert statistic < 21.1  # chi-square with 3 degrees of freedom passes it once in ten thousand times
