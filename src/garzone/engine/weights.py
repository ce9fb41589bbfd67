"""Tensors of a file by name, with shape and type checked before anything is allocated.

Does not unpack weights; implementations in `kernels` do, each into its own layout.
"""

from __future__ import annotations

import re
from functools import partial

import numpy as np

from garzone.core.errors import GGUFError, UnsupportedModel
from garzone.engine.gguf import GGUFFile, TensorInfo
from garzone.kernels.dequantise import can_dequantise, dequantise_array
from garzone.kernels.layouts import all_finite
from garzone.kernels.registry import Matrix

# Left over from old converters; llama.cpp does not read them either.
_IGNORED = re.compile(r"(blk\.\d+\.(attn_rot_embd|attn\.rot_embd|rope_freqs)|rope_long|rope_short).*")


class WeightDirectory:
    """Hands out the tensors of a file and remembers which were asked for."""

    def __init__(self, file: GGUFFile) -> None:
        self._file = file
        self._used: set[str] = set()

    def has(self, name: str) -> bool:
        """Whether there is such a tensor."""
        return name in self._file.tensors

    def _find(self, name: str, shape: tuple[int, ...]) -> TensorInfo:
        info = self._file.tensors.get(name)
        if info is None:
            raise GGUFError(f"{self._file.path}: tensor {name!r} is missing")
        if info.shape != shape:
            raise GGUFError(f"{self._file.path}: tensor {name!r} has shape {info.shape}, expected {shape}")
        if not can_dequantise(info.ggml_type):
            raise UnsupportedModel(
                f"{self._file.path}: tensor {name!r} is of type {info.ggml_type.name}, which cannot be computed with"
            )
        self._used.add(name)
        return info

    def rows_of(self, name: str) -> int:
        """Rows of a matrix whose size the file itself decides.

        Raises:
            GGUFError: it is missing or not a matrix.
        """
        info = self._file.tensors.get(name)
        if info is None or len(info.shape) != 2:
            raise GGUFError(f"{self._file.path}: tensor {name!r} is missing or not a matrix")
        return info.shape[0]

    def matrix(self, name: str, rows: int, columns: int) -> Matrix:
        """A matrix, still packed.

        Raises:
            GGUFError: missing, of another shape, or with weights that are not finite.
            UnsupportedModel: of a type that cannot be unpacked.
        """
        info = self._find(name, (rows, columns))
        if not all_finite(info.ggml_type, self._file.data(name)):
            raise GGUFError(
                f"{self._file.path}: tensor {name!r} holds weights that are not finite; the file is damaged, "
                "fetch it again"
            )
        return Matrix(
            name, info.ggml_type, rows, columns, partial(self._file.data, name), partial(self._file.let_go, name)
        )

    def vector(self, name: str, size: int) -> np.ndarray:
        """A vector as float32.

        Raises:
            GGUFError: missing, of another size, or not finite.
            UnsupportedModel: of a type that cannot be unpacked.
        """
        info = self._find(name, (size,))
        values = dequantise_array(self._file.data(name), info.ggml_type)
        if not np.isfinite(values).all():
            raise GGUFError(f"{self._file.path}: tensor {name!r} holds values that are not finite; fetch it again")
        return values

    def optional_vector(self, name: str, size: int) -> np.ndarray | None:
        """As `vector`, but None if there is no such tensor."""
        return self.vector(name, size) if self.has(name) else None

    def refuse_unused(self) -> None:
        """Stop if the file holds tensors that nobody asked for: the model would compute something else.

        Raises:
            UnsupportedModel: names the first few.
        """
        unused = [name for name in self._file.tensors if name not in self._used and not _IGNORED.fullmatch(name)]
        if unused:
            raise UnsupportedModel(
                f"{self._file.path}: holds tensors this architecture does not use here: {', '.join(unused[:4])}"
                + (f" and {len(unused) - 4} more" if len(unused) > 4 else "")
            )
