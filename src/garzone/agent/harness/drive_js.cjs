// Calls functions of a translated file with recorded arguments: drive_js.cjs FILE CASES TYPESCRIPT|-
// To $GARZONE_OUT, as JSON: {name: [{"result": ...} | {"throws": text} | {"late": true} | {"skipped": true} | {"missing": true}, ...]}.
//
// The translation runs in a realm of its own that has nothing but the language: no require, no process, no code made
// from strings, and no object of this realm, through whose constructor it could get here. Only strings go in and out,
// and this process ends before anything the translation left behind can run.
"use strict";
const crypto = require("node:crypto");
const fs = require("node:fs");
const path = require("node:path");
const vm = require("node:vm");
const out = process.env.GARZONE_OUT;
const [file, casesFile, typescript] = process.argv.slice(2);
const cases = fs.readFileSync(casesFile, "utf8");
const given = JSON.parse(cases);
const names = Object.keys(given);
const CALL_MS = Number(process.env.GARZONE_CALL_MS || 2000), MAX_LATE = 2; // of one call; where several do not end, the rest is not worth waiting for
const { read, functionsOf } = require(path.join(__dirname, "load_js.cjs"));
const code = `${read(file, typescript)}\n;return ${functionsOf(names)};`;
const realm = vm.createContext(Object.create(null), { codeGeneration: { strings: false, wasm: false } });
// what it needs is taken before the translation can put something else in its place
const driver = vm.runInContext(
  `"use strict";
((JSON, Object, Array, Number, String, Map, Set) => {
  const { parse, stringify } = JSON, { defineProperty, entries, fromEntries } = Object, { isArray } = Array, { isFinite } = Number;
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
  return (load, given, step) => {
    const cases = parse(given);
    let found;
    try {
      const module = { exports: {} };
      found = load((name) => { throw new Error("nothing but the language itself: no " + name); }, module, module.exports);
    } catch (error) {
      return stringify({ broken: said(error) });
    }
    const call = (name, number) => {
      if (typeof found[name] !== "function") return stringify({ missing: true });
      try {
        return stringify({ result: plain(found[name](...parse(stringify(cases[name][number]))), 0) });
      } catch (error) {
        return stringify({ throws: said(error) });
      }
    };
    // only a script has a time limit, and a script finds only what is global: under a name that nobody knows
    defineProperty(globalThis, step, { __proto__: null, value: call });
    return "{}";
  };
})(JSON, Object, Array, Number, String, Map, Set)`,
  realm,
);
const load = vm.compileFunction(code, ["require", "module", "exports"], { filename: file, parsingContext: realm });
const step = `s${crypto.randomBytes(16).toString("hex")}`;
const texts = (text) => {
  if (typeof text !== "string") throw new Error("the translation took over its own run");
  return JSON.parse(text);
};
const { broken } = texts(driver(load, cases, step));
if (broken !== undefined) {
  fs.writeSync(2, `${broken}\n`);
  process.exit(1);
}
// the translation has a say in how its values become text (toJSON): nothing of it may look like the driver's own words
const said = (found) => {
  const has = (name) => typeof found === "object" && found !== null && Object.hasOwn(found, name);
  if (has("result")) return { result: found.result };
  return has("missing") ? { missing: true } : { throws: has("throws") ? String(found.throws) : "what cannot be read" };
};
let numLate = 0;
const call = (name, number, patience) => {
  const before = process.cpuUsage();
  try {
    const source = `${step}(${JSON.stringify(name)}, ${number})`;
    return said(texts(vm.runInContext(source, realm, { timeout: patience * CALL_MS })));
  } catch (error) {
    if (error.code !== "ERR_SCRIPT_EXECUTION_TIMEOUT") throw error;
    // on a busy machine it may have waited for a processor all the time
    if (patience === 1 && process.cpuUsage(before).user / 1000 < CALL_MS / 2) return call(name, number, 4);
    numLate += 1;
    return { late: true };
  }
};
const results = {};
for (const name of names) {
  results[name] = [];
  for (let number = 0; number < given[name].length; number++) {
    results[name].push(numLate < MAX_LATE ? call(name, number, 1) : { skipped: true });
  }
}
fs.writeFileSync(out, JSON.stringify({ results }));
process.exit(0);
