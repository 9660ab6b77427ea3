// What --help and --print-config print and docs/config.md shows, all from the schema.
import { isSection, variablesOf, type ConfigDefinition, type Option } from "./config-schema.ts";

const WIDTH = 100;

const COMMON_FLAGS: readonly (readonly [string, string])[] = [
  [
    "--config FILE",
    "YAML file (or JSON) with any of these keys, dotted or nested. A flag beats the environment, which beats the file. " +
      "Env TANDEM_CONFIG.",
  ],
  ["--print-config", "Prints every setting with its value and its origin, and exits."],
  ["--help, -h", "Prints this."],
];

interface Group {
  readonly title: string;
  readonly options: readonly Option<any>[];
}

/** The sections in the order of the schema, after the options without a section. */
function groupsOf({ schema }: ConfigDefinition): readonly Group[] {
  const loose: Option<any>[] = [];
  const sections: Group[] = [];
  for (const part of Object.values(schema)) {
    if (isSection(part)) sections.push({ title: part.title, options: Object.values(part.entries) });
    else loose.push(part);
  }
  return loose.length === 0 ? sections : [{ title: "", options: loose }, ...sections];
}

/** Every setting with its unit, default, variables and meaning, by section. */
export function helpText(definition: ConfigDefinition): string {
  const lines: string[] = [];
  if (definition.summary !== "") lines.push(...wrap(definition.summary, ""), "");
  lines.push(`Usage: ${definition.usage}`);
  lines.push("A flag may have dashes in place of dots and underscores: --queue-timeout-ms is --queue.timeout_ms.");
  for (const { title, options } of groupsOf(definition)) {
    lines.push("", ...(title === "" ? [] : [title]));
    for (const option of options) {
      const names = [...option.aliases, option.key].map((name) => `--${name}`).join(", ");
      lines.push(`  ${names}${option.placeholder === "" ? "" : ` ${option.placeholder}`}`);
      lines.push(...wrap(option.doc, "      "));
      const live = option.live ? "; can change while the process runs" : "";
      lines.push(
        ...wrap(`${limits(option)}${defaultOf(option)}; env ${variablesOf(option).join(", ")}${live}`, "      "),
      );
    }
  }
  lines.push("", "All commands");
  for (const [flag, doc] of COMMON_FLAGS) lines.push(`  ${flag}`, ...wrap(doc, "      "));
  return `${lines.join("\n")}\n`;
}

/** A line for each setting, for --print-config and the log of a starting process. */
export function settingLines(
  settings: readonly { readonly key: string; readonly value: string; readonly origin: string }[],
): string[] {
  return settings.map(({ key, value, origin }) => `${key} = ${value} (${origin})`);
}

/** A chapter of docs/config.md: a table for each section. */
export function configMarkdown(definition: ConfigDefinition): string {
  const lines = [`## ${definition.name}`, ""];
  if (definition.summary !== "") lines.push(definition.summary, "");
  const hasLive = [...definition.options.values()].some(({ live }) => live);
  for (const { title, options } of groupsOf(definition)) {
    if (title !== "") lines.push(`### ${definition.name}: ${title}`, "");
    lines.push(`| Flag | Variable | Value | Default |${hasLive ? " Live |" : ""} What it does |`);
    lines.push(`|---|---|---|---|${hasLive ? "---|" : ""}---|`);
    for (const option of options) {
      const flags = [option.key, ...option.aliases].map((name) => `\`--${name}\``).join(", ");
      const env = variablesOf(option).map((name) => `\`${name}\``);
      const live = hasLive ? [option.live ? "yes" : ""] : [];
      const cells = [
        flags,
        env.join(", "),
        option.expected,
        defaultOf(option).replace(/^default /, ""),
        ...live,
        option.doc,
      ];
      lines.push(`| ${cells.map((cell) => cell.replaceAll("|", "\\|").replaceAll("\n", " ")).join(" | ")} |`);
    }
    lines.push("");
  }
  return lines.join("\n");
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
