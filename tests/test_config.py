from pathlib import Path

import pytest

from garzone import config
from garzone.core.errors import UsageError
from garzone.core.generation import KVCacheType


def test_defaults_are_ollamas_address_and_directory(tmp_path: Path) -> None:
    settings = config.load({"HOME": str(tmp_path), "GARZONE_HOME": str(tmp_path / "home")})
    assert (settings.host, settings.port) == ("127.0.0.1", 11434)
    assert settings.models_dir == tmp_path / ".ollama" / "models"
    assert not (tmp_path / "home").exists(), "reading settings must not make directories"


@pytest.mark.parametrize(
    ("value", "host", "port"),
    [
        ("0.0.0.0", "0.0.0.0", 11434),
        ("localhost:8080", "localhost", 8080),
        (":8080", "127.0.0.1", 8080),
        ("http://example.test", "example.test", 80),
        ("https://example.test", "example.test", 443),
        ("[::1]:1234", "::1", 1234),
    ],
)
def test_ollama_host_is_read_as_ollama_reads_it(tmp_path: Path, value: str, host: str, port: int) -> None:
    settings = config.load({"GARZONE_HOME": str(tmp_path), "OLLAMA_HOST": value})
    assert (settings.host, settings.port) == (host, port)


def test_what_the_caller_gives_beats_environment_beats_file(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('model = "from-file"\ndevice = "CPU"\nkeep_alive_s = 10\n')
    env = {"GARZONE_HOME": str(tmp_path), "GARZONE_MODEL": "from-env"}
    assert config.load(env).model == "from-env"
    assert config.load(env, model="given", port=None).model == "given"
    assert config.load(env).device == "CPU"
    assert config.load(env).keep_alive_s == 10
    assert config.load({**env, "OLLAMA_ORIGINS": "http://a.test, http://b.test"}).origins == (
        "http://a.test",
        "http://b.test",
    )


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("modle = 'x'", "modle"),
        ("port = 'x'", "port"),
        ("port = true", "port"),
        ("device = 3", "device"),
        ("origins = 'x'", "origins"),
        ("kv_cache = 'q4_0'", "kv_cache = 'q4_0': not a type that the KV cache can have; there are f16 and q8_0"),
        ("kv_cache = 8", "kv_cache"),
        ("model = ", "TOML"),
    ],
)
def test_a_wrong_config_file_is_refused_by_name(tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(UsageError, match=named):
        config.load({"GARZONE_HOME": str(tmp_path)})


def test_ollamas_variables_mean_what_they_mean_to_ollama(tmp_path: Path) -> None:
    env = {"GARZONE_HOME": str(tmp_path), "OLLAMA_CONTEXT_LENGTH": "4096", "OLLAMA_LOAD_TIMEOUT": "-1s"}
    settings = config.load(env)
    assert (settings.num_ctx, settings.load_timeout_s) == (4096, 0)
    assert config.load({**env, "GARZONE_NUM_CTX": "2048"}).num_ctx == 2048
    defaults = config.load({"GARZONE_HOME": str(tmp_path)})
    zeros = config.load({**env, "OLLAMA_CONTEXT_LENGTH": "0", "OLLAMA_MAX_LOADED_MODELS": "0"})
    assert (zeros.num_ctx, zeros.max_loaded) == (defaults.num_ctx, defaults.max_loaded)


@pytest.mark.parametrize(("field", "value"), [("num_ctx", 0), ("max_loaded", 0), ("num_parallel", -1)])
def test_numbers_that_nothing_can_work_with_are_refused(tmp_path: Path, field: str, value: int) -> None:
    (tmp_path / "config.toml").write_text(f"{field} = {value}\n")
    with pytest.raises(UsageError, match=f"{field} is {value}"):
        config.load({"GARZONE_HOME": str(tmp_path)})


def test_a_wrong_number_in_the_environment_names_the_variable(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="GARZONE_NUM_CTX"):
        config.load({"GARZONE_HOME": str(tmp_path), "GARZONE_NUM_CTX": "many"})
    with pytest.raises(UsageError, match="OLLAMA_HOST"):
        config.load({"GARZONE_HOME": str(tmp_path), "OLLAMA_HOST": "x:notaport"})


def test_the_type_of_the_kv_cache_is_read_as_ollama_names_it(tmp_path: Path) -> None:
    env = {"GARZONE_HOME": str(tmp_path)}
    assert config.load(env).kv_cache is KVCacheType.F16
    (tmp_path / "config.toml").write_text('kv_cache = "q8_0"\n')
    assert config.load(env).kv_cache is KVCacheType.Q8_0
    assert config.load({**env, "OLLAMA_KV_CACHE_TYPE": "F16"}).kv_cache is KVCacheType.F16
    assert config.load({**env, "OLLAMA_KV_CACHE_TYPE": ""}).kv_cache is KVCacheType.Q8_0
    with pytest.raises(UsageError, match=r"OLLAMA_KV_CACHE_TYPE='q4_0': .*there are f16 and q8_0"):
        config.load({**env, "OLLAMA_KV_CACHE_TYPE": "q4_0"})


@pytest.mark.parametrize(
    ("value", "seconds"), [("300", 300.0), ("5m", 300.0), ("1h30m", 5400.0), ("-1", -1.0), ("-1s", -1.0), ("0.5s", 0.5)]
)
def test_durations_are_understood_as_ollama_writes_them(tmp_path: Path, value: str, seconds: float) -> None:
    settings = config.load({"GARZONE_HOME": str(tmp_path), "OLLAMA_KEEP_ALIVE": value})
    assert settings.keep_alive_s == seconds


def test_a_key_is_read_from_the_environment_and_never_shown(tmp_path: Path) -> None:
    settings = config.load({"GARZONE_HOME": str(tmp_path), "GARZONE_API_KEY": "s3cret"})
    assert settings.api_key == "s3cret"
    assert "s3cret" not in repr(settings)
    with pytest.raises(UsageError, match="OLLAMA_KEEP_ALIVE='soon'"):
        config.load({"GARZONE_HOME": str(tmp_path), "OLLAMA_KEEP_ALIVE": "soon"})
