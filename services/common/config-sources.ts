// Where settings come from: a file, the environment, the command line. Each source gives texts by key. The meaning of
// the texts is unknown here.
import { parseArgs } from "node:util";
import { readConfigFile, removedKey, type Given, type Source } from "./config-file.ts";
import { helpText } from "./config-help.ts";
import { COMMON_FLAGS, namesOf, variableOf, variablesOf, type ConfigDefinition, type Option } from "./config-schema.ts";
import { didYouMean, editDistance } from "./nearest.ts";
import { ConfigError, PrintAndExit } from "./run-main.ts";

export interface ConfigSource {
  /** The command line without node and the script. */
  readonly argv: readonly string[];
  readonly env: Readonly<Record<string, string | undefined>>;
}

/**
 * From the weakest source to the strongest, so that each may build on the one below.
 *
 * @throws ConfigError for an unknown or removed key, a flag without its value or given twice, or an unreadable file
 * @throws PrintAndExit for `--help`
 */
export function readSources(definition: ConfigDefinition, { argv, env }: ConfigSource): readonly Source[] {
  const flags = readFlags(definition, argv);
  const path = flags.get("config")?.value ?? env["TANDEM_CONFIG"] ?? "";
  return [readConfigFile(definition, String(path)), readVariables(definition, env), flags];
}

/**
 * `--key value`, `--key=value`, `--alias value`, `--switch`, `--no-switch`; a dash may replace a dot or an underscore.
 */
function readFlags(definition: ConfigDefinition, argv: readonly string[]): Source {
  const options = new Map<string, Option>();
  for (const option of [...COMMON_FLAGS, ...definition.options.values()]) {
    for (const name of namesOf(option))
      for (const spelled of [name, name.replaceAll("_", "-"), inDashes(name)]) options.set(spelled, option);
  }
  const types = [...options].map(
    ([name, { kind }]) => [name, { type: kind === "boolean" ? kind : ("string" as const) }] as const,
  );
  // Not strict: the messages of strict mode name neither the expected value nor the likely intended flag.
  const { tokens } = parseArgs({
    args: [...argv],
    options: { ...Object.fromEntries(types), help: { type: "boolean", short: "h" } },
    strict: false,
    tokens: true,
  });
  // A user who asks for help may have got anything else wrong.
  if (tokens.some((token) => token.kind === "option" && token.name === "help"))
    throw new PrintAndExit(helpText(definition));

  const given = new Map<string, Given>();
  let rest: Option | undefined;
  for (const token of tokens) {
    if (token.kind === "option-terminator" && definition.rest !== undefined) {
      rest = definition.options.get(definition.rest);
    } else if (token.kind === "positional" && rest !== undefined) {
      add(given, rest, "--", token.value);
    } else if (token.kind !== "option" || !token.rawName.startsWith("--")) {
      const word = token.kind === "option" ? token.rawName : token.kind === "positional" ? token.value : "--";
      throw new ConfigError(`"${word}" is not a flag of ${definition.name}. ${seeHelp(definition)}`);
    } else {
      const { name, rawName, value, inlineValue } = token;
      const option = options.get(name);
      const negated = options.get(name.replace(/^no-/, ""));
      if (option?.kind === "boolean") add(given, option, rawName, value ?? "true");
      else if (option !== undefined) {
        // The parser takes any next word as the value, even another flag.
        const taken = inlineValue !== true && value?.startsWith("--") === true;
        const hint = taken ? ` (a value that starts with -- is written ${rawName}=${value})` : "";
        if (value === undefined || taken) throw new ConfigError(`${rawName} needs a value: ${option.expected}${hint}.`);
        add(given, option, rawName, value);
      } else if (negated?.kind === "boolean" && value === undefined) add(given, negated, rawName, "false");
      else throw unknownFlag(definition, name, rawName, options.keys());
    }
  }
  return given;
}

function add(given: Map<string, Given>, { key, kind }: Option, name: string, text: string): void {
  const before = given.get(key);
  if (before !== undefined && kind !== "list") {
    const both = `${before.where} and ${name} both set ${key}; give one of them.`;
    throw new ConfigError(before.where === name ? `${name} is given twice.` : both);
  }
  // An empty item adds nothing, but marks the list as given.
  const value = kind === "list" ? [...(before?.value ?? []), ...(text === "" ? [] : [text])] : text;
  given.set(key, { value, origin: `flag ${name}`, where: name });
}

function unknownFlag(
  definition: ConfigDefinition,
  name: string,
  rawName: string,
  names: Iterable<string>,
): ConfigError {
  for (const [key, instead] of definition.removed)
    if (inDashes(key) === inDashes(name).replace(/^no-/, "")) return removedKey(rawName, instead);
  const hint = didYouMean(name, names, "--") || ".";
  return new ConfigError(`${definition.name} has no flag ${rawName}${hint} ${seeHelp(definition)}`);
}

function inDashes(name: string): string {
  return name.replace(/[._]/g, "-");
}

function seeHelp({ name }: ConfigDefinition): string {
  return `"tandem ${name} --help" lists all flags.`;
}

/**
 * Other processes of Tandem share the environment, so an unknown TANDEM_ variable may be theirs; but one that is a
 * typing error away from a variable of this process is a mistake.
 */
function readVariables({ name: program, options, removed }: ConfigDefinition, env: ConfigSource["env"]): Source {
  for (const [key, instead] of removed)
    if (env[variableOf(key)] !== undefined) throw removedKey(variableOf(key), instead);
  const known = ["TANDEM_CONFIG", "TANDEM_LOG_LEVEL", "TANDEM_LOG_FORMAT", "TANDEM_PARENT_PIPE"];
  const given = new Map<string, Given>();
  for (const [key, option] of options) {
    const [own, ...extra] = variablesOf(option);
    known.push(own!, ...extra);
    // Other programs share the extra names, and may set an empty variable to mean "not set".
    const name = env[own!] !== undefined ? own! : extra.find((candidate) => (env[candidate] ?? "") !== "");
    if (name !== undefined) given.set(key, { value: env[name]!, origin: `env ${name}`, where: name });
  }
  for (const name of Object.keys(env)) {
    if (!name.startsWith("TANDEM_") || known.includes(name)) continue;
    const meant = known.find((candidate) => editDistance(name, candidate) === 1);
    if (meant !== undefined) throw new ConfigError(`${name} is not a variable of ${program}; did you mean ${meant}?`);
  }
  return given;
}
