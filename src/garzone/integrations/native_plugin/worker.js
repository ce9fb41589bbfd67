// Calls garzone, which does the work: one process a task. Knows no OpenClaw and no Clawdbot; both plugins use it.
import { spawn } from "node:child_process";
import { readFileSync } from "node:fs";

// Written by `garzone connect`: the command to start, and the tool's description and parameters.
export const tool = JSON.parse(readFileSync(new URL("./tool.json", import.meta.url), "utf8"));

/**
 * Run garzone with `args`, write `input` to it, and resolve to what it printed.
 * `signal` ends it in order (SIGTERM: it removes its worktree and processes); `onLine` gets its progress.
 */
export function garzone(args, { input = "", cwd, signal, onLine } = {}) {
  return new Promise((resolve, reject) => {
    const [program, ...first] = tool.command;
    const child = spawn(program, [...first, ...args], { cwd, stdio: ["pipe", "pipe", "pipe"] });
    let out = "";
    let rest = "";
    const stop = () => child.kill("SIGTERM");
    signal?.addEventListener("abort", stop, { once: true });
    if (signal?.aborted) stop();
    child.stdout.setEncoding("utf8").on("data", (text) => (out += text));
    child.stderr.setEncoding("utf8").on("data", (text) => {
      const lines = (rest + text).split("\n");
      rest = lines.pop();
      for (const line of lines) if (line.trim()) onLine?.(line.trim());
    });
    child.on("error", (error) => reject(new Error(`cannot start ${program}: ${error.message}`)));
    child.on("close", (code, signalName) => {
      signal?.removeEventListener("abort", stop);
      if (out.trim()) resolve({ text: out.trim(), done: code === 0 });
      else reject(new Error(rest.trim() || `garzone ended with ${signalName ?? code} and said nothing`));
    });
    child.stdin.on("error", () => {}); // it ended before it read: its own words say why
    child.stdin.end(input);
  });
}

/** What the coordinator reads of one call of the tool. */
export async function delegate(params, { cwd, signal, onLine, caller }) {
  const call = { cwd, ...params };
  const flags = tool.apply ? ["--apply"] : [];
  return garzone(["call", "--caller", caller, ...flags], { input: JSON.stringify(call), cwd: call.cwd, signal, onLine });
}
