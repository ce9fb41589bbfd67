"""The pool with the real engine: a tiny random model, and the real SmolLM2."""

import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from garzone.config import Settings
from garzone.core.chat import Message, Role
from garzone.core.errors import ContextOverflow, ModelFileError, RunnerCrashed
from garzone.core.generation import Delta, FinishReason, GenerateRequest, ModelDetails, SamplingParams, Usage
from garzone.runner.process import RunnerPool
from garzone.testing import write_tiny_model
from tests.numbers import record_number
from tests.runner.conftest import ListStore
from tests.runner.test_process import pids

GREEDY = SamplingParams(temperature=0, max_tokens=24)
QUESTION = (Message.of(Role.USER, "What is the capital of France? Answer in one short sentence."),)

MakePool = Callable[[Path], RunnerPool]


@pytest.fixture
async def pool_of(tmp_path: Path) -> AsyncIterator[MakePool]:
    pools: list[RunnerPool] = []

    def make(path: Path) -> RunnerPool:
        store = ListStore(ModelDetails(name="model", path=str(path)))
        pools.append(RunnerPool(store, Settings(home=tmp_path, models_dir=tmp_path, num_ctx=1024, device="CPU")))
        return pools[-1]

    yield make
    for pool in pools:
        await pool.aclose()


async def collect(pool: RunnerPool, request: GenerateRequest) -> tuple[str, Delta, Usage]:
    deltas = [delta async for delta in pool.generate(request)]
    last = deltas[-1]
    assert last.usage is not None
    return "".join(delta.text for delta in deltas), last, last.usage


async def test_a_tiny_model_answers_the_same_cold_cached_and_after_a_crash(pool_of: MakePool, tmp_path: Path) -> None:
    pool = pool_of(write_tiny_model(tmp_path / "tiny.gguf"))
    request = GenerateRequest("model", prompt="once upon a time there was a", raw=True, sampling=GREEDY)
    cold, last, usage = await collect(pool, request)
    assert cold
    assert last.finish_reason in (FinishReason.LENGTH, FinishReason.STOP)
    cached, _, cached_usage = await collect(pool, request)
    assert cached == cold
    assert cached_usage.cached_tokens == usage.prompt_tokens - 1
    (pid,) = pids()
    with pytest.raises(RunnerCrashed):
        async with aclosing(pool.generate(replace(request, sampling=SamplingParams(max_tokens=400)))) as stream:
            async for delta in stream:
                if delta.text:
                    with suppress(ProcessLookupError):  # it is dead already, and this piece was on its way
                        os.kill(pid, signal.SIGKILL)
    again, _, _ = await collect(pool, request)
    assert again == cold
    seeded = replace(request, sampling=SamplingParams(temperature=1.0, seed=42, max_tokens=16))
    assert (await collect(pool, seeded))[0] == (await collect(pool, seeded))[0]


async def test_prompts_longer_than_a_chunk_and_than_the_context(pool_of: MakePool, tmp_path: Path) -> None:
    pool = pool_of(write_tiny_model(tmp_path / "tiny.gguf", context_length=512))
    request = GenerateRequest("model", prompt="x" * 300, raw=True, sampling=GREEDY)
    _, _, usage = await collect(pool, request)
    assert usage.prompt_tokens == 300
    with pytest.raises(ContextOverflow, match="prompt is too long: 600 tokens > 511 maximum context length"):
        await collect(pool, replace(request, prompt="x" * 600))


async def test_a_file_that_is_no_model_is_an_error_with_its_name(pool_of: MakePool, tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF\x03\x00\x00\x00" + b"\xff" * 64)
    with pytest.raises(ModelFileError, match=r"bad\.gguf"):
        await collect(pool_of(tmp_path / "bad.gguf"), GenerateRequest("model", prompt="x"))


async def test_tokens_are_counted_without_loading_the_model(pool_of: MakePool, smollm2_path: Path) -> None:
    pool = pool_of(smollm2_path)
    assert await pool.count_tokens("model", "Hello world") == 2
    assert not pool.loaded()


async def test_the_real_model_knows_the_capital_of_france(pool_of: MakePool, smollm2_path: Path) -> None:
    pool = pool_of(smollm2_path)
    request = GenerateRequest("model", messages=QUESTION, sampling=replace(GREEDY, max_tokens=40))
    answer, last, usage = await collect(pool, request)
    assert "Paris" in answer
    assert "<|im" not in answer
    assert last.finish_reason is FinishReason.STOP
    goes_on = (*QUESTION, Message.of(Role.ASSISTANT, answer), Message.of(Role.USER, "And of Italy?"))
    _, _, second = await collect(pool, replace(request, messages=goes_on))
    assert second.cached_tokens > usage.prompt_tokens
    stopped, last, _ = await collect(pool, replace(request, sampling=replace(GREEDY, stop=("Paris",))))
    assert stopped == answer[: answer.index("Paris")]
    assert last.stop == "Paris"
    record_number("runner start to first load of SmolLM2, s", usage.load_ms / 1e3)
    record_number("runner decode of SmolLM2, tok/s", usage.completion_tokens / usage.decode_ms * 1e3)
