"""Texts on which token ids are compared: code, scripts, blanks, numbers, special tokens, and seeded noise."""

import random

CODE = [
    'def fib(n: int) -> int:\n    """Return the n-th number."""\n    if n < 2:\n        return n\n\n'
    "    return fib(n - 1) + fib(n - 2)  # slow\n",
    '#include <stdio.h>\n\nint main(void)\n{\n\tfor (int i = 0; i < 0x1F; ++i)\n\t\tprintf("%d\\n", i << 2);\n'
    "\treturn 0;\n}\n",
    'fn main() {\r\n    let v: Vec<&\'static str> = vec!["a", "b"];\r\n    println!("{:?}", v);\r\n}\r\n',
    "const f = async (x) => { await g(x ?? `${y}`); };\n\n\n// it's done, they'LL see, we'Ve, I'D, 'Tis, x'S\n",
    "SELECT u.id, COUNT(*) AS n\nFROM \"users\" u\nWHERE u.name LIKE '%o''Neil%' AND n >= 10;\n",
    '<div class="a b"><!-- x --><p>&nbsp;café</p>\n</div>\n\n    \n',
    '{"key": [1, 2.5, -3e10, null, true], "s": "\\u00e9\\n"}',
    'package main\n\nimport "fmt"\n\nfunc main() {\n\tfmt.Println(~x, a&^b, c|d, $e, `f`)\n}\n',
    "\\begin{align}\n  \\frac{1}{2} & = x_{i}^{2} \\\\\n\\end{align}",
    "diff --git a/x b/x\n@@ -1,3 +1,4 @@\n-old\n+new\n \n+\n",
]
SCRIPTS = [
    "Grüße aus Köln, naïve été, Łódź, São, İstanbul, façade e\u0301t",
    "Привет, мир! Γειά σου Κόσμε",
    "你好，世界。这是2024年3月abc中文 繁體字\u3000全角",
    "こんにちはカタカナー、日本語の文。",
    "안녕하세요 세계 ㄱㅏ",
    "\u0627\u0644\u0633\u0644\u0627\u0645 "
    "\u0639\u0644\u064a\u0643\u0645، ١٢٣ \u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd",
    "नमस\u094dत\u0947 द\u0941न\u093fय\u093e। สว\u0e31สด\u0e35ชาวโลก",
    "👨\u200d👩\u200d👧\u200d👦 🦀🇩🇪 👍🏽 ❤\ufe0f x\u20e3",
    "Z\u0335\u0321a\u0300\u0301\u0302lgo ²³½ Ⅷ ① 𝓐𝟘 ﬁ Å ſ's 'ſ",
    "€5 £5 ¥5 “quoted” ‘it’s’ — … ¿qué? ¡sí! § ¶ •",
    "\ufeffBOM \u00ad soft \u200b zero \u2028 line \u2029 par "
    "\u0085 nel \u00a0nbsp\u2003em \ue000 \U0010fffd \x00 \x07 \x7f",
]
BLANKS = [
    "",
    " ",
    "  ",
    "\n",
    "\n\n\n",
    "\t\t x",
    "   leading",
    "trailing   ",
    " \n \n  a\n\n b \r\n\r\n  c",
    "a  b   c    d     e" + " " * 33 + "f" + " " * 70,
    "x\n" + " " * 16 + "y\n" + "\t" * 9 + "z\n\n\n\n\n\n",
    "\u3000\u3000x\u00a0\u00a0y \u2003 z\u2028",
]
NUMBERS = [
    "0 1 12 123 1234 12345 123456 1234567 12345678901234567890",
    "3.14159 1e-10 0xDEADBEEF 0b1010 1_000_000 1,234,567.89 50% #7 v1.2.3 2024-03-01T12:00:00Z",
    "a1b22c333d4444 ٣٤٥٦ １２３ 9".strip(),
]
PUNCTUATION = [
    "!@#$%^&*()_+-=[]{}|;':\",./<>?`~ \\ !!! ??? ... --- === *** ~~~ ~ ~x ~1 $x ^y `z`",
    "foo(bar)[baz]{qux}<T>::new()->x//y/*z*/&&||!==...;;,,",
    "don't can't WON'T I'm you're we've he'll she'd it's 's 't 'x 're' ''s 'S'LL",
    "CamelCaseWords XMLHttpRequest snake_case kebab-case SCREAMING_CASE ÉcoleNormale ЖабаBig ǅx",
    "https://example.com/a/b?c=d&e=f#g user@host.org C:\\Users\\x /usr/bin/env",
]
SPECIAL = [
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
    "<|endoftext|>a<|endoftext|><|endoftext|> b <|im_end|",
    "<s>[INST] x [/INST] y</s> <unk><pad>",
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>",
    "<tool_call>\n{}\n</tool_call><think></think><|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>",
    "<start_of_turn>user\nx<end_of_turn>\n<bos><eos>",
    "<0x0A><0x41> ▁▁x▁y _ <|custom|>x<|custom|> <|custom|>",
]

_POOL = [
    *"aaaaabcdefzABCDEFZ", *"0123456789", *"      \n\n\t\r", *"'\"`~!@#$%^&*()-_=+[]{}\\|;:,.<>/?",
    "'s", "'LL", "'re", "\r\n", "  ", "é", "É", "\u0301", "中", "あ", "ア", "한", "а",
    "Ж", "\u05d0", "١", "½", "€", "\u00a0", "\u3000", "。", "，", "\u200d", "😀",
    "…", "“", "ก", "\u0e31", "क", "\u094d", "ʰ", "ǅ", "ª", "ﬁ", "\ue000",
]  # fmt: skip


def noise(count: int, length: int, seed: int = 7) -> list[str]:
    """Seeded strings of characters that decide how text is split."""
    rng = random.Random(seed)
    return ["".join(rng.choices(_POOL, k=length)) for _ in range(count)]


TEXTS = [*CODE, *SCRIPTS, *BLANKS, *NUMBERS, *PUNCTUATION, *SPECIAL]
