// Registers the tool `delegate` and the command /garzone; what OpenClaw and Clawdbot have in common.
import { homedir } from "node:os";
import { delegate, garzone, tool } from "./worker.js";

/** Called by the plugin of each program; `extra` are fields of the tool that only one of them knows. */
export function registerGarzone(api, { caller, extra = {} }) {
  api.registerTool(
    (ctx) => ({
      name: tool.name,
      label: "Delegate to the local model",
      description: tool.description,
      parameters: tool.parameters,
      ...extra,
      async execute(_id, params, signal, onUpdate) {
        const onLine = (line) => onUpdate?.({ content: [{ type: "text", text: line }], details: {} });
        const result = await delegate(params, { cwd: ctx?.workspaceDir, signal, onLine, caller });
        return { content: [{ type: "text", text: result.text }], details: {} };
      },
    }),
    { name: tool.name },
  );
  api.registerCommand?.({
    name: "garzone",
    description: "Hand one coding task to the local model, without asking the coordinator",
    acceptsArgs: true,
    async handler(ctx) {
      try {
        const { text } = await garzone(["slash", ctx.args ?? ""], { cwd: workspace(ctx) });
        return { text };
      } catch (error) {
        return { text: error.message };
      }
    },
  });
}

/** Where a slash command works: the agent's workspace. `--repo DIR` in the command names another place. */
function workspace(ctx) {
  const directory = ctx.workspaceDir ?? ctx.config?.agents?.defaults?.workspace;
  return directory?.replace(/^~(?=$|\/)/, homedir()) ?? process.cwd();
}
