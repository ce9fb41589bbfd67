import ctypes
import dataclasses
from pathlib import Path

import pytest

from garzone.core.errors import DeviceUnavailable
from garzone.kernels.cpu import compiler
from garzone.kernels.cpu.compiler import Compiler, Unit
from garzone.kernels.cpu.instruction_sets import AVX2, AVX512, NEON, PORTABLE, supported


def _unit(tmp_path: Path, text: str) -> Unit:
    path = tmp_path / "answer.c"
    path.write_text(text)
    return Unit("answer", (str(path),))


def test_a_library_is_compiled_once_and_then_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unit = _unit(tmp_path, "static int table[4]; int answer(void) { return table[0] + 42; }")
    first = compiler.compile_library(unit, PORTABLE, cache_dir=tmp_path / "cache")
    assert ctypes.CDLL(str(first)).answer() == 42
    assert [path.name for path in first.parent.iterdir()] == [first.name]

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(compiler.subprocess, "run", refuse)
    assert compiler.compile_library(unit, PORTABLE, cache_dir=tmp_path / "cache") == first


def test_flags_and_the_compiler_itself_are_part_of_a_library_s_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = _unit(tmp_path, "int answer(void) { return ANSWER; }")
    one = compiler.compile_library(dataclasses.replace(unit, defines=("ANSWER=1",)), PORTABLE, cache_dir=tmp_path)
    two = compiler.compile_library(dataclasses.replace(unit, defines=("ANSWER=2",)), PORTABLE, cache_dir=tmp_path)
    assert ctypes.CDLL(str(one)).answer() == 1
    assert ctypes.CDLL(str(two)).answer() == 2
    newer = [Compiler(found.path, found.identity + " updated") for found in compiler.compilers()]
    monkeypatch.setattr(compiler, "compilers", lambda: tuple(newer))
    three = compiler.compile_library(dataclasses.replace(unit, defines=("ANSWER=1",)), PORTABLE, cache_dir=tmp_path)
    assert three != one


def test_without_a_compiler_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "compilers", tuple)
    with pytest.raises(DeviceUnavailable, match="install clang"):
        compiler.compile_library(_unit(tmp_path, "int x;"), PORTABLE, cache_dir=tmp_path)


def test_a_compiler_that_fails_leaves_its_words_and_no_file(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with pytest.raises(DeviceUnavailable, match="no_such_type"):
        compiler.compile_library(_unit(tmp_path, "no_such_type x;"), PORTABLE, cache_dir=cache)
    assert list(cache.iterdir()) == []


def test_the_next_compiler_is_tried_when_the_first_one_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = compiler.compilers()
    monkeypatch.setattr(compiler, "compilers", lambda: (Compiler("/bin/false", "broken"), *found))
    assert compiler.compile_library(_unit(tmp_path, "int x;"), PORTABLE, cache_dir=tmp_path).exists()


def test_instruction_sets_follow_the_processor_s_features() -> None:
    server = AVX512.features | {"sse4_2"}
    assert supported(server, "x86_64") == [AVX512, AVX2, PORTABLE]
    assert supported(AVX2.features, "AMD64") == [AVX2, PORTABLE]
    assert supported({"asimd", "asimddp"}, "aarch64") == [NEON, PORTABLE]
    assert supported(server, "riscv64") == [PORTABLE]
    assert supported()[-1] == PORTABLE
