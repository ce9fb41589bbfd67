"""GPU kernels as tinygrad UOps: one source for AMD, CUDA and Metal, intrinsics per renderer.

Importing this package imports nothing; the modules import tinygrad.
"""
