// Watches, from inside a Node process, what changed code does that a repair need not do.
//
// The counterpart of garzone_watch.py, loaded by NODE_OPTIONS into every Node that the second run of a would-be proof
// starts (Node 12 or later; also worker threads, and the realms that runners make with `vm`). It is loaded before any
// other code, keeps its own references, and writes what it sees to a pipe that nobody can unwrite. JavaScript has no
// operators that a value decides by itself, so what matters is how code gets out of computing: `process`, modules,
// functions made of text, and built-in functions put in the place of others (an `Object.is` that is always true).
"use strict";
(() => {
  const record = process.env.GARZONE_EVIDENCE;
  const changed = (process.env.GARZONE_WATCH || "").split(require("path").delimiter).filter(Boolean);
  if (!record || !changed.length) return;
  const fs = require("fs");
  const vm = require("vm");
  const Module = require("module");
  const { openSync, writeSync, closeSync } = fs;
  const flags = fs.constants.O_WRONLY | fs.constants.O_APPEND;
  const withoutWaiting = flags | fs.constants.O_NONBLOCK;
  const { defineProperty, getOwnPropertyDescriptor, getOwnPropertyNames, getPrototypeOf } = Object;
  const { stringify } = JSON;
  const { apply } = Reflect;
  const isArray = Array.isArray;
  const ErrorClass = Error;
  const real = process;
  const seen = new Set();
  const add = seen.add.bind(seen);
  const has = seen.has.bind(seen);
  const names = new Map();
  const recall = names.get.bind(names);
  const remember = names.set.bind(names);
  let asking = false;

  function write(fact) {
    const was = asking;
    asking = true;
    try {
      // opening a pipe that nobody reads would wait for ever; this way it fails
      closeSync(openSync(record, withoutWaiting));
      const descriptor = openSync(record, flags);
      writeSync(descriptor, stringify(fact) + "\n");
      closeSync(descriptor);
    } catch {
      // nobody is there to read it
    } finally {
      asking = was;
    }
  }

  function say(what) {
    if (has(what)) return;
    add(what);
    write({ kind: "watch", event: "watch", what });
  }

  // whether a file name is one of the changed: runners show paths, URLs, and either with a query
  function isChanged(name) {
    if (typeof name !== "string") return false;
    let known = recall(name);
    if (known === undefined) {
      let plain = name.split("?")[0];
      if (plain.startsWith("file://")) plain = decodeURIComponent(plain.slice(7));
      known = changed.some((path) => plain === path || plain.endsWith("/" + path) || path.endsWith("/" + plain));
      remember(name, known);
    }
    return known;
  }

  // files on the stack, innermost first; null where somebody hides them
  function files() {
    const { prepareStackTrace, stackTraceLimit } = ErrorClass;
    try {
      ErrorClass.stackTraceLimit = 60;
      ErrorClass.prepareStackTrace = (_, frames) => frames;
      const frames = new ErrorClass().stack;
      if (!isArray(frames)) return null;
      const found = [];
      for (let at = 0; at < frames.length; at++) {
        const name = frames[at].getFileName() || frames[at].getEvalOrigin();
        if (name && name !== __filename) found[found.length] = name;
      }
      return found;
    } catch {
      return null;
    } finally {
      ErrorClass.prepareStackTrace = prepareStackTrace;
      ErrorClass.stackTraceLimit = stackTraceLimit;
    }
  }

  function byChanged(anywhere) {
    if (asking) return false;
    asking = true;
    try {
      const found = files();
      return found === null || (anywhere ? found.some(isChanged) : found.length > 0 && isChanged(found[0]));
    } finally {
      asking = false;
    }
  }

  function watchName(place, name, label) {
    const was = getOwnPropertyDescriptor(place, name);
    if (was && !was.configurable) return;
    let value = place[name];
    defineProperty(place, name, {
      configurable: false,
      enumerable: was ? was.enumerable : false,
      get() {
        if (byChanged(false)) say("does " + label);
        return value;
      },
      set(other) {
        if (byChanged(true)) say("changes " + label);
        value = other;
      },
    });
  }

  // functions of a built-in: reading them is free, and replacing them is seen. An assignment to an object that only
  // inherits the name makes a property of its own, as it always did.
  function watchSets(place, label) {
    for (const name of getOwnPropertyNames(place)) {
      const was = getOwnPropertyDescriptor(place, name);
      if (!was.configurable || !was.writable || typeof was.value !== "function" || name === "constructor") continue;
      let value = was.value;
      defineProperty(place, name, {
        configurable: false,
        enumerable: was.enumerable,
        get: () => value,
        set(other) {
          if (this !== place) {
            defineProperty(this, name, { value: other, configurable: true, enumerable: true, writable: true });
            return;
          }
          if (byChanged(true)) say("changes " + label + "." + name);
          value = other;
        },
      });
    }
  }

  const STATICS = ["Object", "Reflect", "Array", "Number", "Math", "JSON", "Promise", "Symbol", "String", "Date", "Map"];
  const PROTOTYPES = ["Array", "String", "Number", "Map", "Set", "Promise", "RegExp", "Date", "Boolean", "Symbol"];
  const MAKERS = [
    "(function () {})", "(async function () {})", "(function* () {})", "(async function* () {})",
  ];

  function install(realm, evaluate) {
    for (const name of STATICS) if (realm[name]) watchSets(realm[name], name);
    for (const name of PROTOTYPES) if (realm[name]) watchSets(realm[name].prototype, name);
    for (const text of MAKERS) watchName(getPrototypeOf(evaluate(text)), "constructor", "Function");
    for (const name of ["process", "eval", "Function", "WebAssembly"]) watchName(realm, name, name);
  }

  for (const name of ["exit", "reallyExit", "abort", "kill", "_kill", "dlopen", "binding", "_linkedBinding", "chdir",
                      "setUncaughtExceptionCaptureCallback", "emit", "emitWarning", "removeAllListeners", "on", "once",
                      "addListener", "prependListener", "off", "removeListener"]) {  // prettier-ignore
    const was = real[name];
    if (typeof was !== "function") continue;
    const ends = ["exit", "reallyExit", "abort", "kill", "_kill"].includes(name);
    defineProperty(real, name, {
      configurable: true,
      enumerable: true,
      writable: true,
      value: function (...rest) {
        if (byChanged(ends)) say((ends ? "ends " : "does ") + "process." + name);
        return apply(was, this, rest);
      },
    });
  }

  const HARMLESS = new Set(["util", "path", "url", "querystring", "string_decoder", "buffer", "punycode", "events"]);
  const builtins = new Set(Module.builtinModules);
  const { _load, createRequire } = Module;
  Module._load = function (request, parent, ...rest) {
    if (isBuiltin(request) && byChanged(false)) say("loads " + String(request).replace("node:", ""));
    return apply(_load, this, [request, parent, ...rest]);
  };
  Module.createRequire = function (...rest) {
    if (byChanged(false)) say("loads createRequire");
    return apply(createRequire, this, rest);
  };
  if (real.getBuiltinModule) {
    const was = real.getBuiltinModule;
    real.getBuiltinModule = function (name) {
      if (byChanged(false)) say("loads " + String(name).replace("node:", ""));
      return apply(was, this, [name]);
    };
  }
  function isBuiltin(request) {
    const name = typeof request === "string" ? request.replace(/^node:/, "") : "";
    return (builtins.has(name) || String(request).startsWith("node:")) && !HARMLESS.has(name);
  }

  const { createContext, runInContext } = vm;
  vm.createContext = function (...rest) {
    const context = apply(createContext, this, rest);
    try {
      install(runInContext("this", context), (text) => runInContext(text, context));
    } catch {
      // a realm that is none of ours; its code comes from outside of the changed file
    }
    return context;
  };
  const assert = require("assert");
  for (const each of [assert, assert.strict]) watchSets(each, "assert");
  install(globalThis, (text) => vm.runInThisContext(text));
  write({ kind: "watch", event: "watching" });
})();
