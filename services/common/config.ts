// The entry point of configuration: one schema gives the types, the flags, the variables, the file keys, the checks,
// changes while the process runs, --help and docs/config.md. A flag beats the environment, which beats the file, which
// beats the default; a change beats them all. There is no silent fallback.
import type { Given } from "./config-file.ts";
import { helpText, settingLines } from "./config-help.ts";
import {
  isSection,
  variableOf,
  type ConfigDefinition,
  type Entries,
  type Option,
  type Schema,
  type Section,
  type ValueOf,
} from "./config-schema.ts";
import { readSources, type ConfigSource } from "./config-sources.ts";
import { nearest } from "./nearest.ts";
import { ConfigError, PrintAndExit } from "./run-main.ts";

export {
  address,
  addresses,
  boolean,
  choice,
  defineConfig,
  integer,
  list,
  milliseconds,
  number,
  secret,
  section,
  text,
} from "./config-schema.ts";
export { settingLines } from "./config-help.ts";
export type { ConfigDefinition, Schema } from "./config-schema.ts";
export type { ConfigSource } from "./config-sources.ts";
export { ConfigError, PrintAndExit, runMain, StartError } from "./run-main.ts";

/** The values of one section, by the names that the code uses. */
export type Values<E> = { readonly [Name in keyof E]: ValueOf<E[Name]> };

/**
 * A section with settings that may change while the process runs. Pass the section on, and read `current` where a
 * decision is made. A change replaces `current` as a whole, so values that were read together belong together.
 */
export interface Live<T> {
  readonly current: T;
}

type SectionValue<E> = true extends { [Name in keyof E]: E[Name] extends Option<any, infer L> ? L : never }[keyof E]
  ? Live<Values<E>>
  : Values<E>;

export type Config<S extends Schema> = {
  readonly [Name in keyof S]: S[Name] extends Section<infer E> ? SectionValue<E> : ValueOf<S[Name]>;
} & { readonly settings: Settings };

/** One setting as it is shown to people. */
export interface Setting {
  readonly key: string;
  /** The value with its unit; `set` or `unset` for a secret. */
  readonly value: string;
  /** `flag --port`, `env TANDEM_X`, `file tandem.yaml:3`, `default`, or where a change came from. */
  readonly origin: string;
}

/** All settings of a process. */
export interface Settings {
  /** In the order of the schema. */
  readonly all: readonly Setting[];
  /** Whether any source sets it. */
  isGiven(key: string): boolean;
  /**
   * Applies `texts` on top of the settings that the process was started with, and drops the previous change. Applies
   * all of them or none.
   *
   * @param source Where the texts come from, as a prefix of the key: `consul tandem/config/`.
   * @returns The settings whose value changed.
   * @throws ConfigError that names every fault.
   */
  change(texts: ReadonlyMap<string, string>, source: string): readonly Setting[];
}

/**
 * @throws ConfigError for an unknown key, a bad value, a missing required one or an unreadable file
 * @throws PrintAndExit for `--help` and `--print-config`
 */
export function loadConfig<S extends Schema>(definition: ConfigDefinition<S>, source: ConfigSource): Config<S> {
  const { action, given } = readSources(definition, source);
  if (action === "help") throw new PrintAndExit(helpText(definition));
  const options = [...definition.options.values()];
  const givenTo = ({ key }: Option<unknown>): readonly Given[] => given.get(key) ?? [];
  let inForce = options.map((option) => evaluate(option, givenTo(option)));
  for (const { option, value } of inForce)
    if (value === undefined && !option.optional) throw missing(definition, option);
  if (action === "print_config")
    throw new PrintAndExit(`${settingLines(inForce.map(({ setting }) => setting)).join("\n")}\n`);

  function valuesOf(entries: Entries): Values<Entries> {
    const valueOf = (option: Option<unknown>): unknown => inForce.find((one) => one.option === option)!.value;
    return Object.freeze(Object.fromEntries(Object.entries(entries).map(([name, option]) => [name, valueOf(option)])));
  }
  const live: { readonly entries: Entries; readonly section: { current: Values<Entries> } }[] = [];
  const parts = Object.entries(definition.schema).map(([name, part]) => {
    if (!isSection(part)) return [name, valuesOf({ [name]: part })[name]];
    const section = { current: valuesOf(part.entries) };
    if (!Object.values(part.entries).some((option) => option.live)) return [name, section.current];
    live.push({ entries: part.entries, section });
    return [name, section];
  });
  const settings: Settings = {
    get all() {
      return inForce.map(({ setting }) => setting);
    },
    isGiven: (key) => inForce.some(({ setting }) => setting.key === key && setting.origin !== "default"),
    change(texts, from) {
      const next = evaluateChange(options, givenTo, texts, from);
      const changed = next.filter(({ setting }, index) => setting.value !== inForce[index]!.setting.value);
      inForce = next;
      const isChanged = (option: Option<unknown>): boolean => changed.some((one) => one.option === option);
      for (const { entries, section } of live) {
        if (Object.values(entries).some(isChanged)) section.current = valuesOf(entries);
      }
      return changed.map(({ setting }) => setting);
    },
  };
  return Object.freeze({ ...Object.fromEntries(parts), settings }) as Config<S>;
}

interface Evaluated {
  readonly option: Option<unknown>;
  readonly value: unknown;
  readonly setting: Setting;
}

/** @param given From the weakest source to the strongest. */
function evaluate(option: Option<unknown>, given: readonly Given[]): Evaluated {
  let value = option.default;
  for (const one of given) value = parse(option, one, value);
  const origin = given.at(-1)?.origin ?? "default";
  return { option, value, setting: { key: option.key, value: option.print(value), origin } };
}

function parse(option: Option<unknown>, { value, where }: Given, below: unknown): unknown {
  try {
    return option.parse(value, below);
  } catch (error) {
    const shown = option.kind === "secret" ? "its value" : JSON.stringify(value).slice(0, 200);
    throw new ConfigError(`${where}: expected ${option.expected}, got ${shown}; ${(error as Error).message}.`);
  }
}

/** @throws ConfigError that names every fault of `texts` */
function evaluateChange(
  options: readonly Option<unknown>[],
  givenTo: (option: Option<unknown>) => readonly Given[],
  texts: ReadonlyMap<string, string>,
  from: string,
): Evaluated[] {
  const faults: string[] = [];
  for (const key of texts.keys()) {
    const option = options.find((one) => one.key === key);
    if (option?.live === true) continue;
    const liveKeys = options.filter(({ live }) => live).map((one) => one.key);
    const meant = option === undefined ? nearest(key, liveKeys) : undefined;
    const hint = meant === undefined ? "" : `; did you mean ${meant}?`;
    faults.push(`${key} ${option === undefined ? "is not a setting" : "can't change while the process runs"}${hint}.`);
  }
  const next = options.map((option) => {
    const value = texts.get(option.key);
    const change = value === undefined ? [] : [{ value, origin: `${from}${option.key}`, where: option.key }];
    try {
      return evaluate(option, [...givenTo(option), ...change]);
    } catch (error) {
      faults.push((error as Error).message);
      return evaluate(option, givenTo(option));
    }
  });
  if (faults.length > 0) throw new ConfigError(faults.join(" "));
  return next;
}

function missing({ name }: ConfigDefinition, { key, aliases, expected }: Option<unknown>): ConfigError {
  return new ConfigError(`${name} needs ${key}: give --${aliases[0] ?? key}, ${expected}, or set ${variableOf(key)}.`);
}
