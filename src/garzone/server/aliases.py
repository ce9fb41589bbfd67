"""Which model answers for a name that is nobody's: `claude-*`, which Claude Code asks for come what may. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from garzone.core.errors import GarzoneError, ModelNotFound
from garzone.core.generation import ModelDetails

PREFIX: Final = "claude-"


def is_alias(name: str) -> bool:
    """Whether a name may stand for the default model. Claude Code's sub-agents ask for such whatever `--model` says."""
    return name.lower().startswith(PREFIX)


def resolve(
    name: str,
    find: Callable[[str], ModelDetails],
    defaults: Sequence[str],
    models: Callable[[], Sequence[ModelDetails]],
) -> str:
    """The model that answers for `name`.

    Args:
        name: what was asked for; `is_alias` holds.
        find: the store's; raises when there is no such model.
        defaults: the names that may stand in, best first; those that are not here are passed over.
        models: all that are here, for when none of the defaults is.

    Raises:
        ModelNotFound: there is none.
    """
    for candidate in (name, *defaults):
        try:
            find(candidate)
        except GarzoneError:  # not here; or, like `claude-opus-4[1m]`, no name a model could have
            continue
        return candidate
    for model in models():
        if "completion" in model.capabilities:
            return model.name
    wanted = next((default for default in defaults if default), "")
    raise ModelNotFound(name, f"it stands for the default model; get one: garzone pull {wanted}".strip())
