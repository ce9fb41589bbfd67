// Calls functions of a translated file with recorded arguments: drive_js.cjs FILE CASES TYPESCRIPT|-
// To $GARZONE_OUT, as JSON: {name: [{"result": ...} | {"throws": text} | {"missing": true}, ...]}.
"use strict";
const fs = require("node:fs");
const path = require("node:path");
const out = process.env.GARZONE_OUT;
const [file, casesFile, typescript] = process.argv.slice(2);
const cases = JSON.parse(fs.readFileSync(casesFile, "utf8"));
const names = Object.keys(cases);
const found = require(path.join(__dirname, "load_js.cjs")).load(file, names, typescript);
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
