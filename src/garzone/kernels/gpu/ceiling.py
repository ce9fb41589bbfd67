"""A plain read of memory on a GPU: what the products of `matvec`, which do more, cannot be faster than.

It measures nothing; `bench.kernels` times it.
"""

from __future__ import annotations

from tinygrad.dtype import dtypes
from tinygrad.uop.ops import UOp

from garzone.kernels.gpu.activations import Kernel
from garzone.kernels.gpu.intrinsics import described, special
from garzone.kernels.gpu.programs import remembered

THREADS = 256
_WIDTH, _LOADS = 4, 8  # words of a load: 16 bytes; loads of a thread, all of them in flight
WORDS = THREADS * _WIDTH * _LOADS  # of a workgroup


@remembered
def read_all(num_words: int) -> Kernel:
    """A kernel that reads every word once: (out, words).

    Buffers: words uint32 [num_words], a multiple of ``WORDS``; out uint32 [num_words / WORDS * THREADS], the sums of
    each thread's words, so that nothing can be left out.
    """
    num_groups = num_words // WORDS

    def kernel(out: UOp, words: UOp) -> UOp:
        group, thread = special(num_groups, "gidx0"), special(THREADS, "lidx0")
        first = group * WORDS + thread * _WIDTH
        total = UOp.const(0, dtypes.uint32)
        loaded = [words[first + j * (THREADS * _WIDTH) + i].load() for j in range(_LOADS) for i in range(_WIDTH)]
        for word in loaded:
            total = total + word
        return out[group * THREADS + thread].store(total).sink(arg=described(f"read_{num_words}"), tag=1)

    return kernel
