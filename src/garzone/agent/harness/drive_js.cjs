// Calls functions of a translated file with recorded arguments: drive_js.cjs FILE CASES TYPESCRIPT|-
// To $GARZONE_OUT, as JSON: {name: [{"result": ...} | {"throws": text} | {"missing": true}, ...]}.
"use strict";
const fs = require("node:fs");
const path = require("node:path");
const { createRequire } = require("node:module");
const out = process.env.GARZONE_OUT;
const [file, casesFile, typescript] = process.argv.slice(2);
const cases = JSON.parse(fs.readFileSync(casesFile, "utf8"));
let code = fs.readFileSync(file, "utf8");
if (typescript !== "-") {
  const ts = require(typescript);
  const options = { module: ts.ModuleKind.CommonJS, target: ts.ScriptTarget.ES2022, esModuleInterop: true };
  code = ts.transpileModule(code, { compilerOptions: options }).outputText;
} else {
  code = code.replace(/^export\s+default\s+/gm, "").replace(/^export\s+(?=async|function|const|let|var|class)/gm, "");
  code = code.replace(/^export\s*\{[^}]*\};?\s*$/gm, "");
}
const names = Object.keys(cases);
const spellings = (name) => [name, name.replace(/_+(\w)/g, (_, c) => c.toUpperCase())];
const look = names
  .map((name) => {
    const tries = spellings(name).map((n) => `(typeof ${n} === "function" ? ${n} : exports[${JSON.stringify(n)}] || module.exports[${JSON.stringify(n)}])`);
    return `${JSON.stringify(name)}: ${tries.join(" || ")}`;
  })
  .join(",\n");
const module_ = { exports: {} };
const run = new Function("require", "module", "exports", `${code}\n;return {${look}};`);
const found = run(createRequire(path.resolve(file)), module_, module_.exports);
function plain(value, depth = 0) {
  if (depth > 20) return "...";
  if (value === undefined || value === null) return null;
  if (typeof value === "bigint") return Number(value);
  if (typeof value === "number") return Number.isFinite(value) ? value : { special: String(value) };
  if (typeof value !== "object") return typeof value === "function" ? { special: "function" } : value;
  if (value instanceof Map) return Object.fromEntries([...value].map(([k, v]) => [String(k), plain(v, depth + 1)]));
  if (value instanceof Set) return { special: "set" };
  if (Array.isArray(value)) return value.map((v) => plain(v, depth + 1));
  return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, plain(v, depth + 1)]));
}
const results = {};
for (const name of names) {
  results[name] = cases[name].map((given) => {
    if (typeof found[name] !== "function") return { missing: true };
    try {
      return { result: plain(found[name](...structuredClone(given))) };
    } catch (error) {
      return { throws: String(error).slice(0, 200) };
    }
  });
}
fs.writeFileSync(out, JSON.stringify({ results }));
