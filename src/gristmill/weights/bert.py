"""BERT on disk (`model_type` bert): the keys of its `config.json` and the names of its tensors.

BertModel, BertForMaskedLM (and BertForPreTraining without its next-sentence head) and BertForSequenceClassification.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import GristmillError
from ..model.encoder import EncoderConfig
from .families import Layout, Part, Shape
from .families.settings import Settings
from .families.standard import ACTIVATION_NAMES, ACTIVATIONS

PREFIX = "bert."
KEYS = {
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "max_seq_len": "max_position_embeddings",
    "token_types": "type_vocab_size",
    "norm_eps": "layer_norm_eps",
    "activation": "hidden_act",
}
_HEADS: dict[str, dict[str, Any]] = {
    "BertModel": {},
    "BertForMaskedLM": {"masked_lm": True},
    "BertForPreTraining": {"masked_lm": True},
    "BertForSequenceClassification": {"num_labels": 2},
}
# What makes a transformer a BERT.
_SHAPE: dict[str, Any] = {
    "positions": "learned",
    "norm": "layernorm",
    "norm_bias": True,
    "norm_position": "post",
    "embedding_norm": True,
    "gated": False,
    "qkv_bias": True,
    "output_bias": True,
    "mlp_bias": True,
}


def read_bert(settings: Settings, has_tensor: Callable[[str], bool]) -> dict[str, Any]:
    """The fields of an `EncoderConfig`. `has_tensor(name)` tells what the weights hold, which alone says whether
    there is a pooler. GristmillError names a key whose value the encoder does not compute."""
    for key, value in (("position_embedding_type", "absolute"), ("is_decoder", False), ("add_cross_attention", False)):
        settings.only(key, value)
    named = settings.filled("architectures", ["BertModel"])
    if not isinstance(named, list) or len(named) != 1 or named[0] not in _HEADS:
        settings.refuse("architectures", "one of " + ", ".join(_HEADS))
    heads = dict(_HEADS[named[0]])
    if heads.get("num_labels"):
        labels = settings.nested("id2label")
        heads["num_labels"] = len(labels.values) if labels is not None else settings.integer("num_labels", 2)
    if heads.get("masked_lm"):
        settings.only("tie_word_embeddings", True)
    num_heads, hidden = settings.integer("num_attention_heads", 12), settings.integer("hidden_size", 768)
    if hidden % num_heads:
        settings.refuse("num_attention_heads", f"a divisor of hidden_size ({hidden})")
    return {
        "vocab_size": settings.integer("vocab_size", 30522),
        "hidden_size": hidden,
        "intermediate_size": settings.integer("intermediate_size", 3072),
        "num_layers": settings.integer("num_hidden_layers", 12),
        "num_heads": num_heads,
        "num_kv_heads": num_heads,
        "head_dim": hidden // num_heads,
        "max_seq_len": settings.integer("max_position_embeddings", 512),
        "token_types": settings.integer("type_vocab_size", 2),
        "norm_eps": settings.number("layer_norm_eps", 1e-12),
        "activation": settings.choice("hidden_act", ACTIVATIONS, "gelu"),
        "pooler": any(has_tensor(f"{prefix}pooler.dense.weight") for prefix in (PREFIX, "")),
        **_SHAPE,
        **heads,
    }


def write_bert(config: EncoderConfig) -> dict[str, Any]:
    """The keys of `config.json`, without those of tokens and types. GristmillError says what BERT cannot hold."""
    if config.masked_lm and config.num_labels:
        raise GristmillError("no BERT of transformers holds both masked_lm and num_labels; drop one of the heads")
    if config.num_labels and not config.pooler:
        raise GristmillError("BertForSequenceClassification needs pooler: true under its num_labels")
    head = "BertForMaskedLM" if config.masked_lm else "BertForSequenceClassification" if config.num_labels else None
    labels = {str(label): f"LABEL_{label}" for label in range(config.num_labels)}
    named = {"id2label": labels, "label2id": {name: int(label) for label, name in labels.items()}} if labels else {}
    return {
        "architectures": [head or "BertModel"],
        "model_type": "bert",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "max_position_embeddings": config.max_seq_len,
        "type_vocab_size": config.token_types,
        "layer_norm_eps": config.norm_eps,
        "hidden_act": ACTIVATION_NAMES[config.activation],
        "position_embedding_type": "absolute",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        **named,
    }


def bert_layout(config: EncoderConfig) -> Layout:
    """Our parameters and the tensors they are stored as. A bare BertModel's names have no prefix."""
    prefix = PREFIX if config.masked_lm or config.num_labels else ""
    hidden, wide = config.hidden_size, config.intermediate_size
    embeddings = f"{prefix}embeddings"
    table: Layout = {
        "embedding.weight": (Part(f"{embeddings}.word_embeddings.weight", (config.vocab_size, hidden)),),
        "position_embedding.weight": (Part(f"{embeddings}.position_embeddings.weight", (config.max_seq_len, hidden)),),
        "token_type_embedding.weight": (
            Part(f"{embeddings}.token_type_embeddings.weight", (config.token_types, hidden)),
        ),
        **_both("embedding_norm", f"{embeddings}.LayerNorm", (hidden,)),
    }
    for layer in range(config.num_layers):
        ours, theirs = f"blocks.{layer}", f"{prefix}encoder.layer.{layer}"
        attention = f"{theirs}.attention"
        parts = [f"{attention}.self.{name}" for name in ("query", "key", "value")]
        table |= {
            f"{ours}.attention.qkv.weight": tuple(Part(f"{name}.weight", (hidden, hidden)) for name in parts),
            f"{ours}.attention.qkv.bias": tuple(Part(f"{name}.bias", (hidden,)) for name in parts),
            **_both(f"{ours}.attention.output", f"{attention}.output.dense", (hidden, hidden)),
            **_both(f"{ours}.attention_norm", f"{attention}.output.LayerNorm", (hidden,)),
            **_both(f"{ours}.feed_forward.up", f"{theirs}.intermediate.dense", (wide, hidden)),
            **_both(f"{ours}.feed_forward.down", f"{theirs}.output.dense", (hidden, wide)),
            **_both(f"{ours}.feed_forward_norm", f"{theirs}.output.LayerNorm", (hidden,)),
        }
    if config.pooler:
        table |= _both("pooler", f"{prefix}pooler.dense", (hidden, hidden))
    if config.masked_lm:
        head = "cls.predictions"
        table |= _both("masked_lm.dense", f"{head}.transform.dense", (hidden, hidden))
        table |= _both("masked_lm.norm", f"{head}.transform.LayerNorm", (hidden,))
        table["masked_lm.bias"] = (Part(f"{head}.bias", (config.vocab_size,)),)
    if config.num_labels:
        table |= _both("classifier", "classifier", (config.num_labels, hidden))
    return table


# Tensors that writers add: a buffer of positions, the tied table and its bias a second time (which must be the same),
# and the next-sentence head, which nothing here computes.
HARMLESS = ("embeddings.position_ids", "cls.seq_relationship.weight", "cls.seq_relationship.bias")
TIED = {"cls.predictions.decoder.weight": "embedding.weight", "cls.predictions.decoder.bias": "masked_lm.bias"}


def old_name(name: str) -> str:
    """What a norm's tensor is called in checkpoints that came from TensorFlow."""
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


def _both(ours: str, theirs: str, shape: Shape) -> Layout:
    """A weight and the bias of as many rows."""
    return {
        f"{ours}.weight": (Part(f"{theirs}.weight", shape),),
        f"{ours}.bias": (Part(f"{theirs}.bias", shape[:1]),),
    }
