// Evaluates examples of doc comments: js_examples.cjs FILE SPEC TYPESCRIPT|-
// SPEC is JSON: {"names": [...], "examples": [[expression, expected], ...]}; to $GARZONE_OUT: {"wrong": [text, ...]}.
"use strict";
const assert = require("node:assert/strict");
const fs = require("node:fs");
const path = require("node:path");
const out = process.env.GARZONE_OUT;
const [file, spec, typescript] = process.argv.slice(2);
const { names, examples } = JSON.parse(fs.readFileSync(spec, "utf8"));
const found = require(path.join(__dirname, "load_js.cjs")).load(file, names, typescript);
const evaluate = (text) => new Function(...Object.keys(found), `"use strict"; return (${text});`)(...Object.values(found));
const wrong = [];
for (const [expression, expected] of examples) {
  try {
    const value = evaluate(expression);
    try {
      assert.deepStrictEqual(value, evaluate(expected));
    } catch {
      wrong.push(`${expression} gives ${JSON.stringify(value)}, not ${expected}`);
    }
  } catch (error) {
    wrong.push(`${expression}: ${String(error).slice(0, 160)}`);
  }
}
fs.writeFileSync(out, JSON.stringify({ wrong, finished: true }));
