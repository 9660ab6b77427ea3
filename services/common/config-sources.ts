// Where settings come from, the strongest first: the command line, the environment, a file. Each source gives texts by
// key. The meaning of the texts is unknown here.
import { parseArgs } from "node:util";
import { readConfigFile, removedKey, type Given } from "./config-file.ts";
import { variableOf, variablesOf, type ConfigDefinition, type Option } from "./config-schema.ts";
import { editDistance, nearest } from "./nearest.ts";
import { ConfigError } from "./run-main.ts";

export interface ConfigSource {
  /** The command line without node and the script. */
  readonly argv: readonly string[];
  readonly env: Readonly<Record<string, string | undefined>>;
}

export interface Sources {
  /** Print something instead of starting. */
  readonly action: "help" | "print_config" | undefined;
  /** By key: from the weakest source to the strongest, so that each may build on the one below. */
  readonly given: ReadonlyMap<string, readonly Given[]>;
}

/** @throws ConfigError for an unknown or removed key, a flag without its value or given twice, or an unreadable file */
export function readSources(definition: ConfigDefinition, { argv, env }: ConfigSource): Sources {
  const flags = readFlags(definition, argv);
  if (flags.action === "help") return { action: "help", given: new Map() };
  const file = readConfigFile(definition, flags.file ?? env["TANDEM_CONFIG"] ?? "");
  checkVariables(definition, env);
  const given = new Map<string, readonly Given[]>();
  for (const [key, option] of definition.options) {
    const all = [file.get(key), givenByVariable(option, env), flags.given.get(key)];
    given.set(
      key,
      all.filter((one) => one !== undefined),
    );
  }
  return { action: flags.action, given };
}

interface Flags {
  action: Sources["action"];
  file: string | undefined;
  readonly given: Map<string, Given>;
}

/**
 * `--key value`, `--key=value`, `--alias value`, `--switch`, `--no-switch`; a dash may replace a dot or an underscore.
 */
function readFlags(definition: ConfigDefinition, argv: readonly string[]): Flags {
  const names = new Map<string, Option<unknown>>();
  for (const option of definition.options.values()) {
    for (const name of [option.key, ...option.aliases]) {
      for (const spelled of [name, name.replaceAll("_", "-"), inDashes(name)]) names.set(spelled, option);
    }
  }
  const parserOptions: Record<string, { type: "boolean" | "string"; short?: string }> = {
    config: { type: "string" },
    help: { type: "boolean", short: "h" },
  };
  for (const [name, { kind }] of names) parserOptions[name] = { type: kind === "boolean" ? "boolean" : "string" };
  // Not strict: the messages of strict mode name neither the expected value nor the likely intended flag.
  const { tokens } = parseArgs({ args: [...argv], options: parserOptions, strict: false, tokens: true });

  const flags: Flags = { action: undefined, file: undefined, given: new Map() };
  // A user who asks for help may have got anything else wrong.
  if (tokens.some((token) => token.kind === "option" && token.name === "help")) return { ...flags, action: "help" };
  let rest = false;
  for (const token of tokens) {
    if (token.kind === "option-terminator" && definition.rest !== undefined) rest = true;
    else if (rest && token.kind === "positional") addItem(flags, definition.rest!, "--", token.value);
    else if (token.kind !== "option" || !token.rawName.startsWith("--")) {
      const word = token.kind === "option" ? token.rawName : token.kind === "positional" ? token.value : "--";
      throw new ConfigError(`"${word}" is not a flag of ${definition.name}. ${seeHelp(definition)}`);
    } else readFlag(definition, names, token, flags);
  }
  return flags;
}

interface OptionToken {
  readonly name: string;
  readonly rawName: string;
  readonly value?: string | undefined;
  readonly inlineValue?: boolean | undefined;
}

function readFlag(
  definition: ConfigDefinition,
  names: ReadonlyMap<string, Option<unknown>>,
  token: OptionToken,
  flags: Flags,
): void {
  const { name, rawName, value } = token;
  if (name === "print-config" || name === "print_config") flags.action = "print_config";
  else if (name === "config") flags.file = valueOf(token, "the path of a YAML file");
  else {
    const option = names.get(name);
    const negated = name.startsWith("no-") ? names.get(name.slice("no-".length)) : undefined;
    if (option?.kind === "list") addItem(flags, option.key, rawName, valueOf(token, option.expected));
    else if (option?.kind === "boolean") setOnce(flags, option.key, rawName, value ?? "true");
    else if (option !== undefined) setOnce(flags, option.key, rawName, valueOf(token, option.expected));
    else if (negated?.kind === "boolean" && value === undefined) setOnce(flags, negated.key, rawName, "false");
    else throw unknownFlag(definition, name, rawName, names.keys());
  }
}

function valueOf({ rawName, value, inlineValue }: OptionToken, expected: string): string {
  // The parser takes any next word as the value, even another flag.
  if (value !== undefined && (inlineValue === true || !value.startsWith("--"))) return value;
  const hint = value === undefined ? "" : ` (a value that starts with -- is written ${rawName}=${value})`;
  throw new ConfigError(`${rawName} needs a value: ${expected}${hint}.`);
}

function setOnce({ given }: Flags, key: string, name: string, value: string): void {
  const before = given.get(key);
  if (before !== undefined) {
    throw new ConfigError(
      before.where === name
        ? `${name} is given twice.`
        : `${before.where} and ${name} both set ${key}; give one of them.`,
    );
  }
  given.set(key, { value, origin: `flag ${name}`, where: name });
}

/** An empty item adds nothing, but marks the list as given. */
function addItem({ given }: Flags, key: string, name: string, item: string): void {
  const before = given.get(key)?.value ?? [];
  given.set(key, { value: [...before, ...(item === "" ? [] : [item])], origin: `flag ${name}`, where: name });
}

function unknownFlag(
  definition: ConfigDefinition,
  name: string,
  rawName: string,
  names: Iterable<string>,
): ConfigError {
  for (const [key, instead] of definition.removed) {
    if (inDashes(key) === inDashes(name).replace(/^no-/, "")) return removedKey(rawName, instead);
  }
  const meant = nearest(name, [...names, "config", "print-config", "help"]);
  const hint = meant === undefined ? "" : ` Did you mean --${meant}?`;
  return new ConfigError(`${definition.name} has no flag ${rawName}.${hint} ${seeHelp(definition)}`);
}

function inDashes(name: string): string {
  return name.replace(/[._]/g, "-");
}

function seeHelp(definition: ConfigDefinition): string {
  return `"tandem ${definition.name} --help" lists all flags.`;
}

function givenByVariable(option: Option<unknown>, env: ConfigSource["env"]): Given | undefined {
  const [own, ...extra] = variablesOf(option);
  // Other programs share the extra names, and may set an empty variable to mean "not set".
  const name = env[own!] !== undefined ? own! : extra.find((candidate) => (env[candidate] ?? "") !== "");
  return name === undefined ? undefined : { value: env[name]!, origin: `env ${name}`, where: name };
}

/**
 * Other processes of Tandem share the environment, so an unknown TANDEM_ variable may be theirs; but one that is a
 * typing error away from a variable of this process is a mistake.
 */
function checkVariables(definition: ConfigDefinition, env: ConfigSource["env"]): void {
  for (const [key, instead] of definition.removed) {
    if (env[variableOf(key)] !== undefined) throw removedKey(variableOf(key), instead);
  }
  const known = [...definition.options.values()].flatMap((option) => variablesOf(option));
  known.push("TANDEM_CONFIG", "TANDEM_LOG_LEVEL", "TANDEM_LOG_FORMAT", "TANDEM_PARENT_PIPE");
  for (const name of Object.keys(env)) {
    if (!name.startsWith("TANDEM_") || known.includes(name)) continue;
    const meant = known.find((candidate) => editDistance(name, candidate) === 1);
    if (meant !== undefined)
      throw new ConfigError(`${name} is not a variable of ${definition.name}; did you mean ${meant}?`);
  }
}
