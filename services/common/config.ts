// The entry point of configuration: one schema gives the types, the flags, the variables, the file keys, the checks,
// changes while the process runs, --help and docs/config.md. A flag beats the environment, which beats the file, which
// beats the default; a change beats them all. There is no silent fallback.
import type { Given, Source } from "./config-file.ts";
import {
  isSection,
  namesOf,
  printed,
  variableOf,
  type ConfigDefinition,
  type Entries,
  type Option,
  type Schema,
  type Section,
  type ValueOf,
} from "./config-schema.ts";
import { readSources, type ConfigSource } from "./config-sources.ts";
import { didYouMean } from "./nearest.ts";
import { ConfigError, PrintAndExit } from "./run-main.ts";

export * from "./config-schema.ts";
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
  const sources = readSources(definition, source);
  let inForce = evaluate(definition, sources);
  const settingsNow = (): Setting[] => [...inForce.values()].map(({ setting }) => setting);
  if (sources.some((one) => one.has("print_config")))
    throw new PrintAndExit(`${settingLines(settingsNow()).join("\n")}\n`);

  const valueOf = ({ key }: Option): unknown => inForce.get(key)!.value;
  const valuesOf = (entries: Entries): Values<Entries> =>
    Object.freeze(Object.fromEntries(Object.entries(entries).map(([name, option]) => [name, valueOf(option)])));
  const live: { readonly options: readonly Option[]; refresh(): void }[] = [];
  const parts = Object.entries(definition.schema).map(([name, part]) => {
    if (!isSection(part)) return [name, valueOf(part)];
    const options = Object.values(part.entries);
    if (!options.some((option) => option.live)) return [name, valuesOf(part.entries)];
    const section = { current: valuesOf(part.entries) };
    live.push({ options, refresh: () => (section.current = valuesOf(part.entries)) });
    return [name, section];
  });
  const liveKeys = live.flatMap(({ options }) => options.filter((option) => option.live).map(({ key }) => key));
  const settings: Settings = {
    get all() {
      return settingsNow();
    },
    isGiven: (key) => sources.some((one) => one.has(key)),
    change(texts, from) {
      const whyNot = (key: string): string =>
        definition.options.has(key)
          ? `${key} can't change while the process runs.`
          : `${key} is not a setting${didYouMean(key, liveKeys) || "."}`;
      const faults = [...texts.keys()].filter((key) => !liveKeys.includes(key)).map(whyNot);
      const change = [...texts].map(([key, value]) => [key, { value, origin: `${from}${key}`, where: key }] as const);
      const next = evaluate(definition, [...sources, new Map(change)], faults);
      const changed = [...next].filter(([key, { setting }]) => setting.value !== inForce.get(key)!.setting.value);
      inForce = next;
      const isChanged = ({ key }: Option): boolean => changed.some(([one]) => one === key);
      for (const { options, refresh } of live) if (options.some(isChanged)) refresh();
      return changed.map(([, { setting }]) => setting);
    },
  };
  return Object.freeze({ ...Object.fromEntries(parts), settings }) as Config<S>;
}

/** A line for each setting, for --print-config and the log of a starting process. */
export function settingLines(settings: readonly Setting[]): string[] {
  return settings.map(({ key, value, origin }) => `${key} = ${value} (${origin})`);
}

interface Evaluated {
  readonly value: unknown;
  readonly setting: Setting;
}

/**
 * All settings by key.
 *
 * @param sources From the weakest to the strongest.
 * @param faults What is already known to be wrong.
 * @throws ConfigError that names every fault
 */
function evaluate(definition: ConfigDefinition, sources: readonly Source[], faults: string[] = []) {
  const all = new Map<string, Evaluated>();
  for (const [key, option] of definition.options) {
    const given = sources.flatMap((source) => source.get(key) ?? []);
    try {
      const value = given.reduce((below, one) => parse(option, one, below), option.default);
      if (value === undefined && !option.optional) throw missing(definition, option);
      const origin = given.at(-1)?.origin ?? "default";
      all.set(key, { value, setting: { key, value: printed(option, value), origin } });
    } catch (error) {
      faults.push((error as ConfigError).message);
    }
  }
  if (faults.length > 0) throw new ConfigError(faults.join(" "));
  return all;
}

function parse(option: Option, { value, where }: Given, below: unknown): unknown {
  try {
    return option.parse(value, below);
  } catch (error) {
    const got = option.kind === "secret" ? "its value" : JSON.stringify(value).slice(0, 200);
    throw new ConfigError(`${where}: expected ${option.expected}, got ${got}; ${(error as Error).message}.`);
  }
}

function missing({ name }: ConfigDefinition, option: Option): ConfigError {
  const flag = namesOf(option).at(-1);
  const variable = variableOf(option.key);
  return new ConfigError(`${name} needs ${option.key}: give --${flag}, ${option.expected}, or set ${variable}.`);
}
