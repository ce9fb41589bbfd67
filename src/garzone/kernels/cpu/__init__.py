"""Fast kernels for the CPU: C compiled at first use, over a thread pool of our own.

Without a C compiler there are none, and `reference.py` does the work.
"""
