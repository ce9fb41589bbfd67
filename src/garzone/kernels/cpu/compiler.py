"""Compiles the C sources of this room into shared libraries, once, and keeps them on disk.

A library's name is a digest of everything it was made from: sources, flags and compiler. A warm start compiles
nothing and starts no process. tinygrad's own compile step is not used, because it knows only clang and an object
loader without data sections.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from garzone import config
from garzone.core.errors import DeviceUnavailable
from garzone.kernels.cpu.instruction_sets import InstructionSet

SOURCES = Path(__file__).parent / "csrc"
KNOWN_COMPILERS = ("clang", "gcc", "cc")  # clang first: gcc keeps vectors wider than a register in memory
# Nothing of -ffast-math: the kernels say where products are fused into sums (csrc/lanes.h).
FLAGS = ("-std=gnu11", "-O3", "-fPIC", "-ffp-contract=off", "-fno-math-errno", "-Wall", "-Wextra", "-Wno-psabi")
TIMEOUT_S = 300


@dataclass(frozen=True, slots=True)
class Compiler:
    """A C compiler. `identity` changes when the program behind the name does."""

    path: str
    identity: str


@dataclass(frozen=True, slots=True)
class Unit:
    """One library to compile: source files of `csrc` (or anywhere), and what they are compiled with."""

    name: str
    sources: tuple[str, ...]
    defines: tuple[str, ...] = ()


@cache
def compilers() -> tuple[Compiler, ...]:
    """The C compilers on PATH, preferred first."""
    found: list[Compiler] = []
    for name in KNOWN_COMPILERS:
        if path := shutil.which(name):
            real = os.path.realpath(path)
            stat = Path(real).stat()
            found.append(Compiler(path, f"{real} {stat.st_size} {stat.st_mtime_ns}"))
    return tuple(found)


@cache
def _sources_digest() -> bytes:
    digest = hashlib.sha256()
    for path in sorted(SOURCES.rglob("*.[ch]")):
        digest.update(path.relative_to(SOURCES).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.digest()


def command(compiler: Compiler, unit: Unit, instruction_set: InstructionSet, *, extra: Sequence[str] = ()) -> list[str]:
    """The compiler's command line, but for `-o` and the output's name."""
    defines = [f"-D{define}" for define in (instruction_set.define, *unit.defines)]
    sources = [str(SOURCES / source) for source in unit.sources]  # an absolute path stays what it is
    kind = "-dynamiclib" if sys.platform == "darwin" else "-shared"
    flags = [*FLAGS, *instruction_set.flags, *defines, *extra]
    return [compiler.path, *flags, kind, "-I", str(SOURCES), *sources, "-lpthread"]


def compile_library(unit: Unit, instruction_set: InstructionSet, *, cache_dir: Path | None = None) -> Path:
    """The compiled library's path, from the cache if it is there.

    Args:
        unit: what to compile.
        instruction_set: for which processors.
        cache_dir: where libraries are kept; the settings' cache unless given.

    Raises:
        DeviceUnavailable: there is no C compiler, or none could compile this unit; says what the compiler said.
    """
    directory = cache_dir or config.load().cache_dir / "kernels" / "cpu"
    complaints: list[str] = []
    for compiler in compilers():
        line = command(compiler, unit, instruction_set)
        digest = hashlib.sha256(_sources_digest() + "\0".join([compiler.identity, *line]).encode()).hexdigest()
        library = directory / f"{unit.name}-{instruction_set.name}-{digest[:16]}.so"
        if library.exists():
            return library
        complaint = _compile(line, library)
        if not complaint:
            return library
        complaints.append(f"{compiler.path}: {complaint}")
    if not complaints:
        raise DeviceUnavailable(f"no C compiler on PATH (tried {', '.join(KNOWN_COMPILERS)}); install clang")
    raise DeviceUnavailable(f"{unit.name} for {instruction_set.name} does not compile: " + "\n".join(complaints))


def _compile(line: Sequence[str], library: Path) -> str:
    """Runs the compiler; what it complained of, "" when the library is there. Two processes may do so at once."""
    library.parent.mkdir(parents=True, exist_ok=True)
    descriptor, partial = tempfile.mkstemp(dir=library.parent, prefix=library.name, suffix=".partial")
    os.close(descriptor)
    try:
        try:
            run = subprocess.run(  # noqa: S603
                [*line, "-o", partial], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        if run.returncode:
            return run.stderr.strip()[-2000:] or f"exit code {run.returncode}"
        Path(partial).replace(library)
        return ""
    finally:
        Path(partial).unlink(missing_ok=True)
