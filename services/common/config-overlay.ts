// Settings that change while a process runs: texts from outside, laid over the settings that it started with. Checked by
// the same schema, and taken whole or not at all.
import type { Config, ConfigDefinition, Schema } from "./config-definition.ts";
import { ConfigError } from "./config-errors.ts";
import { rememberSettings, settingsOf, type Setting } from "./config-load.ts";
import { nearest } from "./nearest.ts";

/**
 * @param base What `loadConfig` returned. A key that `texts` lacks has its value from there.
 * @param o.changeable The keys that may change.
 * @param o.originOf What to show as the origin of a key.
 * @throws ConfigError that names every fault; then nothing of `texts` holds
 */
export function overlayConfig<S extends Schema>(
  definition: ConfigDefinition<S>,
  base: Config<S>,
  texts: ReadonlyMap<string, string>,
  o: { readonly changeable: readonly string[]; originOf(key: string): string },
): Config<S> {
  const values: Record<string, unknown> = { ...base };
  const changed = new Map<string, Setting>();
  const faults: string[] = [];
  for (const [key, text] of texts) {
    const option = definition.schema[key];
    if (option === undefined || !o.changeable.includes(key)) {
      const meant = option === undefined ? nearest(key, o.changeable) : undefined;
      const why = option === undefined ? "is not a setting" : "can't change while the process runs";
      faults.push(`${key} ${why}${meant === undefined ? "" : `; did you mean ${meant}?`}`);
      continue;
    }
    try {
      const value: unknown = option.parse(text, base[key as keyof S]);
      values[key] = value;
      changed.set(key, { key, value: option.print(value), origin: o.originOf(key) });
    } catch (error) {
      faults.push(
        `${key}: expected ${option.expected}, got ${JSON.stringify(text.slice(0, 100))}; ${(error as Error).message}`,
      );
    }
  }
  if (faults.length > 0) throw new ConfigError(faults.join(". "));
  const config = Object.freeze(values) as Config<S>;
  rememberSettings(
    config,
    settingsOf(base).map((setting) => changed.get(setting.key) ?? setting),
  );
  return config;
}
