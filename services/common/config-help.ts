// What --help prints and docs/config.md shows, both from the schema.
import type { ConfigDefinition } from "./config-definition.ts";
import { variablesOf } from "./config-definition.ts";
import type { Option } from "./config-options.ts";

const WIDTH = 100;

const CONFIG_FLAG =
  "JSON file with any of these keys, dotted or nested. A flag beats the environment, which beats the file. " +
  "Env TANDEM_CONFIG.";

/** Every setting with its unit, default, variables and meaning; the ones with short names, which people type, first. */
export function helpText(definition: ConfigDefinition): string {
  const entries = Object.entries(definition.schema);
  const lines: string[] = [];
  if (definition.summary !== "") lines.push(...wrap(definition.summary, ""), "");
  lines.push(`Usage: ${definition.usage}`, "");
  const [short, long] = [entries.filter(hasAlias), entries.filter((entry) => !hasAlias(entry))];
  for (const [key, option] of short.concat(long)) {
    const names = [...option.aliases, key].map((name) => `--${name}`).join(", ");
    lines.push(`  ${names}${option.placeholder === "" ? "" : ` ${option.placeholder}`}`);
    lines.push(...wrap(option.doc, "      "));
    lines.push(...wrap(`${limits(option)}${defaultOf(option)}; env ${variablesOf(key, option).join(", ")}`, "      "));
  }
  lines.push("  --config FILE");
  lines.push(...wrap(CONFIG_FLAG, "      "));
  lines.push("  --help, -h", "      Prints this.");
  return `${lines.join("\n")}\n`;
}

/** A section of docs/config.md: a heading and a table. */
export function configMarkdown(definition: ConfigDefinition): string {
  const cell = (words: string): string => words.replaceAll("|", "\\|").replaceAll("\n", " ");
  const rows = Object.entries(definition.schema).map(([key, option]) => {
    const flags = [key, ...option.aliases].map((name) => `\`--${name}\``).join(", ");
    const env = variablesOf(key, option)
      .map((name) => `\`${name}\``)
      .join(", ");
    const cells = [flags, env, option.expected, defaultOf(option).replace(/^default /, ""), option.doc];
    return `| ${cells.map(cell).join(" | ")} |`;
  });
  return [
    `## ${definition.name}`,
    "",
    ...(definition.summary === "" ? [] : [definition.summary, ""]),
    "| Flag | Variable | Value | Default | What it does |",
    "|---|---|---|---|---|",
    ...rows,
    "",
  ].join("\n");
}

function hasAlias([, option]: [string, Option<unknown>]): boolean {
  return option.aliases.length > 0;
}

function limits(option: Option<unknown>): string {
  return option.kind === "integer" || option.kind === "number" || option.kind === "list" ? `${option.expected}; ` : "";
}

function defaultOf(option: Option<unknown>): string {
  if (option.kind === "secret") return "not set by default";
  if (option.default === undefined) return option.optional ? "not set by default" : "required";
  return `default ${option.print(option.default)}`;
}

function wrap(text: string, indent: string): string[] {
  const lines: string[] = [];
  let line = "";
  for (const word of text.split(/\s+/)) {
    if (line !== "" && indent.length + line.length + 1 + word.length > WIDTH) {
      lines.push(indent + line);
      line = word;
    } else line = line === "" ? word : `${line} ${word}`;
  }
  return line === "" ? lines : [...lines, indent + line];
}
