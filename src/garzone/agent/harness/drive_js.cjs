// Calls functions of a translated file with recorded arguments: drive_js.cjs FILE CASES TYPESCRIPT|-
// To $GARZONE_OUT, as JSON: {name: [{"result": ...} | {"throws": text} | {"missing": true}, ...]}.
//
// The translation runs in a realm of its own that has nothing but the language: no require, no process, no code made
// from strings, and no object of this realm, through whose constructor it could get here. Only strings go in and out,
// and this process ends before anything the translation left behind can run.
"use strict";
const fs = require("node:fs");
const path = require("node:path");
const vm = require("node:vm");
const out = process.env.GARZONE_OUT;
const [file, casesFile, typescript] = process.argv.slice(2);
const cases = fs.readFileSync(casesFile, "utf8");
const names = Object.keys(JSON.parse(cases));
const { read, functionsOf } = require(path.join(__dirname, "load_js.cjs"));
const code = `${read(file, typescript)}\n;return ${functionsOf(names)};`;
const realm = vm.createContext(Object.create(null), { codeGeneration: { strings: false, wasm: false } });
// what it needs is taken before the translation can put something else in its place
const driver = vm.runInContext(
  `"use strict";
((JSON, Object, Array, Number, String, Map, Set) => {
  const { parse, stringify } = JSON, { entries, fromEntries } = Object, { isArray } = Array, { isFinite } = Number;
  function plain(value, depth) {
    if (depth > 20) return "...";
    if (value === undefined || value === null) return null;
    if (typeof value === "bigint") return Number(value);
    if (typeof value === "number") return isFinite(value) ? value : { special: String(value) };
    if (typeof value !== "object") return typeof value === "function" ? { special: "function" } : value;
    if (value instanceof Map) return fromEntries([...value].map(([k, v]) => [String(k), plain(v, depth + 1)]));
    if (value instanceof Set) return { special: "set" };
    if (isArray(value)) return value.map((v) => plain(v, depth + 1));
    return fromEntries(entries(value).map(([k, v]) => [k, plain(v, depth + 1)]));
  }
  const said = (error) => {
    try {
      return String(error).slice(0, 200);
    } catch {
      return "something that cannot be shown";
    }
  };
  globalThis.console = fromEntries(["log", "info", "warn", "error", "debug"].map((name) => [name, () => undefined]));
  globalThis.structuredClone = (value) => parse(stringify(value));
  return (load, given) => {
    const cases = parse(given), results = {};
    let found;
    try {
      const module = { exports: {} };
      found = load((name) => { throw new Error("nothing but the language itself: no " + name); }, module, module.exports);
    } catch (error) {
      return stringify({ broken: said(error) });
    }
    for (const [name, calls] of entries(cases)) {
      results[name] = calls.map((given) => {
        if (typeof found[name] !== "function") return { missing: true };
        try {
          return { result: plain(found[name](...parse(stringify(given))), 0) };
        } catch (error) {
          return { throws: said(error) };
        }
      });
    }
    return stringify({ results });
  };
})(JSON, Object, Array, Number, String, Map, Set)`,
  realm,
);
const load = vm.compileFunction(code, ["require", "module", "exports"], { filename: file, parsingContext: realm });
const text = driver(load, cases);
if (typeof text !== "string") throw new Error("the translation took over its own run");
const { results, broken } = JSON.parse(text);
if (broken !== undefined) {
  fs.writeSync(2, `${broken}\n`);
  process.exit(1);
}
fs.writeFileSync(out, JSON.stringify({ results }));
process.exit(0);
