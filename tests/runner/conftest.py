"""A pool of real runner processes with the stand-in engine, and a store that is only a list."""

from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest

from garzone.config import Settings
from garzone.core.errors import ModelNotFound
from garzone.core.generation import ModelDetails
from garzone.runner.process import RunnerPool

STAND_IN = "tests.runner.stand_in:load"


class ListStore:
    """A ModelStore of given models."""

    def __init__(self, *models: ModelDetails) -> None:
        self.models = list(models)

    def list_models(self) -> Sequence[ModelDetails]:
        return self.models

    def find(self, reference: str) -> ModelDetails:
        for model in self.models:
            if model.name == reference:
                return model
        raise ModelNotFound(reference)

    def remove(self, reference: str) -> None:
        self.models.remove(self.find(reference))


def toy(name: str, **fields: object) -> ModelDetails:
    return ModelDetails(name=name, path=f"/models/{name}.gguf", **fields)  # pyright: ignore[reportArgumentType]


TOYS = (
    toy("toy", digest="sha256:" + "7" * 64, context_tokens=256),
    *(toy(name, context_tokens=256) for name in ("other", "third", "broken", "dying", "endless", "slow")),
    toy("clever", capabilities=("completion", "tools", "thinking", "insert")),
    toy("odd", model_info={"general.architecture": "llama", "llama.attention.key_length": 80}),
    toy("primed", system="be brief", parameters={"num_ctx": ("128",)}),
)

MakePool = Callable[..., RunnerPool]


@pytest.fixture
async def make_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MakePool]:
    """Makes pools that are closed at the end; keywords go to Settings or the pool."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # so that the processes find the stand-in
    pools: list[RunnerPool] = []

    def make(
        *, max_loaded: int = 2, stall_timeout_s: float = 60.0, ping_interval_s: float = 10.0, **settings: object
    ) -> RunnerPool:
        pool = RunnerPool(
            ListStore(*TOYS),
            Settings(home=tmp_path, models_dir=tmp_path, **settings),  # pyright: ignore[reportArgumentType]
            engine=STAND_IN,
            max_loaded=max_loaded,
            stall_timeout_s=stall_timeout_s,
            ping_interval_s=ping_interval_s,
        )
        pools.append(pool)
        return pool

    yield make
    for pool in pools:
        await pool.aclose()
