"""A process that loads a model, generates one token and says so: what `bench serve --workload ready` times.

`python -m gristmill.bench.serve_ready NAME DEVICE DTYPE [--random]`: NAME is a shape with --random, else a directory.
"""

from __future__ import annotations

import sys
from pathlib import Path

LINE = "first token"
PROMPT = 128  # tokens


def main(name: str, device: str, dtype: str, *flags: str) -> None:
    from gristmill.engine.sampling import SamplingParams

    from .serve_load import engine_of, random_ids, target

    drawn = "--random" in flags
    with target(name if drawn else None, None if drawn else Path(name), device, dtype, PROMPT + 1) as served:
        engine = engine_of(served)
        engine.add_request(random_ids(engine.vocab_size, PROMPT, 0), SamplingParams(max_tokens=1, ignore_eos=True))
        while engine.has_work:
            for output in engine.step():
                if output.error is not None:
                    raise output.error
        print(LINE, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
