"""One question, one answer, without an event loop. GARZONE_BACKEND and GARZONE_MODEL say who answers."""

import os

from garzone import code_review, implement_feature, query_local_coder

model = os.environ.get("GARZONE_MODEL", "qwen2.5-coder:7b")

print(query_local_coder("Reverse a list in Python, one line.", model=model))
print(implement_feature("a function that pads a CSV row to n columns", model=model))
print(code_review("def half(n):\n    return n / 0\n", model=model))
