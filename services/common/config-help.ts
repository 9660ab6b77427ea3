// What --help prints, all from the schema.
import {
  COMMON_FLAGS,
  isSection,
  namesOf,
  printed,
  variablesOf,
  type ConfigDefinition,
  type Option,
} from "./config-schema.ts";

const WIDTH = 100;

/** Every setting with its unit, default, variables and meaning, by section. */
export function helpText({ schema, summary, usage }: ConfigDefinition): string {
  const lines = summary === "" ? [] : [...wrap(summary, ""), ""];
  lines.push(`Usage: ${usage}`);
  lines.push("A flag may have dashes in place of dots and underscores: --queue-timeout-ms is --queue.timeout_ms.");
  for (const { title, options } of groupsOf(schema)) {
    lines.push("", ...(title === "" ? [] : [title]));
    for (const option of options) {
      const limits = ["integer", "number", "list"].includes(option.kind) ? `${option.expected}; ` : "";
      const live = option.live ? "; can change while the process runs" : "";
      const facts = `${limits}${defaultOf(option)}; env ${variablesOf(option).join(", ")}${live}`;
      lines.push(flagOf(option), ...wrap(option.doc), ...wrap(facts));
    }
  }
  lines.push("", "All commands");
  for (const option of COMMON_FLAGS) lines.push(flagOf(option).replace("_", "-"), ...wrap(option.doc));
  return `${lines.join("\n")}\n`;
}

/** The sections in the order of the schema, after the options without a section. */
export function groupsOf(schema: ConfigDefinition["schema"]): readonly { title: string; options: readonly Option[] }[] {
  const parts = Object.values(schema);
  const loose = parts.filter((part): part is Option => !isSection(part));
  const sections = parts.filter(isSection).map(({ title, entries }) => ({ title, options: Object.values(entries) }));
  return loose.length === 0 ? sections : [{ title: "", options: loose }, ...sections];
}

export function defaultOf(option: Option): string {
  if (option.kind === "secret") return "not set by default";
  if (option.default === undefined) return option.optional ? "not set by default" : "required";
  return `default ${printed(option, option.default)}`;
}

function flagOf(option: Option): string {
  const names = namesOf(option)
    .toReversed()
    .map((name) => `--${name}`);
  return `  ${names.join(", ")} ${option.placeholder}`.trimEnd();
}

function wrap(text: string, indent = "      "): string[] {
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
