"""garzone: a local coding agent that proves its results.

Importing this package does nothing: no device probe, no directory made, no heavy import. Public names
are resolved on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from garzone.api import Garzone, code_review, delegate_task, implement_feature, query_local_coder

__version__ = "0.1.0"
__all__ = ["Garzone", "__version__", "code_review", "delegate_task", "implement_feature", "query_local_coder"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from garzone import api  # noqa: PLC0415 - only when a name is used

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
