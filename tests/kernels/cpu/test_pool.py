import ctypes
import os
import resource
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest

from garzone.kernels.cpu import compiler
from garzone.kernels.cpu.instruction_sets import PORTABLE
from garzone.kernels.cpu.library import Threads

STRESS = compiler.Unit("pool_stress", (str(Path(__file__).parent / "pool_stress.c"),))


@pytest.fixture(scope="module")
def stress(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    library = ctypes.CDLL(str(compiler.compile_library(STRESS, PORTABLE, cache_dir=tmp_path_factory.mktemp("stress"))))
    library.count_wrong_loops.argtypes = [ctypes.c_void_p, ctypes.c_long, ctypes.c_uint, ctypes.c_uint]
    library.count_wrong_loops.restype = ctypes.c_long
    library.count_nested.argtypes = [ctypes.c_void_p, ctypes.c_uint]
    return library


@pytest.mark.parametrize("num_threads", [1, 2, 3, 5])
def test_every_part_of_many_short_loops_runs_exactly_once(stress: ctypes.CDLL, num_threads: int) -> None:
    threads = Threads(num_threads)
    assert threads.num_threads == num_threads
    try:
        # more threads than processors lose their core in the middle of a loop: slow, and what finds races
        loops = 1_000_000 if num_threads <= (os.cpu_count() or 1) else 20_000
        assert stress.count_wrong_loops(threads.address, loops, 7, 1) == 0
        assert stress.count_wrong_loops(threads.address, loops // 100, 64, 2) == 0
    finally:
        threads.stop()


def test_loops_after_a_sleep_still_run_on_all_threads(stress: ctypes.CDLL) -> None:
    threads = Threads(3)
    try:
        for _ in range(5):
            time.sleep(0.03)  # long enough for the workers to fall asleep
            assert stress.count_wrong_loops(threads.address, 50, 9, 3) == 0
    finally:
        threads.stop()


def test_a_loop_within_a_loop_and_loops_from_two_threads_do_not_deadlock(stress: ctypes.CDLL) -> None:
    threads = Threads(3)
    try:
        assert stress.count_nested(threads.address, 7) == 35
        wrong: list[int] = []
        callers = [
            threading.Thread(target=lambda: wrong.append(stress.count_wrong_loops(threads.address, 20_000, 7, 4)))
            for _ in range(2)
        ]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        assert wrong == [0, 0]
    finally:
        threads.stop()


def test_an_idle_pool_uses_no_processor_time() -> None:
    threads = Threads(3)
    try:
        time.sleep(0.1)
        before = resource.getrusage(resource.RUSAGE_SELF)
        time.sleep(0.5)
        after = resource.getrusage(resource.RUSAGE_SELF)
        assert (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime) < 0.05
    finally:
        threads.stop()


def test_pools_start_and_stop_a_hundred_times_leaving_no_thread_behind() -> None:
    tasks = Path("/proc/self/task")
    before = len(list(tasks.iterdir())) if tasks.exists() else 0
    for _ in range(100):
        Threads(4).stop()
    assert not tasks.exists() or len(list(tasks.iterdir())) <= before


@pytest.mark.slow
def test_the_thread_sanitiser_finds_no_race_in_the_pool(tmp_path: Path) -> None:
    gcc = shutil.which("gcc")
    if gcc is None:
        pytest.skip("needs gcc with its thread sanitiser (Debian: gcc, libtsan)")
    main = tmp_path / "main.c"
    main.write_text(
        """
        #include "pool.h"
        #include <stdio.h>
        Pool *pool_start(unsigned);
        void pool_stop(Pool *);
        long count_wrong_loops(Pool *, long, unsigned, unsigned);
        int main(void) {
          Pool *pool = pool_start(4);
          long wrong = count_wrong_loops(pool, 3000, 9, 5);
          pool_stop(pool);
          printf("%ld wrong\\n", wrong);
          return wrong != 0;
        }
        """
    )
    program = tmp_path / "program"
    sources = [str(main), str(compiler.SOURCES / "pool.c"), *STRESS.sources]
    flags = ["-std=gnu11", "-O1", "-g", "-fsanitize=thread", "-I", str(compiler.SOURCES), "-lpthread"]
    subprocess.run([gcc, *sources, *flags, "-o", str(program)], check=True)
    run = subprocess.run([str(program)], capture_output=True, text=True, timeout=250, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "WARNING" not in run.stderr
