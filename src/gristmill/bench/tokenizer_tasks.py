"""What `gristmill bench tokenizers` measures, each in a process of its own: training, encoding and packing by gristmill
and by other tools.

Run as `python -m gristmill.bench.tokenizer_tasks TASK ARGUMENTS`, with the arguments as a JSON object. All tasks read
the same corpus in the same way; what it takes to read it is in the cost of training and packing, and not in that of
encoding, whose result is printed as one JSON object.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gristmill.data.corpus import document_batches
from gristmill.tokenizer.sample import split_column

PRETOKENIZER: Final = "gpt4"
CHUNK_BYTES = 2 << 20  # of text between two looks at the clock
MAX_SENTENCE_BYTES = 1 << 20  # documents longer than this sentencepiece leaves out of training

Arguments = dict[str, Any]
Encode = Callable[[pa.Array, list[str]], list[list[int]] | tuple[NDArray[np.uint32], NDArray[np.int64]]]


def training_texts(corpus: str) -> Iterator[str]:
    """The documents of the train split."""
    for batch in document_batches(corpus, "train", columns=["text"]):
        yield from batch["text"].to_pylist()


def train_gristmill(arguments: Arguments) -> None:
    """Stage `tokenizer` on all of the text."""
    from gristmill.artifact import StageRun
    from gristmill.events import StageLog
    from gristmill.tokenizer.config import TokenizerConfig
    from gristmill.tokenizer.train import train_tokenizer

    out = Path(arguments["out"])
    (out / "_scratch").mkdir(parents=True)
    inputs = {"corpus": Path(arguments["corpus"])}
    run = StageRun(out, out / "_scratch", inputs, 0, StageLog.silent(), workers=arguments["workers"])
    config = TokenizerConfig(
        vocab_size=arguments["vocab_size"], pretokenizer=PRETOKENIZER, sample_bytes=arguments["sample_bytes"]
    )
    train_tokenizer(config, run)


def train_tokenizers(arguments: Arguments) -> None:
    """Hugging Face's BpeTrainer, as its documentation shows for byte-level BPE."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    from gristmill.tokenizer.pretokenize import build_pretokenizer

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = build_pretokenizer(PRETOKENIZER)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=arguments["vocab_size"],
        min_frequency=2,
        special_tokens=list(_special_tokens()),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(training_texts(arguments["corpus"]), trainer)
    Path(arguments["out"]).mkdir()
    tokenizer.model.save(arguments["out"])


def train_rustbpe(arguments: Arguments) -> None:
    """rustbpe, with the same regex; it knows no special tokens."""
    _rustbpe(arguments)


def _rustbpe(arguments: Arguments) -> Any:
    import rustbpe

    from gristmill.tokenizer.pretokenize import pattern_of

    tokenizer = rustbpe.Tokenizer()
    vocab_size = arguments["vocab_size"] - len(_special_tokens())
    tokenizer.train_from_iterator(training_texts(arguments["corpus"]), vocab_size, pattern=pattern_of(PRETOKENIZER))
    return tokenizer


def train_sentencepiece(arguments: Arguments) -> None:
    """sentencepiece's BPE with byte fallback, text as it is (no normalization)."""
    import sentencepiece

    out = Path(arguments["out"])
    out.mkdir()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=training_texts(arguments["corpus"]),
        model_prefix=str(out / "model"),
        model_type="bpe",
        vocab_size=arguments["vocab_size"],
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        max_sentence_length=MAX_SENTENCE_BYTES,
        minloglevel=2,
    )


def pack(arguments: Arguments) -> None:
    """Stage `tokens`."""
    from gristmill.artifact import StageRun
    from gristmill.events import StageLog
    from gristmill.tokenizer.config import TokensConfig
    from gristmill.tokenizer.pack import pack as pack_tokens

    out = Path(arguments["out"])
    (out / "_scratch").mkdir(parents=True)
    inputs = {name: Path(arguments[name]) for name in ("corpus", "tokenizer")}
    run = StageRun(out, out / "_scratch", inputs, 0, StageLog.silent(), workers=arguments["workers"])
    pack_tokens(TokensConfig(), run)


def encode_gristmill(arguments: Arguments) -> dict[str, Any]:
    """gristmill's compiled encoder: once with nothing remembered, and once more."""
    from gristmill.tokenizer.encoder import Encoder

    backend = _backend(arguments["tokenizer"])
    warm_up, encoder = Encoder.of(backend), Encoder.of(backend)
    assert warm_up is not None
    assert encoder is not None
    warm_up.encode(pa.array(["The quick brown fox."], pa.large_string()))  # loads, or compiles, the machine code
    cold = _timed(lambda array, texts: encoder.encode(array), arguments)
    warm = _timed(lambda array, texts: encoder.encode(array), arguments | {"ids": None})
    return cold | {"warm": warm["mb_per_second"]}


def encode_tokenizers(arguments: Arguments) -> dict[str, Any]:
    """`Tokenizer.encode` of one text after the other."""
    backend = _backend(arguments["tokenizer"])
    return _timed(
        lambda array, texts: [backend.encode(text, add_special_tokens=False).ids for text in texts], arguments
    )


def encode_tokenizers_batch(arguments: Arguments) -> dict[str, Any]:
    """`Tokenizer.encode_batch`, told to use one thread."""
    backend = _backend(arguments["tokenizer"])
    return _timed(
        lambda array, texts: [found.ids for found in backend.encode_batch(texts, add_special_tokens=False)], arguments
    )


def encode_tiktoken(arguments: Arguments) -> dict[str, Any]:
    """tiktoken's `encode_ordinary` with the ranks that gristmill exports."""
    import tiktoken

    from gristmill.tokenizer.formats.tiktoken import read_ranks, write_ranks
    from gristmill.tokenizer.tokenizer import Tokenizer

    path = Path(arguments["scratch"]) / "bench.tiktoken"
    write_ranks(Tokenizer.load(arguments["tokenizer"]), path)
    settings = json.loads(path.with_suffix(".json").read_text())
    encoding = tiktoken.Encoding("bench", mergeable_ranks=read_ranks(path), **settings)
    return _timed(lambda array, texts: [encoding.encode_ordinary(text) for text in texts], arguments)


def encode_rustbpe(arguments: Arguments) -> dict[str, Any]:
    """rustbpe's `encode`, with what it has learned itself from the same text."""
    tokenizer = _rustbpe(arguments)
    return _timed(lambda array, texts: [tokenizer.encode(text) for text in texts], arguments)


def encode_sentencepiece(arguments: Arguments) -> dict[str, Any]:
    """sentencepiece's `encode`, with its own model of the same text."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(Path(arguments["model"]) / "model.model"))
    return _timed(lambda array, texts: [processor.encode(text) for text in texts], arguments)


def _timed(encode: Encode, arguments: Arguments) -> dict[str, Any]:
    """Encode the documents of a corpus, the first `megabytes` of them. Only `encode` is timed, on the clock of this
    process. The ids are written to `ids` and, int64 `[documents + 1]`, where each document's begin to `ids`.offsets."""
    seconds = 0.0
    size = 0
    found: list[NDArray[np.uint32]] = []
    lengths: list[NDArray[np.int64]] = []
    for array in _chunks(arguments["corpus"]):
        texts = array.to_pylist()
        started = time.process_time()
        encoded = encode(array, texts)
        seconds += time.process_time() - started
        size += sum(len(text.encode()) for text in texts)
        if isinstance(encoded, tuple):
            found.append(encoded[0])
            lengths.append(np.diff(encoded[1]))
        else:
            found += [np.array(ids, np.uint32) for ids in encoded]
            lengths.append(np.array([len(ids) for ids in encoded], np.int64))
        if size >= arguments["megabytes"] * 1e6:
            break
    counts = np.concatenate(lengths)
    if arguments["ids"] is not None:
        np.save(arguments["ids"], np.concatenate(found))
        np.save(f"{arguments['ids']}.offsets", np.concatenate([[0], np.cumsum(counts)]))
    return {"megabytes": size / 1e6, "mb_per_second": size / 1e6 / seconds, "tokens": int(counts.sum())}


def _chunks(corpus: str) -> Iterator[pa.Array]:
    """The texts of all documents, about `CHUNK_BYTES` at a time."""
    for batch in document_batches(corpus, columns=["text"]):
        yield from split_column(batch["text"].cast(pa.large_string()), CHUNK_BYTES)


def _backend(directory: str) -> Any:
    from gristmill.tokenizer.tokenizer import Tokenizer

    return Tokenizer.load(directory).backend


def _special_tokens() -> tuple[str, ...]:
    """Those that gristmill puts into the vocabulary, so that the others learn as many merges."""
    from gristmill.tokenizer.config import TokenizerConfig
    from gristmill.tokenizer.special import specials_of

    return specials_of(TokenizerConfig()).tokens


TASKS: dict[str, Callable[[Arguments], Any]] = {
    "train gristmill": train_gristmill,
    "train tokenizers": train_tokenizers,
    "train rustbpe": train_rustbpe,
    "train sentencepiece": train_sentencepiece,
    "encode gristmill": encode_gristmill,
    "encode tokenizers": encode_tokenizers,
    "encode tokenizers in batches": encode_tokenizers_batch,
    "encode tiktoken": encode_tiktoken,
    "encode rustbpe": encode_rustbpe,
    "encode sentencepiece": encode_sentencepiece,
    "pack": pack,
}


if __name__ == "__main__":
    print(json.dumps(TASKS[sys.argv[1]](json.loads(sys.argv[2]))))
