"""Stage `evaluation`: every model of a run on the same validation text and the same held-out tasks, in one report."""

from __future__ import annotations

import json
import time
from typing import Any

from ..artifact import Figures, StageRun, write_json, write_text
from ..engine.llm import LLM
from ..engine.sampling import SamplingParams
from ..errors import GristmillError
from ..model.decoder import Decoder
from ..tokenizer.store import TokenStore
from ..tokenizer.tokenizer import Tokenizer, check_same
from ..train.device import resolve_device
from ..weights.load import load_model
from .accuracy import answer_tasks
from .bpb import token_bits
from .config import EvaluateConfig
from .heldout import check_heldout
from .report import build_report
from .summary import render
from .tasks import Task, make_tasks
from .text import ValidationText, validation_text

LADDER = ("base", "sft", "dpo", "int8")  # each rung is made from the one before it
CONTINUED = "base"  # the model whose continuations of plain text are shown


def evaluate(config: EvaluateConfig, run: StageRun) -> Figures:
    """Measure the models among `run.inputs`; leaves `report.json` and `summary.txt`.

    A shorter recipe may lack some of base, sft, dpo and int8: those there are measured and compared with the rung
    below them. Each model's results are kept in `run.scratch` when it is done, so a cut stage repeats one at most.
    """
    models = [name for name in LADDER if name in run.inputs]
    if not models:
        raise GristmillError(f"evaluation needs at least one of the stages {', '.join(LADDER)}")
    tokenizer = Tokenizer.load(run.inputs[models[0]])
    store = TokenStore.open(run.inputs["tokens"])
    _check_tokenizers(tokenizer, store, models, run)
    tasks = make_tasks(config.tasks, config.seed, "heldout")
    checked = check_heldout(tasks, run.inputs)
    texts = {
        domain: validation_text(
            run.inputs["corpus"],
            store,
            domain,
            tokenizer.token_bytes,
            config.tokens_per_domain,
            config.tokens_per_document,
        )
        for domain in store.domains
    }
    results = {name: _results(name, tasks, texts, tokenizer, config, run) for name in models}
    report = build_report(config, tasks, texts, results, checked)
    write_json(run.out / "report.json", report)
    write_text(run.out / "summary.txt", render(report))
    return _figures(report, results)


def _check_tokenizers(tokenizer: Tokenizer, store: TokenStore, models: list[str], run: StageRun) -> None:
    hashes = {name: Tokenizer.load(run.inputs[name]).hash for name in models[1:]} | {"tokens": store.tokenizer_hash}
    for name, found in hashes.items():
        check_same(tokenizer, found, str(run.inputs[name]))


def _results(
    name: str,
    tasks: list[Task],
    texts: dict[str, ValidationText],
    tokenizer: Tokenizer,
    config: EvaluateConfig,
    run: StageRun,
) -> dict[str, Any]:
    """What one model does, out of `run.scratch` where it was finished before: `parameters`, `file_bytes`, `replies`,
    `bits` (domain -> bits of each document, or absent), `continuations`, and `seconds`, which only figures may hold."""
    kept = run.scratch / f"{name}.json"
    if kept.exists():
        return json.loads(kept.read_text(encoding="utf-8"))
    directory = run.inputs[name]
    model = load_model(directory, device=resolve_device(config.device)).eval()
    if config.window > model.config.max_seq_len:
        raise GristmillError(
            f"evaluation.window ({config.window}) is more than the {model.config.max_seq_len} tokens that model "
            f"{name!r} was made for"
        )
    results: dict[str, Any] = {
        "parameters": model.config.num_parameters,
        "file_bytes": sum(path.stat().st_size for path in sorted(directory.glob("*.safetensors"))),
    }
    started = time.monotonic()
    if name in config.bits_per_byte_models:
        results["bits"] = _bits_by_document(name, model, texts, config, run)
    text_seconds = time.monotonic() - started
    started = time.monotonic()
    llm = LLM.from_model(model, tokenizer, max_num_seqs=config.max_num_seqs)
    results["replies"] = _replies(name, llm, tasks, config, run)
    results["continuations"] = _continuations(llm, config, run) if name == CONTINUED else []
    results["seconds"] = {"text": round(text_seconds, 3), "tasks": round(time.monotonic() - started, 3)}
    write_json(kept, results)
    return results


def _bits_by_document(
    name: str, model: Decoder, texts: dict[str, ValidationText], config: EvaluateConfig, run: StageRun
) -> dict[str, list[float]]:
    """Bits of each document's counted tokens, by domain."""
    by_domain = {}
    for number, (domain, text) in enumerate(texts.items(), start=1):
        bits = token_bits(
            model, text.token_ids, window=config.window, stride=config.stride, batch_size=config.batch_size
        )
        by_domain[domain] = text.by_document(bits).tolist()
        run.log.progress(number, len(texts), f"domains read by {name}")
    return by_domain


def _replies(name: str, llm: LLM, tasks: list[Task], config: EvaluateConfig, run: StageRun) -> list[str]:
    def progress(done: int, total: int) -> None:
        run.log.progress(done, total, f"tasks answered by {name}")

    replies = answer_tasks(llm, tasks, config.max_tokens, on_progress=progress)
    for task, reply in zip(tasks[: config.shown_tasks], replies, strict=False):
        run.log.sample(task.prompt, reply, model=name, answer=task.answer)
    return replies


def _continuations(llm: LLM, config: EvaluateConfig, run: StageRun) -> list[str]:
    """How the base model goes on after each opening, sampled with a fixed seed."""
    params = SamplingParams(max_tokens=config.prompt_tokens, temperature=0.8, top_p=0.95, seed=config.seed)
    texts = [completion.text for completion in llm.generate(list(config.prompts), params)]
    for prompt, text in zip(config.prompts, texts, strict=True):
        run.log.sample(prompt, text, model=CONTINUED)
    return texts


def _figures(report: dict[str, Any], results: dict[str, dict[str, Any]]) -> Figures:
    """Headline numbers, and the speeds, which stay out of the report."""
    figures: Figures = {}
    for name, scores in report["tasks"]["models"].items():
        figures[f"accuracy_{name}"] = scores["accuracy"]
    overall = report["bits_per_byte"]["all"]
    figures |= {f"bits_per_byte_{name}": measured["value"] for name, measured in overall["models"].items()}
    figures["bits_per_byte_gzip"] = overall["gzip"]
    for name, result in results.items():
        figures[f"seconds_text_{name}"] = result["seconds"]["text"]
        figures[f"seconds_tasks_{name}"] = result["seconds"]["tasks"]
    return figures
