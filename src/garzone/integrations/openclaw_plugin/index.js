// The OpenClaw plugin: the tool stands directly in the catalogue; behind a search it would cost a turn more.
import { definePluginEntry } from "openclaw/plugin-sdk/plugin-entry";
import { registerGarzone } from "./register.js";

export default definePluginEntry({
  id: "garzone",
  name: "garzone",
  description: "Hands bounded coding tasks to a local model that proves its result.",
  register: (api) => registerGarzone(api, { caller: "openclaw", extra: { catalogMode: "direct-only" } }),
});
