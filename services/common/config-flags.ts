// Splits a command line into settings: `--key value`, `--key=value`, `--alias value`, `--switch`, `--no-switch`.
import type { ConfigDefinition } from "./config-definition.ts";
import { ConfigError } from "./config-errors.ts";
import type { Option } from "./config-options.ts";
import { nearest } from "./nearest.ts";

export interface Flags {
  readonly help: boolean;
  /** Of `--config`. */
  readonly file: string | undefined;
  /** By key. `name` is the flag as it was written. */
  readonly values: ReadonlyMap<string, { readonly name: string; readonly value: string | readonly string[] }>;
}

/** @throws ConfigError for an unknown flag, one without its value, one given twice, or a word that is no flag. */
export function readFlags(definition: ConfigDefinition, argv: readonly string[]): Flags {
  const names = new Map<string, { readonly key: string; readonly option: Option<unknown> }>();
  for (const [key, option] of Object.entries(definition.schema)) {
    for (const name of [key, ...option.aliases]) names.set(`--${name}`, { key, option });
  }
  const values = new Map<string, { name: string; value: string | string[] }>();
  let help = false;
  let file: string | undefined;

  for (let index = 0; index < argv.length; index++) {
    const word = argv[index]!;
    if (word === "--help" || word === "-h") {
      help = true;
      continue;
    }
    if (!word.startsWith("--") || word === "--") {
      throw new ConfigError(`"${word}" is not a flag of ${definition.name}. ${seeHelp(definition)}`);
    }
    const equals = word.indexOf("=");
    const name = equals < 0 ? word : word.slice(0, equals);
    const attached = equals < 0 ? undefined : word.slice(equals + 1);
    const takeValue = (expected: string): string => {
      if (attached !== undefined) return attached;
      const next = argv[index + 1];
      if (next === undefined || next.startsWith("--")) {
        const hint = next === undefined ? "" : ` (a value that starts with -- is written ${name}=${next})`;
        throw new ConfigError(`${name} needs a value: ${expected}${hint}.`);
      }
      index++;
      return next;
    };
    if (name === "--config") {
      file = takeValue("the path of a JSON file");
      continue;
    }
    const found = names.get(name);
    if (found === undefined) {
      const negated = name.startsWith("--no-") ? names.get(`--${name.slice("--no-".length)}`) : undefined;
      if (negated?.option.kind !== "boolean" || attached !== undefined) throw unknown(definition, name, names.keys());
      setOnce(values, negated.key, name, "false");
    } else if (found.option.kind === "boolean") {
      setOnce(values, found.key, name, attached ?? "true");
    } else if (found.option.kind === "list") {
      const item = takeValue(found.option.expected);
      const before = values.get(found.key);
      values.set(found.key, { name, value: [...(before?.value ?? []), ...(item === "" ? [] : [item])] });
    } else {
      setOnce(values, found.key, name, takeValue(found.option.expected));
    }
  }
  return { help, file, values };
}

function setOnce(
  values: Map<string, { name: string; value: string | string[] }>,
  key: string,
  name: string,
  value: string,
): void {
  const before = values.get(key);
  if (before !== undefined) {
    throw new ConfigError(
      before.name === name
        ? `${name} is given twice.`
        : `${before.name} and ${name} both set ${key}; give one of them.`,
    );
  }
  values.set(key, { name, value });
}

function unknown(definition: ConfigDefinition, name: string, names: Iterable<string>): ConfigError {
  const meant = nearest(name, [...names, "--config", "--help"]);
  const hint = meant === undefined ? "" : ` Did you mean ${meant}?`;
  return new ConfigError(`${definition.name} has no flag ${name}.${hint} ${seeHelp(definition)}`);
}

function seeHelp(definition: ConfigDefinition): string {
  return `"tandem ${definition.name} --help" lists all flags.`;
}
