"""What a GGUF file's header says of a model, in the words Ollama uses. Reads headers only, and each only once.

Does not know manifests, and never loads a model.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, cast

from garzone.core.errors import GGUFError
from garzone.engine.gguf import GGUFFile
from garzone.text.chat_template import fills_in, is_go_template, template_capabilities

# `enum llama_ftype` in https://github.com/ggml-org/llama.cpp/blob/master/include/llama.h, named as Ollama names them
_FILE_TYPES: Final = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4",
}  # fmt: skip
_MAX_CACHED: Final = 256
_MAX_VALUE_CHARS: Final = 4096  # longer values than any real key; templates and licences have fields of their own


@dataclass(frozen=True, slots=True)
class Header:
    """One file's facts. Fields as in `core.generation.ModelDetails`."""

    family: str
    parameter_count: int
    parameter_size: str
    quantization: str
    context_tokens: int
    embedding_length: int
    capabilities: tuple[str, ...]
    template: str
    license: str
    model_info: Mapping[str, Any]


class Headers:
    """Remembers headers by path, size and time of change, so that listing models opens each file once."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int, int], Header] = {}
        self._lock = threading.Lock()

    def read(self, path: Path) -> Header:
        """The facts of a file.

        Raises:
            GGUFError, UnsupportedModel: the file cannot be read as GGUF.
        """
        try:
            status = path.stat()
        except OSError as error:
            raise GGUFError(f"{path}: cannot be opened: {error.strerror}") from error
        key = (str(path), status.st_size, status.st_mtime_ns)
        with self._lock:
            if key in self._known:
                return self._known[key]
        header = read_header(path)
        with self._lock:
            while len(self._known) >= _MAX_CACHED:
                del self._known[next(iter(self._known))]
            self._known[key] = header
        return header


def read_header(path: Path) -> Header:
    """The facts of a file, read now.

    Raises:
        GGUFError, UnsupportedModel: the file cannot be read as GGUF.
    """
    with GGUFFile.open(path) as file:
        metadata = file.metadata
        count = sum(math.prod(info.shape) for info in file.tensors.values())
        family = _text(metadata, "general.architecture")
        template = _text(metadata, "tokenizer.chat_template")
        return Header(
            family=family,
            parameter_count=count,
            parameter_size=human_number(count),
            quantization=_FILE_TYPES.get(_number(metadata, "general.file_type", -1), "unknown"),
            context_tokens=_number(metadata, f"{family}.context_length"),
            embedding_length=_number(metadata, f"{family}.embedding_length"),
            capabilities=_capabilities(metadata, family, template),
            template=template,
            license=_text(metadata, "general.license"),
            model_info=MappingProxyType({"general.parameter_count": count, **_scalars(metadata)}),
        )


def human_number(count: int) -> str:
    """A parameter count as Ollama prints it: `134.52M`, `7.6B`."""
    if count >= 1_000_000_000:
        return f"{count / 1e9:.0f}B" if count % 1_000_000_000 == 0 else f"{count / 1e9:.1f}B"
    if count >= 1_000_000:
        return f"{count / 1e6:.0f}M" if count % 1_000_000 == 0 else f"{count / 1e6:.2f}M"
    return f"{count / 1e3:.0f}K" if count >= 1000 else str(count)


def human_bytes(size: int) -> str:
    """A size as Ollama prints it: `98 MB`, `4.7 GB`; powers of ten."""
    for unit, factor in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if size >= factor:
            value = size / factor
            return f"{int(value)} {unit}" if value >= 10 or size % factor == 0 else f"{value:.1f} {unit}"
    return f"{size} B"


def capabilities_under(header: Header, template: str) -> tuple[str, ...]:
    """What a model can be asked for under another template than its own; one that is not rendered here adds nothing."""
    if template == header.template or is_go_template(template) or "embedding" in header.capabilities:
        return header.capabilities
    own = [name for name in template_capabilities(template) if name != "insert"]
    return (*own, *(name for name in header.capabilities if name == "insert"))


def _capabilities(metadata: Mapping[str, Any], family: str, template: str) -> tuple[str, ...]:
    if f"{family}.pooling_type" in metadata:  # what marks embedding models, for Ollama too
        return ("embedding",)
    found = ["completion", *(template_capabilities(template) if template else ())]
    # whatever a template says, a gap is shown with the vocabulary's own tokens
    found = [name for name in found if name != "insert"] + (["insert"] if fills_in(metadata) else [])
    return tuple(dict.fromkeys(found))


def _text(metadata: Mapping[str, Any], key: str) -> str:
    value = metadata.get(key)
    return value if isinstance(value, str) else ""


def _number(metadata: Mapping[str, Any], key: str, default: int = 0) -> int:
    value = metadata.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else default


def _scalars(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata without arrays and without what has its own field."""
    is_array = getattr(metadata, "is_array", None)
    scalars: dict[str, Any] = {}
    for key in metadata:
        if key == "tokenizer.chat_template" or (is_array is not None and is_array(key)):
            continue
        value = metadata[key]
        if isinstance(value, str | int | float | bool) and len(str(value)) <= _MAX_VALUE_CHARS:
            # JSON has no infinities, and model_info ends up in JSON
            scalars[key] = str(value) if isinstance(value, float) and not math.isfinite(value) else cast("Any", value)
    return scalars
