"""Import and export: a tokenizer of another program as a directory of ours, and the other way round."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from ...artifact import write_json, write_text
from ...errors import GristmillError
from ..tokenizer import TOKENIZER_FILES, Tokenizer, read_json, read_template
from .gguf import import_vocabulary
from .gguf_metadata import MAGIC
from .huggingface import read_named, write_directory
from .sentencepiece import backend_of_model, read_model
from .sentencepiece_writer import write_model
from .tekken import is_tekken, read_tekken
from .tiktoken import PATTERNS, backend_of_ranks, read_ranks, read_settings, write_ranks

FORMATS = ("tiktoken", "huggingface", "sentencepiece")
_NAMES = ("tokenizer.json", "tekken.json", "tokenizer.model")  # in a model's directory, the first that is there
# What ends a text, tried in this order where a file does not say.
_EOS = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<｜end▁of▁sentence｜>", "<eos>", "<|eos|>", "<EOT>")
_RANK_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} [0-9]+\r?\n")
_FIM = {"<|fim_prefix|>": 100258, "<|fim_middle|>": 100259, "<|fim_suffix|>": 100260}


@dataclass(frozen=True)
class _Published:
    """What belongs to a published ranks file and does not stand in it."""

    pattern: str
    special_tokens: Mapping[str, int]


# By the sha256 of the file: OpenAI's r50k, p50k, cl100k and o200k, and Qwen's (first version).
_PUBLISHED = {
    "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930": _Published("gpt2", {"<|endoftext|>": 50256}),
    "94b5ca7dff4d00767bc256fdd1b27e5b17361d7b8a5f968547f9f23eb70d2069": _Published("gpt2", {"<|endoftext|>": 50256}),
    "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7": _Published(
        "gpt4", {"<|endoftext|>": 100257, **_FIM, "<|endofprompt|>": 100276}
    ),
    "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d": _Published(
        "o200k", {"<|endoftext|>": 199999, "<|endofprompt|>": 200018}
    ),
    "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186": _Published(
        "qwen2", {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645}
    ),
}


def import_tokenizer(
    path: Path | str,
    out_dir: Path | str,
    pattern: str | None = None,
    special_tokens: Mapping[str, int] | None = None,
    eos_token: str | None = None,
    chat_template: str | None = None,
) -> Tokenizer:
    """Write the tokenizer at `path` as a directory that `Tokenizer.load` reads, and load it.

    `path`: a ranks file of tiktoken, a SentencePiece model, a tekken file, a tokenizer.json, or a directory with one of
    the last three; or a GGUF file, of which the head is enough. `pattern` (gpt2, gpt4, llama3, qwen2, o200k or a regex)
    and `special_tokens` (string -> id) are for ranks files, which name neither; for those that we write and for
    OpenAI's and Qwen's they are known. `eos_token` ends a text, where the file does not say which token does;
    `chat_template`: a template's source, instead of the directory's own. GristmillError names what is missing or
    damaged; `out_dir` is then as it was.
    """
    path, out_dir = Path(path), Path(out_dir)
    source = _file_of(path)
    if out_dir.exists() and not out_dir.is_dir():
        raise GristmillError(f"{out_dir} is a file; name a directory to write the tokenizer to")
    place = out_dir.resolve()
    writing = place.with_name(f".{place.name}.writing")
    shutil.rmtree(writing, ignore_errors=True)
    writing.mkdir(parents=True)
    try:
        _write(source, writing, pattern, special_tokens, eos_token, chat_template)
        try:
            Tokenizer.load(writing)
        except GristmillError as error:
            cause = str(error).replace(str(writing), str(out_dir))
            raise GristmillError(f"{source} cannot be imported: {cause}") from None
        _put_in_place(writing, place, source)
    finally:
        shutil.rmtree(writing, ignore_errors=True)
    return Tokenizer.load(out_dir)


def _write(
    source: Path,
    out_dir: Path,
    pattern: str | None,
    special_tokens: Mapping[str, int] | None,
    eos_token: str | None,
    chat_template: str | None,
) -> None:
    """`import_tokenizer` into an empty directory, without loading what is written."""
    form = _form_of(source)
    if form != "ranks" and (pattern is not None or special_tokens is not None):
        raise GristmillError(
            f"{source} is no ranks file, its pattern and special tokens stand in itself; leave out --pattern and "
            f"--special (pattern, special_tokens)"
        )
    if form == "json":
        _import_json(source, out_dir, eos_token, chat_template)
        return
    if form == "gguf":
        if eos_token is not None or chat_template is not None:
            raise GristmillError(
                f"{source} is a GGUF file, which names its eos token and chat template itself; leave out --eos "
                f"(eos_token, chat_template)"
            )
        import_vocabulary(source, out_dir)
        return
    named: dict[str, str] = {}
    if form == "ranks":
        ranks = read_ranks(source)
        pattern, special_tokens = _of_ranks(source, pattern, special_tokens)
        backend = backend_of_ranks(ranks, pattern, special_tokens, str(source))
    elif form == "tekken":
        backend, named = read_tekken(source)
    else:
        backend, named = backend_of_model(read_model(source), str(source))
    specials = [token.content for token in backend.get_added_tokens_decoder().values() if token.special]
    named = _with_eos(named, specials, eos_token, source)
    template = chat_template if chat_template is not None else _template_beside(source)
    write_directory(backend, named, [token for token in specials if token not in named.values()], template, out_dir)


def export_tokenizer(tokenizer: Tokenizer, form: str, path: Path | str) -> list[Path]:
    """Write a tokenizer as `form`: tiktoken, a ranks file and its `.json` (`tiktoken.write_ranks`), sentencepiece, a
    `.model` file (`sentencepiece_writer.write_model`), or huggingface, a directory. Returns the files or the directory
    that were written."""
    path = Path(path)
    if form not in FORMATS:
        known = f"{', '.join(FORMATS[:-1])} and {FORMATS[-1]}"
        raise GristmillError(f"format {form!r} is not written; known are {known}")
    if form == "tiktoken":
        write_ranks(tokenizer, path)
        return [path, path.with_suffix(".json")]
    if form == "sentencepiece":
        write_model(tokenizer, path)
        return [path]
    path.mkdir(parents=True, exist_ok=True)
    for file in tokenizer.files:
        if file.resolve() != (path / file.name).resolve():
            shutil.copyfile(file, path / file.name)
    return [path]


def _file_of(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in _NAMES:
        if (path / name).is_file():
            return path / name
    raise GristmillError(f"{path} holds no {', '.join(_NAMES[:-1])} or {_NAMES[-1]}")


def _form_of(path: Path) -> str:
    """By the first bytes: gguf, json, tekken, ranks or sentencepiece."""
    try:
        with open(path, "rb") as file:
            head = file.read(1000)
    except OSError as error:
        raise GristmillError(f"{path} cannot be read: {error.strerror}") from None
    if head.startswith(MAGIC):
        return "gguf"
    if head.lstrip().startswith(b"{"):
        return "tekken" if is_tekken(path) else "json"
    return "ranks" if _RANK_LINE.match(head) else "sentencepiece"


def _of_ranks(
    path: Path, pattern: str | None, special_tokens: Mapping[str, int] | None
) -> tuple[str, Mapping[str, int]]:
    """The pattern and special tokens of a ranks file: those given, those written beside it, or those it was
    published with."""
    if pattern is not None and special_tokens is not None:
        return pattern, special_tokens
    known = _settings_beside(path) or _PUBLISHED.get(hashlib.sha256(path.read_bytes()).hexdigest())
    if known is None:
        raise GristmillError(
            f"{path} is a ranks file that is not known here; give its pattern ({', '.join(PATTERNS)} or a regex) and "
            f"its special tokens with their ids: --pattern and --special (pattern, special_tokens)"
        )
    return (
        known.pattern if pattern is None else pattern,
        known.special_tokens if special_tokens is None else special_tokens,
    )


def _settings_beside(path: Path) -> _Published | None:
    """What `write_ranks` has put beside a ranks file; None where a file of that name is something else."""
    beside = path.with_suffix(".json")
    state = read_settings(beside) if beside != path else None
    if state is None:
        return None
    try:
        return _Published(str(state["pat_str"]), {str(k): int(v) for k, v in state["special_tokens"].items()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise GristmillError(f"{beside} does not hold pat_str and special_tokens: {error!r}") from None


def _with_eos(named: Mapping[str, str], specials: list[str], eos_token: str | None, source: Path) -> dict[str, str]:
    """`named` with the token that ends a text: the one given, the one that the file names, or one by its usual name."""
    if eos_token is None:
        eos_token = named.get("eos_token") or next((token for token in _EOS if token in specials), None)
    if eos_token is None:
        raise GristmillError(f"{source} does not say which token ends a text; give it with --eos (eos_token)")
    if eos_token not in specials:
        raise GristmillError(
            f"{source} has no special token {eos_token!r} that could end a text; give another with --eos (eos_token)"
        )
    return {**named, "eos_token": eos_token}


def _template_beside(source: Path) -> str | None:
    """The template of a model's directory; a file of another name tells nothing of its neighbours."""
    if source.name not in _NAMES:
        return None
    return read_template(source.parent, read_json(source.with_name("tokenizer_config.json")))


def _import_json(source: Path, out_dir: Path, eos_token: str | None, chat_template: str | None) -> None:
    """Copy a tokenizer.json, byte for byte, with what stands beside it; say what ends a text where nothing says it."""
    names = TOKENIZER_FILES if source.name == "tokenizer.json" else ()  # another name tells nothing of its neighbours
    beside = [source.with_name(name) for name in names if name != source.name and source.with_name(name).is_file()]
    for file, name in [(source, "tokenizer.json"), *((file, file.name) for file in beside)]:
        if name in ("tokenizer_config.json", "special_tokens_map.json"):
            read_json(file)  # so that a damaged one is named by where it stands
        shutil.copyfile(file, out_dir / name)
    if chat_template is not None:
        write_text(out_dir / "chat_template.jinja", chat_template)
    settings: dict[str, Any] = read_json(out_dir / "tokenizer_config.json")
    named = read_named(out_dir)
    if eos_token is None and "eos_token" in named:
        return
    try:
        backend = tokenizers.Tokenizer.from_file(str(source))
    except Exception as error:  # the library raises bare Exception
        raise GristmillError(f"{source} is not a tokenizer that the tokenizers library reads: {error}") from None
    specials = [token.content for token in backend.get_added_tokens_decoder().values() if token.special]
    ending = _with_eos(named, specials, eos_token, source)["eos_token"]
    write_json(
        out_dir / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **settings}
        | {"eos_token": ending},
    )


def _put_in_place(writing: Path, place: Path, source: Path) -> None:
    """Make the finished directory `writing` the directory `place`; of one that exists, only the tokenizer's files."""
    if not place.exists():
        os.rename(writing, place)
        return
    for name in TOKENIZER_FILES:  # what another tokenizer has left there would be read with this one
        if place != source.parent.resolve():
            (place / name).unlink(missing_ok=True)
    for file in sorted(writing.iterdir()):
        shutil.move(file, place / file.name)
