"""Encoders and encoder-decoders in and out: BERT, T5, sentence-transformers directories, and decoders as encoders."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from ..artifact import write_json
from ..errors import GristmillError
from ..model.config import ModelConfig
from ..model.encoder import Encoder, EncoderConfig, Pooling
from ..model.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from ..model.undrawn import undrawn
from . import bert, t5
from .families import Layout, Part, Shape
from .families.effective import differences, effective
from .families.settings import Settings
from .hf import cast
from .hf_config import CONFIG, dtype_name, read_settings
from .json_files import read_object
from .layout import as_type, split_rows, stored_shapes
from .load import load_model
from .locate import locate_model
from .safetensors_writer import StoredTensor, write_weights
from .sentence import read_pooling, write_pooling
from .tensor_files import TensorFiles
from .tokenizer_files import copy_tokenizer, special_token_ids

ConfigT = TypeVar("ConfigT", bound=ModelConfig)
ModelT = TypeVar("ModelT", Encoder, EncoderDecoder)


def load_encoder(
    path: Path | str,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    pooling: Pooling | None = None,
    normalize: bool | None = None,
) -> Encoder:
    """The encoder in a Hugging Face or sentence-transformers directory: a BERT, or any decoder that `load_model` reads,
    then without its head and reading as it does.

    `pooling` and `normalize` are the directory's own (`modules.json`) unless given; where it says nothing, BERT takes
    the first token, a decoder the last. GristmillError names the key or tensor that has no place.
    """
    directory = locate_model(path)
    settings = read_settings(directory)
    said = read_pooling(directory)
    wanted = {"normalize": said.normalize if normalize is None else normalize}
    if settings.get("model_type") != "bert":
        decoder = load_model(directory, dtype, device)
        return Encoder.from_decoder(decoder, pooling=pooling or said.pooling or "last", **wanted)
    files = TensorFiles(directory)
    where = Settings(settings, directory / CONFIG)
    fields = bert.read_bert(where, lambda name: name in files.names())
    fields |= {"pooling": pooling or said.pooling or "cls", **wanted}
    config = _validated(EncoderConfig, fields, bert.KEYS, directory / CONFIG)
    _check_number_of_layers(config.num_layers, "num_hidden_layers", files)
    table = _as_named(bert.bert_layout(config), files)
    files.check(stored_shapes(table) | _harmless(files, table, bert.TIED, bert.HARMLESS))
    with undrawn():
        model = Encoder(config)
    return _fill(model, table, files, dtype, device)


def read_encoder_config(path: Path) -> EncoderConfig | EncoderDecoderConfig:
    """The shape that the `config.json` of a BERT or a T5 describes. What only weights tell (a pooler, a head of its
    own) is read from those beside it, and without them taken as transformers builds it. GristmillError names the key
    that is not understood."""
    settings = read_object(path, f"{path} does not exist")
    where = Settings(settings, path)
    try:
        files = TensorFiles(path.parent)
    except GristmillError:
        files = None
    if settings.get("model_type") == "t5":
        tied = where.flag("tie_word_embeddings", True) if files is None else _has_tied_head(where, files)
        return _validated(EncoderDecoderConfig, t5.read_t5(where, tied), t5.KEYS, path)
    named = where.filled("architectures", ["BertModel"])

    def has_tensor(name: str) -> bool:
        return name in files.names() if files is not None else named != ["BertForMaskedLM"]

    return _validated(EncoderConfig, bert.read_bert(where, has_tensor), bert.KEYS, path)


def save_encoder(
    model: Encoder, directory: Path, tokenizer_dir: Path | None = None, dtype: torch.dtype = torch.float32
) -> None:
    """Write a BERT directory that transformers and sentence-transformers load: config, weights, how texts are pooled,
    and the tokenizer's files. GristmillError says what of the model BERT has no place for."""
    settings = bert_settings(model.config)
    _write(model, bert.bert_layout(model.config), settings, directory, tokenizer_dir, dtype)
    write_pooling(directory, model.config)


def bert_settings(config: EncoderConfig) -> dict[str, Any]:
    """The keys of the `config.json` that `save_encoder` writes. GristmillError says what of the shape BERT has no place
    for."""
    said = {"pooling": config.pooling, "normalize": config.normalize}
    settings = bert.write_bert(config)
    path = Path(CONFIG)
    fields = bert.read_bert(Settings(settings, path), lambda name: config.pooler) | said
    _check_home(config, _validated(EncoderConfig, fields, bert.KEYS, path), "BERT")
    return settings


def load_encoder_decoder(
    path: Path | str, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> EncoderDecoder:
    """The T5 in a Hugging Face directory. GristmillError names the key or tensor that has no place."""
    directory = locate_model(path)
    settings = read_settings(directory)
    if settings.get("model_type") != "t5":
        raise GristmillError(
            f"{directory / CONFIG}: model_type {settings.get('model_type')!r} is not supported, only t5"
        )
    files = TensorFiles(directory)
    where = Settings(settings, directory / CONFIG)
    fields = t5.read_t5(where, tied=_has_tied_head(where, files))
    config = _validated(EncoderDecoderConfig, fields, t5.KEYS, directory / CONFIG)
    _check_number_of_layers(config.num_layers, "num_layers", files)
    _check_number_of_layers(config.num_decoder_layers, "num_decoder_layers", files)
    table = t5.t5_layout(config)
    tied = t5.TIED | ({t5.HEAD: "embedding.weight"} if config.tie_embeddings else {})
    files.check(stored_shapes(table) | _harmless(files, table, tied, t5.HARMLESS))
    with undrawn():
        model = EncoderDecoder(config)
    return _fill(model, table, files, dtype, device)


def save_encoder_decoder(
    model: EncoderDecoder, directory: Path, tokenizer_dir: Path | None = None, dtype: torch.dtype = torch.float32
) -> None:
    """Write a `T5ForConditionalGeneration` directory. GristmillError says what of the model T5 has no place for."""
    settings = t5.write_t5(model.config)
    fields = t5.read_t5(Settings(settings, Path(CONFIG)), tied=model.config.tie_embeddings)
    _check_home(model.config, _validated(EncoderDecoderConfig, fields, t5.KEYS, Path(CONFIG)), "T5")
    _write(model, t5.t5_layout(model.config), settings, directory, tokenizer_dir, dtype)


def _has_tied_head(settings: Settings, files: TensorFiles) -> bool:
    """Whether the head is the embedding: transformers 5 says that it is even where the files hold another."""
    said = settings.flag("tie_word_embeddings", True)
    if t5.HEAD not in files.names() or "shared.weight" not in files.names():
        return said
    head, embedding = files.read(t5.HEAD), files.read("shared.weight")
    return said and head.shape == embedding.shape and torch.equal(head, embedding)


def _validated(kind: type[ConfigT], fields: Mapping[str, Any], keys: Mapping[str, str], path: Path) -> ConfigT:
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        for ours, theirs in keys.items():
            message = re.sub(rf"(?<![\w.]){ours}\b", theirs, message)
        raise GristmillError(f"{path}: {keys.get(field, field) + ': ' if field else ''}{message}") from None


def _check_home(config: ConfigT, back: ConfigT, home: str) -> None:
    """Refuse to write what would come back as another model."""
    if missing := differences(effective(config), effective(back)):
        raise GristmillError(f"{home} cannot hold this model: it has no {' and no '.join(missing)}")


def _check_number_of_layers(number: int, key: str, files: TensorFiles) -> None:
    """Refuse more layers than there are tensors, before a table of that length is made."""
    if number > len(files.names()):
        raise GristmillError(
            f"{files.directory / CONFIG}: {key} = {number}, but the weights hold {len(files.names())} tensors"
        )


def _as_named(table: Layout, files: TensorFiles) -> Layout:
    """BERT's table with the names that the files use: with the prefix or without, norms in their old names or new."""
    names = files.names()
    has_prefix = any(name.startswith(bert.PREFIX) for name in names)

    def named(part: Part) -> Part:
        bare = part.name.removeprefix(bert.PREFIX)
        name = bert.PREFIX + bare if has_prefix and not bare.startswith(("cls.", "classifier.")) else bare
        old = bert.old_name(name)
        return replace(part, name=old if old in names else name)

    return {ours: tuple(named(part) for part in parts) for ours, parts in table.items()}


def _harmless(files: TensorFiles, table: Layout, tied: Mapping[str, str], endings: Collection[str]) -> dict[str, Shape]:
    """Tensors beyond the table that say nothing new: those that repeat one of the table's, and those known by name."""
    extra = {name: files.shape(name) for name in files.names() if name.endswith(tuple(endings))}
    for name, ours in tied.items():
        if name not in files.names() or ours not in table:
            continue
        original = table[ours][0].name
        if original in files.names() and not torch.equal(files.read(name), files.read(original)):
            raise GristmillError(f"{files.directory}: tensor {name} differs from {original}, which it should repeat")
        extra[name] = files.shape(name)
    return extra


def _fill(
    model: ModelT,
    table: Layout,
    files: TensorFiles,
    dtype: torch.dtype,
    device: torch.device | str,
) -> ModelT:
    """The model, built without memory, with every parameter from the files, which were checked."""
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    assert set(shapes) == set(table), set(shapes) ^ set(table)
    state: dict[str, Tensor] = {}
    for ours, parts in table.items():
        # Concatenating copies, which a view of a mapped file needs before it becomes a parameter.
        pieces = [part.load(as_type(files.read_float(part.name), dtype, part.name, device)) for part in parts]
        state[ours] = torch.cat(pieces).view(shapes[ours])
    model.load_state_dict(state, assign=True)
    return model


def _write(
    model: nn.Module,
    table: Layout,
    settings: dict[str, Any],
    directory: Path,
    tokenizer_dir: Path | None,
    dtype: torch.dtype,
) -> None:
    token_ids: dict[str, int] = {}
    if tokenizer_dir is not None:
        token_ids = special_token_ids(tokenizer_dir, settings["vocab_size"])
    directory.mkdir(parents=True, exist_ok=True)
    if tokenizer_dir is not None:
        copy_tokenizer(tokenizer_dir, directory)
    state = model.state_dict()
    tensors = [
        StoredTensor(part.name, part.shape, dtype, partial(_stored, part, rows, dtype))
        for ours, parts in table.items()
        for part, rows in split_rows(state[ours].detach(), parts)
    ]
    write_weights(tensors, directory)
    tokens = {f"{name}_token_id": token_ids[name] for name in ("bos", "eos", "pad") if name in token_ids}
    kind = {"torch_dtype": dtype_name(dtype), "dtype": dtype_name(dtype)}
    write_json(directory / CONFIG, settings | tokens | kind)


def _stored(part: Part, rows: Tensor, dtype: torch.dtype) -> Tensor:
    return cast(part.save(rows), dtype, part.name)
