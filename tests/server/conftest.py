"""A real uvicorn on a free port, in a thread of its own, so that real clients can talk to it."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.types import ASGIApp

from garzone.core.errors import ModelNotFound
from garzone.core.generation import LoadedModel, ModelDetails
from garzone.server.app import build_app
from garzone.server.listener import open_listener
from garzone.testing import Answer, ScriptedGenerator

MODEL = ModelDetails(
    name="scripted:latest",
    digest="sha256:" + "a" * 64,
    size_bytes=98_000_000,
    modified_at=1_700_000_000.0,
    family="llama",
    parameter_size="135M",
    quantization="Q4_1",
    context_tokens=8192,
    embedding_length=576,
    template="{{ messages }}",
    parameters={"stop": ("<|im_end|>", "<|im_start|>"), "temperature": ("0.2",)},
    model_info={"general.architecture": "llama", "llama.context_length": 8192, "llama.rope.freq_base": float("inf")},
)


class OneModelStore:
    """A ModelStore of one model."""

    def list_models(self) -> Sequence[ModelDetails]:
        return [MODEL]

    def find(self, reference: str) -> ModelDetails:
        if reference.removesuffix(":latest") != "scripted":
            raise ModelNotFound(reference)
        return MODEL

    def remove(self, reference: str) -> None:
        raise ModelNotFound(reference)


class OneLoadedModel:
    """LoadedModels with one in them."""

    def loaded(self) -> Sequence[LoadedModel]:
        return [LoadedModel(MODEL, 4096, "AMD gfx1100", 250_000_000, 1_700_000_300.0)]

    async def unload(self, model: str) -> bool:
        return True


class Scripted(ScriptedGenerator):
    """Answers for `scripted`, with or without the tag; its details are the store's."""

    async def details(self, model: str) -> ModelDetails:
        return OneModelStore().find(model)


def scripted(*answers: Answer) -> Scripted:
    return Scripted(answers, model="scripted")


def app_of(generator: ScriptedGenerator, **given: object) -> Starlette:
    return build_app(generator, OneLoadedModel(), OneModelStore(), **given)  # pyright: ignore[reportArgumentType]


@contextmanager
def running(app: ASGIApp) -> Iterator[str]:
    """The URL of a server for `app`."""
    listener = open_listener("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.005)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()
        listener.close()


@pytest.fixture
def generator() -> Scripted:
    return scripted("Paris is the capital of France.")


@pytest.fixture
def url(generator: Scripted) -> Iterator[str]:
    with running(app_of(generator)) as address:
        yield address
