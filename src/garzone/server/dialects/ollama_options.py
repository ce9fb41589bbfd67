"""Ollama's `options` and `keep_alive`: what a request, or a Modelfile's PARAMETER lines, say about sampling.

Defaults and meanings as in WIRE.md; what the engine has no use for is known and has no effect.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from pydantic import AliasChoices, Field

from garzone.core.generation import SamplingParams
from garzone.server.dialects.wire import Strings, Wire, strip_empty

_log = logging.getLogger(__name__)
_DURATION = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_UNIT_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}

# Options of Ollama's, past and present, that say how its engine should work and not what it should write.
_WITHOUT_EFFECT: Final = frozenset(
    {
        "f16_kv", "logits_all", "low_vram", "main_gpu", "mirostat", "mirostat_eta", "mirostat_tau", "num_batch",
        "num_gpu", "num_gqa", "num_thread", "numa", "penalize_newline", "rope_frequency_base", "rope_frequency_scale",
        "tfs_z", "use_mlock", "use_mmap", "vocab_only",
    }
)  # fmt: skip


def parse_keep_alive(value: float | str) -> float:
    """Seconds: a number is that, text is a Go duration (`5m`, `1h30m`, `-1s`) or a number. Raises ValueError."""
    if isinstance(value, int | float):
        return float(value)
    text = value.strip()
    sign, body = (-1.0, text[1:]) if text.startswith("-") else (1.0, text.removeprefix("+"))
    if re.fullmatch(r"[0-9]{1,300}(\.[0-9]*)?", body):
        return sign * float(body)
    parts = _DURATION.findall(body)
    if not parts or "".join(number + unit for number, unit in parts) != body:
        raise ValueError(f"{value!r} is not a duration: give seconds, or for example 5m, 1h30m, 0, -1")
    return sign * min(sum(float(number) * _UNIT_S[unit] for number, unit in parts), 1e300)


def _or(*names: str) -> AliasChoices:
    return AliasChoices(*names)


class Options(Wire):
    """`options`, or PARAMETER lines; None where nothing is said. Names of llama.cpp's are taken, too."""

    temperature: float | None = Field(None, ge=0, validation_alias=_or("temperature", "temp"))
    top_k: int | None = None
    top_p: float | None = Field(None, ge=0)
    min_p: float | None = Field(None, ge=0)
    typical_p: float | None = Field(None, ge=0, validation_alias=_or("typical_p", "typ_p", "typical"))
    repeat_last_n: int | None = Field(None, ge=-1, validation_alias=_or("repeat_last_n", "penalty_last_n"))
    repeat_penalty: float | None = Field(None, gt=0, validation_alias=_or("repeat_penalty", "repetition_penalty"))
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    num_predict: int | None = Field(None, validation_alias=_or("num_predict", "n_predict", "max_tokens"))
    num_ctx: int | None = Field(None, validation_alias=_or("num_ctx", "n_ctx"))
    num_keep: int | None = Field(None, ge=-1, validation_alias=_or("num_keep", "n_keep"))
    stop: Strings | None = None

    def over(self, defaults: SamplingParams) -> SamplingParams:
        """`defaults` with what is said here in their place."""
        same = (
            "temperature", "min_p", "repeat_last_n", "repeat_penalty", "presence_penalty", "frequency_penalty",
            "num_keep",
        )  # fmt: skip
        changed: dict[str, Any] = {name: value for name in same if (value := getattr(self, name)) is not None}
        if self.top_k is not None:
            changed["top_k"] = max(0, self.top_k)
        if self.top_p is not None:
            changed["top_p"] = min(1.0, self.top_p)
        if self.typical_p is not None:
            changed["typical_p"] = min(1.0, self.typical_p)
        if self.seed is not None:
            changed["seed"] = self.seed if self.seed >= 0 else None
        if self.num_predict is not None:
            changed["max_tokens"] = self.num_predict if self.num_predict > 0 else None
        if self.stop is not None:
            changed["stop"] = strip_empty(self.stop)
        return replace(defaults, **changed)


def _names() -> frozenset[str]:
    found = set(Options.model_fields)
    for field in Options.model_fields.values():
        if isinstance(field.validation_alias, AliasChoices):
            found.update(str(choice) for choice in field.validation_alias.choices)
    return frozenset(found)


NAMES: Final = _names()


def warn_of_unknown(given: Mapping[str, Any]) -> None:
    """Log options that nobody knows: a typing error has no effect, and should not go unseen."""
    for name in given.keys() - NAMES - _WITHOUT_EFFECT:
        _log.warning("option %r is not known here and has no effect", name)
