"""What an AMD card needs beyond the shared UOp kernels: a compiler that pip can install, and its intrinsics.

It does not hold kernels (``kernels.gpu`` does) and imports neither tinygrad nor llvmlite by itself.
"""
