"""Golden logits of the tiny models: saved as safetensors, loaded and run by `transformers` in float64.

    python tools/golden/tiny.py tests/golden/tiny_transformers.npz

Needs torch, transformers and safetensors, which are not dependencies of garzone or of its tests.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import safetensors
import torch
import transformers
from safetensors.numpy import save_file

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[2] / "src")]
from tests.engine.tiny_transformers import TOKENS, VARIANTS  # noqa: E402


def main(out: Path) -> None:
    arrays: dict[str, np.ndarray] = {}
    for variant in VARIANTS:
        with tempfile.TemporaryDirectory() as folder:
            save_file(variant.weights(), f"{folder}/model.safetensors", metadata={"format": "pt"})
            Path(folder, "config.json").write_text(json.dumps(variant.config()))
            model, report = transformers.AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float64, output_loading_info=True, attn_implementation="eager"
            )
        assert not report["unexpected_keys"], report
        assert set(report["missing_keys"]) <= ({"lm_head.weight"} if variant.tied else set()), report
        for index, tokens in enumerate(TOKENS):
            with torch.no_grad():
                logits = model(torch.tensor([tokens])).logits[0, -1]
            arrays[f"{variant.name}/{index}"] = logits.numpy().astype(np.float32)
    arrays["made_by"] = np.array(
        f"transformers {transformers.__version__}, torch {torch.__version__}, safetensors {safetensors.__version__}"
    )
    np.savez_compressed(out, **arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
