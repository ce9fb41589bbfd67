"""The NEON kernels, compiled by clang for AArch64 and run by qemu on whatever machine this is."""

import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest

from garzone.core.generation import KVCacheType
from garzone.kernels.cpu import compiler, library
from garzone.kernels.cpu.instruction_sets import NEON
from garzone.kernels.cpu.library import MATRIX_TYPES, OperationLibrary
from garzone.kernels.layouts import BLOCK, GGMLType
from tests.kernels.cpu.matrices import dequantised, random_matrix, read_activation
from tests.kernels.cpu.test_attention import TOLERANCE, Sizes, reference
from tests.kernels.cpu.test_linear import FLOAT32_TOLERANCE

HEADERS = Path("/usr/aarch64-linux-gnu/include/stdio.h")
NEEDED = {
    "clang": shutil.which("clang"),
    "qemu-user": shutil.which("qemu-aarch64"),
    "binutils-aarch64-linux-gnu": shutil.which("aarch64-linux-gnu-ld"),
    "libc6-dev-arm64-cross": HEADERS.exists(),
    "libgcc-*-dev-arm64-cross": bool(list(Path("/usr/lib/gcc-cross/aarch64-linux-gnu").glob("*/crtbegin.o")))
    if Path("/usr/lib/gcc-cross/aarch64-linux-gnu").exists()
    else False,
}
MISSING = [package for package, found in NEEDED.items() if not found]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}: apt-get install them")
HERE = Path(__file__).parent
TARGET = ("--target=aarch64-linux-gnu", *compiler.FLAGS, *NEON.flags, f"-D{NEON.define}", "-I", str(compiler.SOURCES))


def _compile(*arguments: str) -> None:
    subprocess.run(["clang", *TARGET, *arguments], check=True)


def _run(program: Path, arguments: list[int | str], given: bytes) -> bytes:
    command = ["qemu-aarch64", "-cpu", "max", str(program), *map(str, arguments)]
    return subprocess.run(command, input=given, capture_output=True, check=True, timeout=120).stdout


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Everything but matrix kernels and attention."""
    directory = tmp_path_factory.mktemp("neon")
    sources = [HERE / "emulated.c", *(compiler.SOURCES / name for name in (*library.OPERATIONS.sources, "pool.c"))]
    return [_object(source, directory / f"{source.stem}.o") for source in sources]


@pytest.fixture(scope="module")
def attentions(tmp_path_factory: pytest.TempPathFactory) -> dict[KVCacheType, str]:
    """Attention over each type of rows."""
    directory = tmp_path_factory.mktemp("attention")
    made: dict[KVCacheType, str] = {}
    for kv_cache in KVCacheType:
        unit = library.attention_unit(kv_cache)
        defines = [f"-D{define}" for define in unit.defines]
        made[kv_cache] = _object(compiler.SOURCES / unit.sources[0], directory / f"{unit.name}.o", *defines)
    return made


def _object(source: Path, made: Path, *arguments: str) -> str:
    _compile(*arguments, "-c", str(source), "-o", str(made))
    return str(made)


def _program(ggml_type: GGMLType, objects: list[str], directory: Path) -> Path:
    unit = library.matrix_unit(ggml_type)
    sources = [str(compiler.SOURCES / source) for source in unit.sources]
    program = directory / unit.name
    linker = "--ld-path=" + (shutil.which("aarch64-linux-gnu-ld") or "")
    _compile(*(f"-D{define}" for define in unit.defines), *sources, *objects, linker, "-static", "-o", str(program))
    return program


@pytest.mark.parametrize("ggml_type", sorted(MATRIX_TYPES), ids=lambda t: t.name)
def test_products_on_neon_equal_the_reference(
    ggml_type: GGMLType, objects: list[str], attentions: dict[KVCacheType, str], tmp_path: Path
) -> None:
    program = _program(ggml_type, [*objects, attentions[KVCacheType.F16]], tmp_path)
    columns, rng = 2 * max(BLOCK[ggml_type].elements, 32), np.random.default_rng(ggml_type)
    for rows, tokens in ((37, 1), (20, 6)):
        matrix = random_matrix(ggml_type, rows, columns, rng)
        x = rng.standard_normal((tokens, columns), dtype=np.float32)
        is_float = ggml_type in library.FLOATS
        given = struct.pack("<q", matrix.shape[1]) + matrix.tobytes() + x.tobytes()
        answer = _run(program, ["matrix", rows, columns, tokens, int(is_float)], given)
        values, rest = np.frombuffer(answer[: 4 * rows * columns], np.float32), answer[4 * rows * columns :]
        expected = dequantised(ggml_type, matrix)
        assert np.abs(values.reshape(rows, columns) - expected).max() <= 5e-7 * np.abs(expected).max()
        used = x.astype(np.float64)
        if not is_float:
            emulated = _FourTokensATile()
            size = emulated.activation_bytes(tokens, columns)
            used = read_activation(emulated, np.frombuffer(rest[:size], np.uint8), tokens, columns)
            rest = rest[size:]
            assert np.abs(used - x).max() <= 0.501 * np.abs(x).max() / 127
        out = np.frombuffer(rest, np.float32).reshape(tokens, rows)
        magnitude = np.abs(used) @ np.abs(expected.T).astype(np.float64)
        assert (np.abs(out - used @ expected.T.astype(np.float64)) / magnitude).max() < FLOAT32_TOLERANCE


class _FourTokensATile(OperationLibrary):
    """Sizes as the NEON build has them (csrc/lanes_neon.h), computed here since that build cannot be loaded."""

    def __init__(self) -> None:
        self.activation_bytes = lambda tokens, columns: (1 if tokens == 1 else -(-tokens // 4) * 4) * columns // 32 * 48


@pytest.mark.parametrize(
    ("sizes", "kv_cache"),
    [
        (Sizes(9, 3, 64, 160), KVCacheType.F16),
        (Sizes(4, 2, 80, 160), KVCacheType.F16),
        (Sizes(9, 3, 64, 160), KVCacheType.Q8_0),
        (Sizes(4, 2, 96, 160), KVCacheType.Q8_0),
    ],
    ids=lambda given: str(given.head_size) if isinstance(given, Sizes) else given.value,
)
def test_attention_on_neon_equals_the_reference(
    sizes: Sizes, kv_cache: KVCacheType, objects: list[str], attentions: dict[KVCacheType, str], tmp_path: Path
) -> None:
    program = _program(GGMLType.F32, [*objects, attentions[kv_cache]], tmp_path)
    qkv = np.random.default_rng(1).standard_normal((150, sizes.width), dtype=np.float32)
    for chunk in (1, 50):
        arguments = ["attention", sizes.heads, sizes.kv_heads, sizes.head_size, sizes.num_ctx, len(qkv), chunk]
        answer = _run(program, arguments, sizes.rope().tobytes() + qkv.tobytes())
        out = np.frombuffer(answer, np.float32).reshape(len(qkv), -1)
        assert np.abs(out - reference(sizes, qkv, kv_cache)).max() < TOLERANCE
