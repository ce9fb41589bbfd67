// The Clawdbot plugin: Clawdbot has no MCP client and no search over tools, so the tool is direct by itself.
import { registerGarzone } from "./register.js";

export default function register(api) {
  registerGarzone(api, { caller: "clawdbot" });
}
