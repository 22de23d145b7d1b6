"""One peer of `bench serve` in a process of its own, which needs the standard library and that peer alone.

`python serve_peer_run.py JOB.json` starts the peer as the job says, generates one token, prints a line, and then
answers each line of JSON that comes in (requests: prompt ids and output length) with one line: what they took. So a
peer can live in another environment than gristmill. Every peer is used as its documentation shows for work of this
kind, and must give exactly the tokens that were asked for.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypedDict


class Job(TypedDict):
    """What a peer is told at its start."""

    peer: str
    directory: str  # config.json, tokenizer, and weights unless `random`
    gguf: str  # the model as GGUF, for llama.cpp
    random: bool
    dtype: str  # float32, bfloat16 or float16
    device: str  # cpu or cuda
    threads: int
    max_num_seqs: int
    max_model_len: int


Requests = list[tuple[list[int], int]]  # prompt ids, tokens to generate
Generate = Callable[[Requests, float], int]  # requests and temperature; tokens that came
START_SECONDS = 600


def transformers_static(job: Job) -> Generate:
    """`generate` on batches of `max_num_seqs` requests of like length, padded on the left."""
    import torch
    import transformers

    model = _transformers_model(job)

    def generate(requests: Requests, temperature: float) -> int:
        came = 0
        order = sorted(requests, key=lambda request: (request[1], len(request[0])))
        for first in range(0, len(order), job["max_num_seqs"]):
            batch = order[first : first + job["max_num_seqs"]]
            width, length = max(len(ids) for ids, _ in batch), batch[-1][1]
            ids = torch.tensor([[0] * (width - len(ids)) + ids for ids, _ in batch], device=job["device"])
            mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids, _ in batch], device=job["device"])
            config = transformers.GenerationConfig(
                max_new_tokens=length,
                min_new_tokens=length,
                pad_token_id=0,
                **({"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {}),
            )
            out = model.generate(ids, attention_mask=mask, generation_config=config).cpu()
            assert out.shape[1] == width + length
            came += sum(wanted for _, wanted in batch)  # those of shorter requests beyond their end are not counted
        return came

    return generate


def transformers_continuous(job: Job) -> Generate:
    """transformers' continuous batching."""
    import transformers

    model = _transformers_model(job)
    settings = transformers.ContinuousBatchingConfig(
        max_requests_per_batch=job["max_num_seqs"], allow_block_sharing=False
    )
    if job["device"] == "cpu":  # it reckons with a GPU's memory alone
        settings.page_size, settings.max_batch_tokens = 32, 2048
        settings.num_blocks = -(-job["max_num_seqs"] * job["max_model_len"] // settings.page_size) + 1

    def generate(requests: Requests, temperature: float) -> int:
        config = transformers.GenerationConfig(
            eos_token_id=-1,
            pad_token_id=0,
            max_new_tokens=max(length for _, length in requests),
            **({"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {}),
        )
        came = 0
        with model.continuous_batching_context_manager(
            generation_config=config, continuous_batching_config=settings, warmup=job["device"] == "cuda"
        ) as manager:
            for ids, length in requests:
                manager.add_request(ids, max_new_tokens=length, eos_token_id=-1)
            left = len(requests)
            while left:
                result = manager.get_result(timeout=1)
                if result is None:
                    assert manager.is_running(), "the thread of transformers' continuous batching ended"
                elif result.is_finished():
                    assert result.error is None, result.error
                    came += len(result.generated_tokens)
                    left -= 1
        return came

    return generate


def _transformers_model(job: Job) -> Any:
    import torch
    import transformers

    torch.set_num_threads(job["threads"])
    torch.manual_seed(0)
    dtype = getattr(torch, job["dtype"])
    model: Any
    if job["random"]:
        config = transformers.AutoConfig.from_pretrained(job["directory"])
        with torch.device(job["device"]):
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    else:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            job["directory"], dtype=dtype, attn_implementation="sdpa"
        )
        model.to(job["device"])
    model.generation_config.eos_token_id = None
    return model.eval()


def llama_cpp(job: Job) -> Generate:
    """llama.cpp's server: the `llama-server` on PATH, else the one inside the package xllamacpp."""
    slots = job["max_num_seqs"]
    settings = {"n_ctx": slots * job["max_model_len"], "n_batch": 2048, "n_parallel": slots, "cache_ram_mib": 0}
    binary = shutil.which("llama-server")
    keep: Any
    if binary is not None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        layers = 0 if job["device"] == "cpu" else 999
        words = f"-c {settings['n_ctx']} -b 2048 -np {slots} -t {job['threads']} -ngl {layers} --port {port} --no-webui"
        keep = subprocess.Popen([binary, "-m", job["gguf"], *words.split()], stdout=sys.stderr)
        atexit.register(keep.kill)
        address = f"http://127.0.0.1:{port}"
    else:
        import xllamacpp  # type: ignore[import-not-found]

        params = xllamacpp.CommonParams()
        params.model.path = job["gguf"]
        for name, value in settings.items():
            setattr(params, name, value)
        params.n_gpu_layers = 0 if job["device"] == "cpu" else 999
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = job["threads"]
        keep = xllamacpp.Server(params)
        address = keep.listening_address

    def complete(request: tuple[list[int], int], temperature: float) -> int:
        ids, length = request
        body = {
            "prompt": ids,
            "n_predict": length,
            "temperature": temperature,
            "samplers": ["temperature"],
            "ignore_eos": True,
            "cache_prompt": False,
        }
        sent = urllib.request.Request(
            f"{address}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(sent) as answer:
            found: int = json.load(answer)["tokens_predicted"]
        return found

    def generate(requests: Requests, temperature: float) -> int:
        with ThreadPoolExecutor(len(requests)) as clients:
            came = sum(clients.map(lambda request: complete(request, temperature), requests))
        assert keep is not None
        return came

    _until_healthy(f"{address}/health")
    return generate


def _until_healthy(url: str) -> None:
    until = time.monotonic() + START_SECONDS
    while True:
        try:
            urllib.request.urlopen(url).close()
            return
        except (urllib.error.URLError, ConnectionError):
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


def vllm(job: Job) -> Generate:
    """vLLM's offline `LLM.generate`."""
    from vllm import LLM, SamplingParams  # type: ignore[import-not-found]

    llm = LLM(
        model=job["directory"],
        load_format="dummy" if job["random"] else "auto",
        skip_tokenizer_init=True,
        dtype=job["dtype"],
        max_model_len=job["max_model_len"],
        max_num_seqs=job["max_num_seqs"],
    )

    def generate(requests: Requests, temperature: float) -> int:
        outputs = llm.generate(
            [{"prompt_token_ids": ids} for ids, _ in requests],
            [
                SamplingParams(temperature=temperature, max_tokens=length, ignore_eos=True, detokenize=False)
                for _, length in requests
            ],
            use_tqdm=False,
        )
        return sum(len(output.outputs[0].token_ids) for output in outputs)

    return generate


PROGRAMS: dict[str, Callable[[Job], Generate]] = {
    "transformers": transformers_static,
    "transformers continuous": transformers_continuous,
    "llama.cpp": llama_cpp,
    "vllm": vllm,
}


def installed(peer: str) -> bool:
    """Whether this Python has what the peer needs."""
    if peer == "llama.cpp":
        return shutil.which("llama-server") is not None or find_spec("xllamacpp") is not None
    if peer == "transformers continuous":
        if find_spec("transformers") is None:
            return False
        import transformers

        return hasattr(transformers, "ContinuousBatchingConfig")
    return find_spec(peer) is not None


def _peak_bytes(job: Job) -> int | None:
    """Most memory of this process, or of a server that it started; None of a GPU's: vLLM takes it all at once."""
    if job["device"] == "cuda":
        return None
    peaks = [0]
    for pid in ("self", *Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        peaks += [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")]
    return max(peaks)


def main() -> None:
    """See the module. What the peer prints goes to standard error; answers alone to standard output."""
    sys.path.remove(str(Path(__file__).resolve().parent))  # its neighbours are named like packages
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if sys.argv[1] == "--installed":
        print(json.dumps(installed(sys.argv[2])), file=answers, flush=True)
        return
    with open(sys.argv[1], encoding="utf-8") as file:
        job: Job = json.load(file)
    generate = PROGRAMS[job["peer"]](job)
    generate([([1, 2, 3, 4], 1)], 0.0)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        started = time.perf_counter()
        came = generate(asked["requests"], asked["temperature"])
        seconds = time.perf_counter() - started
        wanted = sum(length for _, length in asked["requests"])
        assert came == wanted, f"{job['peer']} gave {came} tokens, {wanted} were asked for"
        print(json.dumps({"seconds": seconds, "peak_bytes": _peak_bytes(job)}), file=answers, flush=True)


if __name__ == "__main__":
    main()
