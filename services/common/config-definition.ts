// A schema with its name, checked once for faults that only its author can make.
import type { Option, ValueOf } from "./config-options.ts";

/** Keys are dotted, in the words of the file: "queue.limit", "drain.grace_ms". */
export type Schema = Readonly<Record<string, Option<any>>>;

export type Config<S> = { readonly [K in keyof S]: ValueOf<S[K]> };

export interface ConfigDefinition<S extends Schema = Schema> {
  /** Of the process: "router". */
  readonly name: string;
  readonly schema: S;
  readonly summary: string;
  readonly usage: string;
}

/** @throws Error when two settings share a flag or a variable, or a default is out of its own range. */
export function defineConfig<const S extends Schema>(
  name: string,
  schema: S,
  o: { readonly summary?: string; readonly usage?: string } = {},
): ConfigDefinition<S> {
  const taken = new Map<string, string>([
    ["config", "--config"],
    ["help", "--help"],
    ["TANDEM_CONFIG", "--config"],
  ]);
  for (const [key, option] of Object.entries(schema)) {
    if (!/^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*$/.test(key))
      throw new Error(`${name}: ${key} is not a dotted snake_case key`);
    for (const word of [key, ...option.aliases, ...variablesOf(key, option)]) {
      const other = taken.get(word);
      if (other !== undefined && other !== key) throw new Error(`${name}: both ${other} and ${key} answer to ${word}`);
      taken.set(word, key);
    }
    if (option.default !== undefined && option.kind !== "list" && option.kind !== "secret") {
      option.parse(String(option.default), undefined);
    }
  }
  return { name, schema, summary: o.summary ?? "", usage: o.usage ?? `tandem ${name} [--KEY VALUE ...]` };
}

/** Environment variables of a setting, the strongest first: TANDEM_QUEUE_LIMIT, then the extra ones of its schema. */
export function variablesOf(key: string, option: Option<unknown>): readonly string[] {
  const own = `TANDEM_${key.replaceAll(".", "_").toUpperCase()}`;
  return [own, ...option.env.filter((name) => name !== own)];
}
