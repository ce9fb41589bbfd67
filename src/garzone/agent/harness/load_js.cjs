// Loads a JavaScript or TypeScript file and gives its functions by name, exported or not.
"use strict";
const fs = require("node:fs");
const path = require("node:path");
const { createRequire } = require("node:module");

const spellings = (name) => [name, name.replace(/_+(\w)/g, (_, c) => c.toUpperCase())];

// The file as a script without exports.
exports.read = function read(file, typescript) {
  const code = fs.readFileSync(file, "utf8");
  if (typescript !== "-") {
    const ts = require(typescript);
    const options = { module: ts.ModuleKind.CommonJS, target: ts.ScriptTarget.ES2022, esModuleInterop: true };
    return ts.transpileModule(code, { compilerOptions: options }).outputText;
  }
  return code
    .replace(/^export\s+default\s+/gm, "")
    .replace(/^export\s+(?=async|function|const|let|var|class)/gm, "")
    .replace(/^export\s*\{[^}]*\};?\s*$/gm, "");
};

// An expression, behind the file's code, for an object with these functions.
exports.functionsOf = function functionsOf(names) {
  const found = names.map((name) => {
    const tries = spellings(name).map((n) => {
      const quoted = JSON.stringify(n);
      return `(typeof ${n} === "function" ? ${n} : exports[${quoted}] || module.exports[${quoted}])`;
    });
    return `${JSON.stringify(name)}: ${tries.join(" || ")}`;
  });
  return `{${found.join(",\n")}}`;
};

exports.load = function load(file, names, typescript) {
  const code = `${exports.read(file, typescript)}\n;return ${exports.functionsOf(names)};`;
  const holder = { exports: {} };
  const run = new Function("require", "module", "exports", code);
  return run(createRequire(path.resolve(file)), holder, holder.exports);
};
