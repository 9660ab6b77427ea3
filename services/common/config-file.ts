// Settings from a YAML (and so also JSON) file: one mapping, with dotted or nested keys. Errors name file, line and
// key.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import type * as yaml from "yaml";
import type { ConfigDefinition, Option } from "./config-schema.ts";
import { didYouMean } from "./nearest.ts";
import { ConfigError } from "./run-main.ts";

/** The value that one source gives to one setting. `where` names the source in error messages. */
export interface Given {
  readonly value: string | readonly string[];
  readonly origin: string;
  readonly where: string;
}

/** By key. */
export type Source = ReadonlyMap<string, Given>;

/** @throws ConfigError for a file that can't be read, an unknown key, one given twice, or a value of the wrong shape */
export function readConfigFile(definition: ConfigDefinition, path: string): Source {
  const given = new Map<string, Given>();
  if (path === "") return given;
  // 8 MB and 50 ms, and most processes are given no file.
  const { parseDocument, LineCounter, isMap, isSeq, isScalar, isAlias } = createRequire(import.meta.url)(
    "yaml",
  ) as typeof yaml;
  const lines = new LineCounter();
  // Pretty errors would quote the lines around, which may hold a secret.
  const document = parseDocument(readText(path), { lineCounter: lines, prettyErrors: false });
  const placeOf = (offset: number): string => `${path}:${lines.linePos(offset).line}`;
  const fault = [...document.errors, ...document.warnings][0];
  if (fault !== undefined) throw new ConfigError(`${placeOf(fault.pos[0])}: ${fault.message}.`);

  function resolve(node: unknown): unknown {
    if (!isAlias(node)) return node;
    const target = node.resolve(document);
    if (target === undefined)
      throw new ConfigError(`${placeOf(node.range![0])}: the alias *${node.source} is unknown.`);
    return target;
  }

  function textOf(node: unknown, { kind }: Option): string | undefined {
    if (!isScalar(node) || node.value === null) return undefined;
    // A token 0123 or a model 1e3 is taken as written, even without quotes.
    const asValue = typeof node.value === "string" || kind === "integer" || kind === "number";
    return asValue ? String(node.value) : (node.source ?? String(node.value));
  }

  function valueOf(node: unknown, option: Option): Given["value"] | undefined {
    if (option.kind !== "list" || !isSeq(node)) return textOf(node, option);
    const texts = node.items.map((item) => textOf(resolve(item), option));
    return texts.every((text) => text !== undefined) ? texts : undefined;
  }

  function visit(prefix: string, { items }: yaml.YAMLMap): void {
    for (const pair of items) {
      if (!isScalar(pair.key)) throw new ConfigError(`${path}: a key must be a name, not a list or a mapping.`);
      const key = `${prefix}${String(pair.key.value)}`;
      const place = placeOf(pair.key.range![0]);
      const where = `${place}: ${key}`;
      const option = definition.options.get(key);
      const node = resolve(pair.value);
      if (option === undefined) {
        if (!isMap(node) || node.items.length === 0) throw unknownKey(definition, key, where);
        visit(`${key}.`, node);
        continue;
      }
      if (given.has(key)) throw new ConfigError(`${where} is given twice.`);
      const value = valueOf(node, option);
      if (value === undefined) {
        const got = option.kind === "secret" ? "something else" : JSON.stringify(node ?? null);
        throw new ConfigError(`${where}: expected ${option.expected}, got ${got}.`);
      }
      given.set(key, { value, origin: `file ${place}`, where });
    }
  }

  const top = document.contents;
  if (isMap(top)) visit("", top);
  else if (top !== null)
    throw new ConfigError(`The configuration file ${path} must hold one mapping of keys to values.`);
  return given;
}

/** @param where The key as the user wrote it, and where. */
export function removedKey(where: string, instead: string): ConfigError {
  return new ConfigError(`${where} is no longer a setting: ${instead}.`);
}

function unknownKey({ name, options, removed }: ConfigDefinition, key: string, where: string): ConfigError {
  const instead = removed.get(key);
  if (instead !== undefined) return removedKey(where, instead);
  return new ConfigError(`${where} is not a setting of ${name}${didYouMean(key, options.keys())}`);
}

function readText(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch (error) {
    throw new ConfigError(`The configuration file ${path} can't be read: ${(error as Error).message}.`);
  }
}
