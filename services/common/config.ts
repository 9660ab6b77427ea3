// The door of configuration: one schema gives the types, the flags, the variables, the file keys, the checks, --help
// and docs/config.md.
export { address, addresses, boolean, choice, integer, list, number, secret, text } from "./config-options.ts";
export type { Option, ValueOf } from "./config-options.ts";
export { defineConfig } from "./config-definition.ts";
export type { Config, ConfigDefinition, Schema } from "./config-definition.ts";
export { ConfigError, HelpRequested } from "./config-errors.ts";
export { helpText } from "./config-help.ts";
export { loadConfig, settingsOf } from "./config-load.ts";
export { overlayConfig } from "./config-overlay.ts";
export type { ConfigSource, Setting } from "./config-load.ts";
export { runMain, StartError } from "./run-main.ts";
