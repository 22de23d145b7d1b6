"""Measuring what this machine really reaches: memory, caches, products of matrices, links, disk.

Each ceiling is the median of several runs after one that warms up. A run is long against the clock; arrays are larger
than every cache where memory is meant, and small where a cache is. One that fails (a type that the device has not, no
memory) has no value, and says why: the others stand.
"""

from __future__ import annotations

import datetime
import mmap
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from .. import hardware
from ..errors import GristmillError
from .ceilings import Calibration, Ceiling, store

if TYPE_CHECKING:
    from torch import Tensor

Run = Callable[[], Any]
Say = Callable[[str], None]
REPEATS, SECONDS_EACH = 7, 0.15  # runs of a measurement, and about how long each lasts
LEAST, LONGEST = 3, 5.0  # but after so many seconds so many runs are enough
MB = 1_000_000
CPU_ARRAY, GPU_ARRAY = 256 * MB, 2_000 * MB  # bytes, far beyond any cache
CACHED_ON_CPU = 128 * 1024  # bytes of an array that a core's own cache holds twice
CPU_PRECISIONS = ("fp32", "bf16", "int8")
GPU_PRECISIONS = ("fp32", "tf32", "bf16", "fp16", "fp8", "int8")
CPU_SIZE, GPU_SIZE = 2048, 8192  # of the square matrices
LINK_BYTES = 256 * MB
DISK_BYTES = 256 * MB
DISK_PIECE, DISK_REPEATS = 8 * 1024 * 1024, 5
GRAPH_KERNELS = 100


def calibrate(kind: str, directory: Path | None = None, say: Say = lambda line: None) -> Calibration:
    """Measure "cpu" or "cuda". Files for the disk's rates are written in `directory` (where ceilings are kept, unless
    given) and removed. GristmillError where there is no such device."""
    import torch

    if kind not in ("cpu", "cuda"):
        raise GristmillError(f"device {kind!r} cannot be measured; it is cpu or cuda")
    if kind == "cuda" and not torch.cuda.is_available():
        raise GristmillError("there is no CUDA device here; measure --device cpu")
    place = store().parent if directory is None else directory
    measurements = [*_of_cpu(torch), *_of_disk(place)] if kind == "cpu" else [*_of_cuda(torch), *_of_disk(place)]
    ceilings = []
    for measure in measurements:
        ceiling = measure()
        ceilings.append(ceiling)
        say(line(ceiling))
    described = hardware.describe()
    on_gpu = kind == "cuda"
    return Calibration(
        kind=kind,
        name=torch.cuda.get_device_name() if on_gpu else described["cpu"],
        memory_bytes=torch.cuda.get_device_properties(0).total_memory if on_gpu else hardware.memory_bytes(),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        versions={"gristmill": hardware.code_version(), "torch": torch.__version__},
        ceilings=tuple(ceilings),
    )


def busy_cores() -> float:
    """How many cores other programs kept busy in the last minute, by the system's count; 0 where it has none."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return 0.0


def line(ceiling: Ceiling) -> str:
    """A ceiling for people to read."""
    from .quantity import Quantity

    if ceiling.value is None:
        return f"{ceiling.id}: not measured: {ceiling.how}"
    shown = Quantity(ceiling.id, ceiling.value, ceiling.unit, "").shown()
    return f"{ceiling.id}: {shown}, +- {ceiling.spread:.1%}; {ceiling.how}"


def rate(id: str, unit: str, amount: float, how: str, prepare: Callable[[], tuple[Run, Run]]) -> Ceiling:
    """`amount` (bytes, operations) of a run over its seconds. `prepare` makes the arrays and gives the run, and a
    function that waits until it is done. With no amount: the seconds themselves."""
    try:
        run, wait = prepare()
        times = list(_seconds(run, wait))
    except Exception as error:  # one figure is missing, the others are not
        reason = str(error).strip().splitlines()
        return Ceiling(id, None, unit, 0.0, 0, f"{type(error).__name__}: {reason[0] if reason else 'no reason'}"[:200])
    median, spread = _middle(times)
    return Ceiling(id, amount / median if amount else median, unit, spread, len(times), how)


def _middle(times: Sequence[float]) -> tuple[float, float]:
    """The median, and half of what the middle half of them spans, as a share of it."""
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return median, (high - low) / 2 / median


def _seconds(run: Run, wait: Run) -> Iterator[float]:
    """Seconds of one `run` each, measured over as many in a row as last long enough."""
    run()
    wait()
    count = 1
    while True:
        began = perf_counter()
        for _ in range(count):
            run()
        wait()
        took = perf_counter() - began
        if took >= SECONDS_EACH / 4 or count >= 2**20:
            break
        count *= 4
    count = max(round(count * SECONDS_EACH / took), 1)
    first = perf_counter()
    for number in range(REPEATS):
        began = perf_counter()
        if number >= LEAST and began - first > LONGEST:
            return
        for _ in range(count):
            run()
        wait()
        yield (perf_counter() - began) / count


def _nothing() -> None:
    """A processor has done what was called when the call returns."""


Measurement = Callable[[], Ceiling]
BOTH = "bytes read and written"


def _moved(id: str, amount: float, how: str, prepare: Callable[[], tuple[Run, Run]]) -> Measurement:
    return partial(rate, id, "byte/s", amount, how, prepare)


def _of_cpu(torch: Any) -> list[Measurement]:
    threads = torch.get_num_threads()

    def copied() -> tuple[Run, Run]:
        source = torch.ones(CPU_ARRAY, dtype=torch.uint8)
        target = torch.empty_like(source)
        return lambda: target.copy_(source), _nothing

    def copied_by_a_core() -> tuple[Run, Run]:
        import numpy

        source = numpy.ones(CACHED_ON_CPU, numpy.uint8)
        target = numpy.empty_like(source)
        return lambda: numpy.copyto(target, source), _nothing

    def read() -> tuple[Run, Run]:
        source = torch.ones(CPU_ARRAY // 4)
        return source.sum, _nothing

    large, small = f"{CPU_ARRAY // MB} MB", f"{CACHED_ON_CPU // 1024} KiB"
    found = [
        _moved("memory.copy", 2 * CPU_ARRAY, f"{large} copied by {threads} threads, {BOTH}", copied),
        _moved("memory.read", CPU_ARRAY, f"{large} summed by {threads} threads", read),
        _moved(
            "memory.cache_copy", 2 * CACHED_ON_CPU, f"{small} copied by one core in its cache, {BOTH}", copied_by_a_core
        ),
    ]
    for precision in CPU_PRECISIONS:
        how = f"{CPU_SIZE}^3 products by {threads} threads"
        prepare = partial(_products, torch, precision, "cpu", CPU_SIZE)
        found.append(partial(rate, f"flops.{precision}", "FLOP/s", 2 * CPU_SIZE**3, how, prepare))
    return found


def _of_cuda(torch: Any) -> list[Measurement]:
    wait = torch.cuda.synchronize

    def copied(size: int, source: str = "cuda", target: str = "cuda") -> Callable[[], tuple[Run, Run]]:
        def array(device: str) -> Tensor:
            made = torch.ones(size, dtype=torch.uint8, device=device)
            return made.pin_memory() if device == "cpu" else made

        def prepare() -> tuple[Run, Run]:
            here, there = array(source), array(target)
            return lambda: there.copy_(here, non_blocking=True), wait

        return prepare

    def read() -> tuple[Run, Run]:
        source = torch.ones(GPU_ARRAY // 4, device="cuda")
        return source.sum, wait

    def both_ways() -> tuple[Run, Run]:
        up, down = torch.cuda.Stream(), torch.cuda.Stream()
        host = [torch.ones(LINK_BYTES, dtype=torch.uint8).pin_memory() for _ in range(2)]
        card = [torch.ones(LINK_BYTES, dtype=torch.uint8, device="cuda") for _ in range(2)]

        def run() -> None:
            with torch.cuda.stream(up):
                card[0].copy_(host[0], non_blocking=True)
            with torch.cuda.stream(down):
                host[1].copy_(card[1], non_blocking=True)

        return run, wait

    def on_chip() -> tuple[Run, Run]:
        from ..kernels.cached_read import cached_read

        out = torch.zeros(1, device="cuda")
        return lambda: cached_read(out), wait

    def launched() -> tuple[Run, Run]:
        one = torch.zeros(1, device="cuda")
        return lambda: one.add_(1), wait

    def replayed() -> tuple[Run, Run]:
        one = torch.zeros(1, device="cuda")
        graph = torch.cuda.CUDAGraph()
        one.add_(1)
        with torch.cuda.graph(graph):
            for _ in range(GRAPH_KERNELS):
                one.add_(1)

        def run() -> Tensor:  # which keeps what the graph writes to
            graph.replay()
            return one

        return run, wait

    from ..kernels.cached_read import read_bytes

    cached = max(torch.cuda.get_device_properties(0).L2_cache_size // 4, 2**20)
    link = f"{LINK_BYTES // MB} MB of page-locked memory"
    large, small = f"{GPU_ARRAY // MB} MB", f"{cached / 2**20:.0f} MiB"
    found: list[Measurement] = [
        _moved("memory.copy", 2 * GPU_ARRAY, f"{large} copied, {BOTH}", copied(GPU_ARRAY)),
        _moved("memory.read", GPU_ARRAY, f"{large} summed", read),
        _moved("memory.cache_copy", 2 * cached, f"{small} copied within the L2 cache, {BOTH}", copied(cached)),
        _moved("memory.on_chip", read_bytes(torch), "tiles read again from each multiprocessor's own memory", on_chip),
        _moved("link.host_to_device", LINK_BYTES, link, copied(LINK_BYTES, "cpu", "cuda")),
        _moved("link.device_to_host", LINK_BYTES, link, copied(LINK_BYTES, "cuda", "cpu")),
        _moved("link.both_ways", 2 * LINK_BYTES, f"{link}, each way at the same time, summed", both_ways),
        partial(rate, "latency.launch", "s", 0, "kernels of one element, one after the other", launched),
        partial(rate, "latency.graph", "s", 0, f"a CUDA graph of {GRAPH_KERNELS} kernels of one element", replayed),
    ]
    for precision in GPU_PRECISIONS:
        how = f"{GPU_SIZE}^3 products"
        prepare = partial(_products, torch, precision, "cuda", GPU_SIZE)
        found.append(partial(rate, f"flops.{precision}", "FLOP/s", 2 * GPU_SIZE**3, how, prepare))
    if torch.cuda.device_count() > 1:
        between = copied(LINK_BYTES * 4, "cuda:0", "cuda:1")
        found.append(_moved("link.device_to_device", 4 * LINK_BYTES, "from the first card to the second", between))
    return found


def _products(torch: Any, precision: str, device: str, size: int) -> tuple[Run, Run]:
    """The product of two square matrices in this precision, results in 32 bits or as the library gives them."""
    wait = torch.cuda.synchronize if device == "cuda" else _nothing
    random = torch.randn(size, size, device=device)
    if device == "cpu" and precision in ("fp32", "bf16"):
        return _linear(torch, random.to(torch.float32 if precision == "fp32" else torch.bfloat16)), wait
    if precision in ("fp32", "tf32"):
        other = torch.randn(size, size, device=device)

        def run() -> Tensor:
            before = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision("highest" if precision == "fp32" else "high")
            try:
                return random @ other
            finally:
                torch.set_float32_matmul_precision(before)

        return run, wait
    if precision in ("bf16", "fp16"):
        dtype = torch.bfloat16 if precision == "bf16" else torch.float16
        left, right = random.to(dtype), torch.randn(size, size, device=device).to(dtype)
        return lambda: left @ right, wait
    if precision == "int8":
        # Random ones: of equal ones fewer bits change, so that a GPU takes less power and may keep a higher clock.
        whole = torch.randint(-127, 128, (size, size), dtype=torch.int8, device=device)
        return lambda: torch._int_mm(whole, whole.T), wait
    left = random.to(torch.float8_e4m3fn)
    right = random.to(torch.float8_e4m3fn).T
    one = torch.ones((), device=device)
    # Sums stay within the matrix units, as in the training loop's forward products (train/fp8.py) and in datasheets.
    options = {"scale_a": one, "scale_b": one, "out_dtype": torch.bfloat16, "use_fast_accum": True}
    return lambda: torch._scaled_mm(left, right, **options), wait


def _linear(torch: Any, square: Tensor) -> Run:
    """A linear layer as the engine computes it on a processor."""
    from ..kernels.cpu_linear import cpu_linear

    weight = square.clone()

    def run() -> Tensor:
        with torch.inference_mode():
            return cpu_linear(square, weight)

    return run


def _of_disk(directory: Path) -> list[Measurement]:
    return [partial(_disk, directory, writing) for writing in (True, False)]


def _disk(directory: Path, writing: bool) -> Ceiling:
    """Sequential writing, until the system says that the bytes are on the disk, or reading past the system's cache."""
    id, name = ("disk.write", "written and synchronised") if writing else ("disk.read", "read")
    path = directory / f".calibrate-{os.getpid()}"
    times, past = [], ""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for _ in range(DISK_REPEATS):
            took, past = (_write(path), "") if writing else _read(path)
            times.append(took)
    except OSError as error:
        return Ceiling(id, None, "byte/s", 0.0, 0, f"{path}: {error.strerror or error}")
    finally:
        with suppress(OSError):
            path.unlink()
    median, spread = _middle(times)
    how = f"{DISK_BYTES // MB} MB {name}{past}, in {directory}"
    return Ceiling(id, DISK_BYTES / median, "byte/s", spread, len(times), how)


def _write(path: Path) -> float:
    piece = os.urandom(DISK_PIECE)
    began = perf_counter()
    with path.open("wb", buffering=0) as file:
        for _ in range(DISK_BYTES // DISK_PIECE):
            file.write(piece)
        os.fsync(file.fileno())
    return perf_counter() - began


def _read(path: Path) -> tuple[float, str]:
    """Seconds, and what was done about the system's cache: a file system may not let one read past it (one in memory
    has nothing else to read from), and a system may not take advice."""
    if not path.exists():
        _write(path)
    buffer = mmap.mmap(-1, DISK_PIECE)  # begins at a page, as reading past the cache asks for
    past = ", past the system's cache"
    try:
        file = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except (AttributeError, OSError):
        file, past = os.open(path, os.O_RDONLY), ", perhaps from the system's cache"
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            past = ", once the system was asked to drop it from its cache"
    try:
        began = perf_counter()
        while os.readv(file, [buffer]) > 0:
            pass
        return perf_counter() - began, past
    finally:
        os.close(file)
        buffer.close()


def shares(calibration: Calibration) -> list[tuple[str, float, float]]:
    """(ceiling's id, measured, datasheet's) where the card is one of hardware.toml."""
    id = hardware.accelerator_named(calibration.name)
    if id is None:
        return []
    from .device import devices

    known = devices()[id]
    pairs: Sequence[tuple[str, float | None]] = [
        ("memory.copy", known.memory_bandwidth),
        ("memory.read", known.memory_bandwidth),
        ("memory.on_chip", known.on_chip_bandwidth),
        ("link.host_to_device", known.host_link_bandwidth),
        ("link.device_to_host", known.host_link_bandwidth),
        ("link.device_to_device", known.link_bandwidth),
        *((f"flops.{precision}", peak) for precision, peak in known.peak_flops.items()),
    ]
    return [
        (name, value, peak)
        for name, peak in pairs
        if peak is not None and (value := calibration.value(name)) is not None
    ]
