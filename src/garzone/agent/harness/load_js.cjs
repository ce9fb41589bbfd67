// Loads a JavaScript or TypeScript file and gives its functions by name, exported or not.
"use strict";
const fs = require("node:fs");
const path = require("node:path");
const { createRequire } = require("node:module");

const spellings = (name) => [name, name.replace(/_+(\w)/g, (_, c) => c.toUpperCase())];

exports.load = function load(file, names, typescript) {
  let code = fs.readFileSync(file, "utf8");
  if (typescript !== "-") {
    const ts = require(typescript);
    const options = { module: ts.ModuleKind.CommonJS, target: ts.ScriptTarget.ES2022, esModuleInterop: true };
    code = ts.transpileModule(code, { compilerOptions: options }).outputText;
  } else {
    code = code.replace(/^export\s+default\s+/gm, "");
    code = code.replace(/^export\s+(?=async|function|const|let|var|class)/gm, "");
    code = code.replace(/^export\s*\{[^}]*\};?\s*$/gm, "");
  }
  const found = names.map((name) => {
    const tries = spellings(name).map((n) => {
      const quoted = JSON.stringify(n);
      return `(typeof ${n} === "function" ? ${n} : exports[${quoted}] || module.exports[${quoted}])`;
    });
    return `${JSON.stringify(name)}: ${tries.join(" || ")}`;
  });
  const holder = { exports: {} };
  const run = new Function("require", "module", "exports", `${code}\n;return {${found.join(",\n")}};`);
  return run(createRequire(path.resolve(file)), holder, holder.exports);
};
