"""How a sentence-transformers directory says that a text becomes one vector: `modules.json` and the pooling's
`config.json`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..artifact import write_json
from ..errors import GristmillError
from ..model.encoder import EncoderConfig, Pooling
from .json_files import read_object, read_value, short

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
    modules = read_value(path, f"{path} is missing")
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise GristmillError(f"{path} must be a list of modules")
    for module in modules:
        kind = str(module.get("type")).rpartition(".")[2]
        if kind == "Pooling":
            pooling = _mode(_beside(path, module.get("path", "1_Pooling")) / "config.json")
        elif kind == "Normalize":
            normalize = True
        elif kind != "Transformer":
            raise GristmillError(f"{path}: module {kind!r} is not supported, only Transformer, Pooling, Normalize")
    return SaidPooling(pooling, normalize)


def _beside(modules: Path, name: Any) -> Path:
    """The directory of a module, which stands beside `modules.json`."""
    if not isinstance(name, str) or Path(name).name != name or name in ("", ".."):
        raise GristmillError(f"{modules}: path {short(name)} must be the name of a directory beside {MODULES}")
    return modules.parent / name


def _mode(path: Path) -> Pooling:
    settings = read_object(path, f"{path} is missing, though {MODULES} speaks of it")
    chosen = [key for key, value in settings.items() if key.startswith("pooling_mode_") and value]
    if len(chosen) != 1 or chosen[0] not in _KEYS:
        raise GristmillError(f"{path}: exactly one of {', '.join(_KEYS)} must be true, found {chosen}")
    return _KEYS[chosen[0]]


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
