"""How a sentence-transformers directory says that a text becomes one vector: `modules.json` and the pooling's
`config.json`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..artifact import write_json
from ..errors import GristmillError
from ..model.encoder import EncoderConfig, Pooling

MODULES = "modules.json"
POOLING = "1_Pooling/config.json"
_KEYS: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
}


@dataclass(frozen=True)
class SaidPooling:
    """What the directory says; `pooling` is None where it says nothing."""

    pooling: Pooling | None = None
    normalize: bool = False


def read_pooling(directory: Path) -> SaidPooling:
    """GristmillError names a module or a pooling that the encoder does not compute."""
    path = directory / MODULES
    if not path.is_file():
        return SaidPooling()
    pooling: Pooling | None = None
    normalize = False
    modules = _read(path)
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise GristmillError(f"{path} must be a list of modules")
    for module in modules:
        kind = str(module.get("type")).rpartition(".")[2]
        if kind == "Pooling":
            pooling = _mode(directory / str(module.get("path", "1_Pooling")) / "config.json")
        elif kind == "Normalize":
            normalize = True
        elif kind != "Transformer":
            raise GristmillError(f"{path}: module {kind!r} is not supported, only Transformer, Pooling, Normalize")
    return SaidPooling(pooling, normalize)


def _mode(path: Path) -> Pooling:
    settings = _read(path)
    if not isinstance(settings, dict):
        raise GristmillError(f"{path} must be a JSON object")
    chosen = [key for key, value in settings.items() if key.startswith("pooling_mode_") and value]
    if len(chosen) != 1 or chosen[0] not in _KEYS:
        raise GristmillError(f"{path}: exactly one of {', '.join(_KEYS)} must be true, found {chosen}")
    return _KEYS[chosen[0]]


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise GristmillError(f"{path} is missing, though {MODULES} speaks of it") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise GristmillError(f"{path} is not JSON ({error}); get the file again") from None


def write_pooling(directory: Path, config: EncoderConfig) -> None:
    """The files from which `read_pooling` reads `config`'s pooling again."""
    kinds = ["Transformer", "Pooling", *(["Normalize"] if config.normalize else [])]
    modules = [
        {
            "idx": at,
            "name": str(at),
            "path": "" if at == 0 else f"{at}_{kind}",
            "type": f"sentence_transformers.models.{kind}",
        }
        for at, kind in enumerate(kinds)
    ]
    modes = {key: pooling == config.pooling for key, pooling in _KEYS.items()}
    (directory / POOLING).parent.mkdir(exist_ok=True)
    write_json(directory / POOLING, {"word_embedding_dimension": config.hidden_size, **modes})
    write_json(directory / MODULES, modules)
    write_json(directory / "sentence_bert_config.json", {"max_seq_length": config.max_seq_len, "do_lower_case": False})
