"""Times a start in a process of its own: `python startup.py MODEL default` prints seconds to the first token as JSON.

`portable` instead of `default` does without what devices add.
"""

import json
import os
import sys
import time

started = time.perf_counter()

from pathlib import Path  # noqa: E402

from garzone.engine.model_runner import ModelRunner  # noqa: E402
from garzone.kernels import portable  # noqa: E402
from garzone.kernels.registry import Registry  # noqa: E402


def main(path: Path, implementations: str) -> None:
    registry = Registry(portable.OFFERS) if implementations == "portable" else None
    runner = ModelRunner.load(path, num_ctx=2048, device="CPU", registry=registry)
    runner.prefill([1, 504, 3575, 282, 4649, 314], 0)
    used = os.times()  # with what the compilers took
    processor = used.user + used.system + used.children_user + used.children_system
    print(json.dumps({"wall_s": time.perf_counter() - started, "processor_s": processor}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
