"""A real pre-training run, and what deduplication and filters were worth: recipes/packages.yaml, on another machine.

Here, where the text is:

    python benchmarks/fetch_text.py runs/text
    gristmill run recipes/packages.yaml --until tokens
    python benchmarks/real_run.py prepare runs/packages             # removed texts as tokens, held-out texts
    python benchmarks/real_run.py pack-shards runs/packages runs/parts

On the machine with the GPU, where runs/parts has been brought to, all of it or a part a time:

    python benchmarks/real_run.py join runs/parts runs/packages
    python benchmarks/real_run.py train runs/packages               # 124M parameters, 262 million tokens
    python benchmarks/real_run.py train runs/packages --model small # 30M, about two minutes of one H100
    python benchmarks/real_run.py ablation runs/packages            # small, kept against raw text, three seeds
    python benchmarks/real_run.py evaluate runs/packages models/smollm2 --name smollm2
    python benchmarks/real_run.py report runs/packages out          # results.json, curves.json, curves.png

Every command can be killed and given again: what is finished is not repeated, and training goes on from its last
checkpoint. Any key of the recipe can be set, e.g. `--set base.training.steps=300`.

All models of a table see the same held-out texts (RUN/heldout.jsonl), and no text that repeats them: bits per byte are
bits of all tokens of text over its UTF-8 bytes, in windows of 1,024 tokens that overlap by half.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from real_run_data import HELDOUT, add_removed, join_parts, join_raw, pack_parts, write_heldout

from gristmill import pipeline
from gristmill.artifact import write_json
from gristmill.errors import GristmillError
from gristmill.events import read_events

RECIPE = Path(__file__).parents[1] / "recipes" / "packages.yaml"
# 29.8 million parameters, 1,100 steps, 144 million tokens: some 29 PFLOP (6 N D and attention), two minutes of an H100
# at a quarter of its peak, where simple loops reach a third with 135M.
SMALL = (
    "base.model={preset: gristmill-30m, max_seq_len: 1024}",
    "base.sequence_length=1024",
    "base.training.steps=1100",
    "base.training.batch_size=128",
    "base.training.micro_batch_size=null",
    "base.training.learning_rate=0.003",
    "base.training.checkpoint_every=200",
)
WINDOW, STRIDE = 1024, 512
CURVES = ("loss", "validation_bits_per_byte", "learning_rate", "grad_norm", "tokens_per_second", "mfu")


def main() -> int:
    options = _parser().parse_args()
    try:
        return int(options.run_command(options) or 0)
    except GristmillError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def prepare(options: argparse.Namespace) -> None:
    found = {"removed": add_removed(options.run), "heldout": write_heldout(options.run, options.heldout_kb * 1000)}
    found["compressors"] = compressors(options.run)
    write_json(options.run / "prepared.json", found)
    print(json.dumps(found, indent=2))


def pack_shards(options: argparse.Namespace) -> None:
    for path in pack_parts(options.run, options.out, options.part_mb * 1_000_000):
        print(f"{path}  {path.stat().st_size:,} bytes")


def join(options: argparse.Namespace) -> None:
    if join_parts(options.parts, options.run):
        join_raw(options.run)
        print(f"{options.run}: tokens, removed tokens, both together, and held-out texts are there")


def train(options: argparse.Namespace) -> None:
    name = options.name or f"{options.model}-{options.data}-{options.seed}"
    train_one(options.run, name, options.model, options.data, options.seed, options.set)


def ablation(options: argparse.Namespace) -> None:
    """Seeds outside, so that a run that is cut short has pairs."""
    for seed in options.seeds:
        for data in ("kept", "raw"):
            train_one(options.run, f"small-{data}-{seed}", "small", data, seed, options.set)
    print(json.dumps(compare_arms(_results(options.run)), indent=2))


def train_one(run: Path, name: str, model: str, data: str, seed: int, changes: Sequence[str]) -> None:
    """One model in RUN/train/NAME, by the pipeline's own stage `base`; its figures in RUN/results/NAME.json."""
    result = run / "results" / f"{name}.json"
    overrides = [f"seed={seed}", *(SMALL if model == "small" else ()), *changes]
    if result.exists() and json.loads(result.read_text(encoding="utf-8"))["overrides"] == overrides:
        print(f"{name}: finished before")
        return
    directory = run / "train" / name
    (directory / "artifacts").mkdir(parents=True, exist_ok=True)
    tokens = join_raw(run) if data == "raw" else run / "artifacts" / "tokens"
    for stage, target in (("tokenizer", run / "artifacts" / "tokenizer"), ("tokens", tokens)):
        link = directory / "artifacts" / stage
        if not link.exists():
            link.symlink_to(target.resolve(), target_is_directory=True)
    manifest = pipeline.run(RECIPE, directory, first="base", last="base", overrides=overrides, on_event=_say(name))[
        "base"
    ]
    heldout = bits_per_byte(run, directory / "artifacts" / "base")
    found = {
        "name": name,
        "model": model,
        "data": data,
        "seed": seed,
        "overrides": overrides,
        "seconds": manifest.seconds,
        "hardware": manifest.hardware,
        "figures": manifest.figures,
        "heldout": heldout,
    }
    result.parent.mkdir(exist_ok=True)
    write_json(result, found)
    print(f"{name}: {json.dumps(heldout['bits_per_byte'])}", flush=True)


def evaluate(options: argparse.Namespace) -> None:
    found = {"name": options.name, "model": str(options.model), "heldout": bits_per_byte(options.run, options.model)}
    (options.run / "results").mkdir(exist_ok=True)
    write_json(options.run / "results" / f"{options.name}.json", found)
    print(json.dumps(found["heldout"], indent=2))


def bits_per_byte(run: Path, model_directory: Path) -> dict[str, Any]:
    """Bits per byte of a model's own directory on the held-out texts, by domain and as the mean of the domains.

    The texts of a domain follow each other, each behind the token that parts documents: what the model was trained
    with, which for models of others is <|endoftext|> where they have it.
    """
    import numpy as np
    import torch

    from gristmill.evaluate.bpb import token_bits
    from gristmill.tokenizer.tokenizer import Tokenizer
    from gristmill.train.device import resolve_device
    from gristmill.weights.load import load_model

    started = time.monotonic()
    device = resolve_device("auto")
    model = load_model(model_directory, torch.float32, device).eval()
    tokenizer = Tokenizer.load(model_directory)
    between = tokenizer.backend.token_to_id("<|endoftext|>")
    before, after = ([between], []) if between is not None else ([tokenizer.bos_id], [tokenizer.eos_id])
    values, tokens, sizes = {}, {}, {}
    for domain, texts in heldout_texts(run).items():
        stream = [id for ids in tokenizer.encode_batch(texts) for id in (*before, *ids, *after)]
        ids = np.asarray(stream, np.int64)
        bits = token_bits(
            model, ids, window=min(WINDOW, model.config.max_seq_len), stride=min(STRIDE, model.config.max_seq_len)
        )
        counted = tokenizer.token_bytes[ids] > 0
        sizes[domain] = sum(len(text.encode()) for text in texts)
        tokens[domain] = int(counted.sum())
        values[domain] = round(float(bits[counted].sum()) / sizes[domain], 5)
    return {
        "bits_per_byte": values | {"mean": round(statistics.fmean(values.values()), 5)},
        "bytes_per_token": {domain: round(sizes[domain] / tokens[domain], 4) for domain in values},
        "parameters": model.config.num_parameters,
        "device": device.type,
        "seconds": round(time.monotonic() - started, 1),
    }


def compressors(run: Path) -> dict[str, dict[str, float]]:
    """What gzip and xz make of each domain's held-out texts, in bits per byte."""
    import lzma

    from gristmill.evaluate.compression import gzip_bits_per_byte

    found: dict[str, dict[str, float]] = {"gzip": {}, "xz": {}}
    for domain, texts in heldout_texts(run).items():
        data = "\n".join(texts).encode()
        found["gzip"][domain] = round(gzip_bits_per_byte(data), 4)
        found["xz"][domain] = round(8 * len(lzma.compress(data, preset=9)) / len(data), 4)
    return found


def heldout_texts(run: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    with open(run / HELDOUT, encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            found.setdefault(row["domain"], []).append(row["text"])
    return dict(sorted(found.items()))


def report(options: argparse.Namespace) -> None:
    """results.json: all models and the comparison of the arms. curves.json and curves.png: every logged value of every
    run, also of one that has not ended."""
    results = _results(options.run)
    curves = {path.name: curve(path / "events.jsonl") for path in sorted((options.run / "train").glob("*"))}
    options.out.mkdir(parents=True, exist_ok=True)
    write_json(options.out / "results.json", {"models": results, "ablation": compare_arms(results)})
    write_json(options.out / "curves.json", curves)
    draw(curves, options.out / "curves.png")
    for found in results:
        print(f"{found['name']:16} {json.dumps(found['heldout']['bits_per_byte'])}")
    print(json.dumps(compare_arms(results), indent=2))


def compare_arms(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Bits per byte of raw text less those of kept text with the same seed, by domain: their mean and, with several
    seeds, its standard error."""
    of = {(r["data"], r["seed"]): r["heldout"]["bits_per_byte"] for r in results if r.get("model") == "small"}
    seeds = sorted(seed for data, seed in of if data == "kept" and ("raw", seed) in of)
    found: dict[str, Any] = {"seeds": seeds}
    for domain in of[("kept", seeds[0])] if seeds else ():
        gains = [of["raw", seed][domain] - of["kept", seed][domain] for seed in seeds]
        error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else None
        found[domain] = {
            "kept": round(statistics.fmean(of["kept", seed][domain] for seed in seeds), 5),
            "raw": round(statistics.fmean(of["raw", seed][domain] for seed in seeds), 5),
            "raw_less_kept": round(statistics.fmean(gains), 5),
            "standard_error": None if error is None else round(error, 5),
        }
    return found


def curve(events: Path) -> list[dict[str, float]]:
    """The logged values of a run by step; what a resumed run logged again replaces what it had logged."""
    rows: dict[int, dict[str, float]] = {}
    for event in read_events(events):
        if event["type"] == "metric" and event["stage"] == "base":
            named = {key: value for key, value in event.items() if key in CURVES or key.startswith(f"{CURVES[1]}/")}
            rows[event["step"]] = {"step": event["step"], **named}
    return [rows[step] for step in sorted(rows)]


def draw(curves: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Training loss and validation bits per byte over steps; nothing where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("curves.png needs matplotlib: left out")
        return
    figure = Figure(figsize=(11, 4), dpi=110, facecolor="white", layout="constrained")
    for axes, key in zip(figure.subplots(1, 2), CURVES[:2], strict=True):
        for name, rows in curves.items():
            points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
            if points:
                axes.plot(*zip(*points, strict=True), linewidth=1, label=name)
        axes.set(xlabel="step", ylabel=key.replace("_", " "))
        axes.grid(linewidth=0.3)
    if curves:
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path)


def _results(run: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted((run / "results").glob("*.json"))]


def _say(name: str) -> Any:
    def say(event: dict[str, Any]) -> None:
        if event["type"] == "metric":
            shown = {
                key: event[key] for key in ("loss", "tokens_per_second", "validation_bits_per_byte") if key in event
            }
            print(f"{name}: step {event['step']} {json.dumps(shown)}", flush=True)
        elif event["type"] == "note":
            print(f"{name}: {event['message']}", flush=True)

    return say


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True, metavar="COMMAND")

    def verb(name: str, function: Any, text: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=text)
        added.set_defaults(run_command=function)
        return added

    def run_of(added: argparse.ArgumentParser) -> None:
        added.add_argument("run", type=Path, help="run directory of recipes/packages.yaml")

    def settings_of(added: argparse.ArgumentParser) -> None:
        added.add_argument("--set", action="append", default=[], metavar="KEY.PATH=VALUE", help="a key of the recipe")

    added = verb("prepare", prepare, "tokens of the removed texts; held-out texts; compressors' figures")
    run_of(added)
    added.add_argument("--heldout-kb", type=int, default=200, help="of each domain (200)")
    added = verb("pack-shards", pack_shards, "everything that training needs, in compressed parts")
    run_of(added)
    added.add_argument("out", type=Path)
    added.add_argument("--part-mb", type=int, default=56, help="largest part, in 10^6 bytes (56)")
    added = verb("join", join, "unpack the parts once all are there")
    added.add_argument("parts", type=Path)
    run_of(added)
    added = verb("train", train, "one model")
    run_of(added)
    added.add_argument("--model", choices=("base", "small"), default="base")
    added.add_argument("--data", choices=("kept", "raw"), default="kept")
    added.add_argument("--seed", type=int, default=1)
    added.add_argument("--name", help="MODEL-DATA-SEED by default")
    settings_of(added)
    added = verb("ablation", ablation, "the small model on kept and on raw text")
    run_of(added)
    added.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    settings_of(added)
    added = verb("evaluate", evaluate, "any model directory on the held-out texts")
    run_of(added)
    added.add_argument("model", type=Path)
    added.add_argument("--name", required=True)
    added = verb("report", report, "results and curves in a few small files")
    run_of(added)
    added.add_argument("out", type=Path)
    return parser


if __name__ == "__main__":
    sys.exit(main())
