"""Run by an interpreter that has llama-cpp-python: `llama_cpp_logits.py MODEL FLASH < prompts.json > logits.npy`.

Prompts are lists of tokens; out come the logits of every token of each.
"""
# pyright: basic, reportMissingImports=false, reportAttributeAccessIssue=false

import json
import sys

import llama_cpp
import numpy as np

model = llama_cpp.Llama(
    sys.argv[1],
    n_ctx=512,
    n_batch=512,
    n_threads=2,
    verbose=False,
    logits_all=True,
    flash_attn=bool(int(sys.argv[2])),
)
rows = []
for tokens in json.load(sys.stdin):
    model.reset()
    model.eval(tokens)
    for at in range(len(tokens)):
        pointer = llama_cpp.llama_get_logits_ith(model.ctx, at)
        rows.append(np.ctypeslib.as_array(pointer, (model.n_vocab(),)).copy())
np.save(sys.stdout.buffer, np.array(rows))
