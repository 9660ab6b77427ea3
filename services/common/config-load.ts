// Reads the settings of a process: flag beats environment beats file beats default, and nothing falls back in silence.
import { readFileSync } from "node:fs";
import type { Config, ConfigDefinition, Schema } from "./config-definition.ts";
import { variablesOf } from "./config-definition.ts";
import { ConfigError, HelpRequested } from "./config-errors.ts";
import { readFlags } from "./config-flags.ts";
import { helpText } from "./config-help.ts";
import type { Option } from "./config-options.ts";
import { editDistance, nearest } from "./nearest.ts";

export interface ConfigSource {
  /** Without node and the script. */
  readonly argv: readonly string[];
  readonly env: Readonly<Record<string, string | undefined>>;
}

/** One setting as it is shown to people. */
export interface Setting {
  readonly key: string;
  /** With its unit; a secret is `set` or `unset`. */
  readonly value: string;
  /** `flag --port`, `env TANDEM_X`, `file` or `default`. */
  readonly origin: string;
}

const settingsByConfig = new WeakMap<object, readonly Setting[]>();

/** What one source says about one setting; `where` names it for error messages. */
interface Layer {
  readonly value: string | readonly string[];
  readonly origin: string;
  readonly where: string;
}

/**
 * @throws ConfigError for an unknown key, a bad value, a missing required one or an unreadable file.
 * @throws HelpRequested for `--help` and `-h`.
 */
export function loadConfig<S extends Schema>(definition: ConfigDefinition<S>, source: ConfigSource): Config<S> {
  const flags = readFlags(definition, source.argv);
  if (flags.help) throw new HelpRequested(helpText(definition));
  const fromFile = readFile(definition, flags.file ?? source.env["TANDEM_CONFIG"]);
  refuseMistypedVariables(definition, source.env);

  const values: Record<string, unknown> = {};
  const settings: Setting[] = [];
  for (const [key, option] of Object.entries(definition.schema)) {
    // From the weakest source to the strongest, so that each may build on the one below.
    const layers: Layer[] = [];
    const inFile = fromFile.get(key);
    if (inFile !== undefined) layers.push(inFile);
    const inEnv = variableLayer(key, option, source.env);
    if (inEnv !== undefined) layers.push(inEnv);
    const flag = flags.values.get(key);
    if (flag !== undefined) layers.push({ value: flag.value, origin: `flag ${flag.name}`, where: flag.name });

    let value: unknown = option.default;
    let origin = "default";
    for (const layer of layers) {
      value = parse(layer, option, value);
      origin = layer.origin;
    }
    if (value === undefined && !option.optional) {
      throw new ConfigError(
        `${definition.name} needs ${key}: give ${flagOf(key, option)}, ${option.expected}, ` +
          `or set ${variablesOf(key, option)[0]}.`,
      );
    }
    values[key] = value;
    settings.push({ key, value: option.print(value), origin });
  }
  const config = Object.freeze(values);
  rememberSettings(config, settings);
  return config as Config<S>;
}

/** For what makes a config of another. */
export function rememberSettings(config: object, settings: readonly Setting[]): void {
  settingsByConfig.set(config, settings);
}

/** Every setting of `config` in the order of its schema. `config` must be what `loadConfig` or `overlayConfig` returned, not a copy. */
export function settingsOf(config: Config<any>): readonly Setting[] {
  const settings = settingsByConfig.get(config);
  if (settings === undefined)
    throw new Error("settingsOf() got a copy of a config; it knows only what loadConfig() returned");
  return settings;
}

function parse(layer: Layer, option: Option<unknown>, below: unknown): unknown {
  try {
    return typeof layer.value === "string"
      ? option.parse(layer.value, below)
      : Object.freeze(option.parseItems?.(layer.value, below));
  } catch (error) {
    const shown = option.kind === "secret" ? "its value" : JSON.stringify(layer.value);
    throw new ConfigError(`${layer.where}: expected ${option.expected}, got ${shown}; ${(error as Error).message}.`);
  }
}

function flagOf(key: string, option: Option<unknown>): string {
  return `--${option.aliases[0] ?? key}`;
}

function variableLayer(key: string, option: Option<unknown>, env: ConfigSource["env"]): Layer | undefined {
  const [own, ...extra] = variablesOf(key, option);
  if (env[own!] !== undefined) return { value: env[own!]!, origin: `env ${own}`, where: own! };
  // The extra names are other programs' too, where an empty variable is a way to say "not set".
  const name = extra.find((candidate) => (env[candidate] ?? "") !== "");
  return name === undefined ? undefined : { value: env[name]!, origin: `env ${name}`, where: name };
}

/**
 * Other processes of Tandem share the environment, so an unknown TANDEM_ variable may be theirs; but one that is a
 * typing error away from a variable of this process is a mistake.
 */
function refuseMistypedVariables(definition: ConfigDefinition, env: ConfigSource["env"]): void {
  const known = Object.entries(definition.schema).flatMap(([key, option]) => variablesOf(key, option));
  known.push("TANDEM_CONFIG", "TANDEM_LOG_LEVEL", "TANDEM_LOG_FORMAT", "TANDEM_PARENT_PIPE");
  for (const name of Object.keys(env)) {
    if (!name.startsWith("TANDEM_") || known.includes(name)) continue;
    const meant = known.find((candidate) => editDistance(name, candidate) === 1);
    if (meant !== undefined)
      throw new ConfigError(`${name} is not a variable of ${definition.name}; did you mean ${meant}?`);
  }
}

function readFile(definition: ConfigDefinition, file: string | undefined): Map<string, Layer> {
  const layers = new Map<string, Layer>();
  if (file === undefined || file === "") return layers;
  let parsed: unknown;
  try {
    parsed = JSON.parse(readFileSync(file, "utf8"));
  } catch (error) {
    throw new ConfigError(`The configuration file ${file} can't be read as JSON: ${(error as Error).message}`);
  }
  if (!isObject(parsed)) throw new ConfigError(`The configuration file ${file} must hold one JSON object.`);
  const visit = (prefix: string, object: Record<string, unknown>): void => {
    for (const [name, value] of Object.entries(object)) {
      const key = prefix === "" ? name : `${prefix}.${name}`;
      const option = Object.hasOwn(definition.schema, key) ? definition.schema[key] : undefined;
      if (option === undefined && isObject(value)) visit(key, value);
      else if (option === undefined) {
        const meant = nearest(key, Object.keys(definition.schema));
        throw new ConfigError(
          `${file}: ${key} is not a setting of ${definition.name}` +
            (meant === undefined ? "" : `; did you mean ${meant}?`),
        );
      } else if (layers.has(key)) throw new ConfigError(`${file}: ${key} is given twice.`);
      else layers.set(key, { value: fileValue(file, key, option, value), origin: "file", where: `${file}: ${key}` });
    }
  };
  visit("", parsed);
  return layers;
}

function fileValue(file: string, key: string, option: Option<unknown>, value: unknown): string | readonly string[] {
  if (option.kind === "list" && Array.isArray(value) && value.every((item) => typeof item === "string")) return value;
  if (typeof value === "string" || typeof value === "number" || typeof value === "boolean") return String(value);
  throw new ConfigError(`${file}: ${key}: expected ${option.expected}, got ${JSON.stringify(value)}.`);
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
