// One line that a child wrote, for the terminal. Tandem's processes write JSON (services/common/log.ts); a line that
// isn't JSON comes from Node or a dying engine, and is shown unchanged.
import { LINE_KEYS, valueText } from "../../services/common/log.ts";

export interface RenderedLine {
  readonly text: string;
  /** A warning, an error, or a crash's plain text: worth a person's attention. */
  readonly isLoud: boolean;
  /** Lists all settings in one very long line, which doesn't help to explain why a process died. */
  readonly isSettings?: boolean;
}

interface Line {
  readonly level?: unknown;
  readonly msg?: unknown;
  readonly [field: string]: unknown;
}

const LEVEL_COLOURS: Readonly<Record<string, string>> = { warn: "\x1b[33m", error: "\x1b[31m" };

export function renderLogLine(line: string, colour: boolean, plainIsLoud = true): RenderedLine {
  const parsed = line.startsWith("{") ? parse(line) : undefined;
  if (parsed === undefined) return { text: line, isLoud: plainIsLoud };
  const level = String(parsed.level);
  // An engine may take minutes to load, so users see its progress.
  if (parsed.msg === "engine loading") return { text: String(parsed["phase"]), isLoud: true };
  if (parsed.msg === "engine loaded")
    return { text: `engine ready after ${String(parsed["seconds"])} s: ${String(parsed["phases"])}`, isLoud: true };
  if (parsed.msg === "adopting an engine")
    return { text: `adopting the ${String(parsed["role"])} engine at ${String(parsed["httpAddress"])}`, isLoud: true };
  const on = colour ? (LEVEL_COLOURS[level] ?? "") : "";
  let text = `${on}${level}${on === "" ? "" : "\x1b[0m"} ${String(parsed.msg)}`;
  for (const key in parsed) {
    if (!LINE_KEYS.has(key)) text += ` ${key}=${valueText(parsed[key])}`;
  }
  return {
    text,
    isLoud: level === "warn" || level === "error",
    ...(parsed.msg === "settings" ? { isSettings: true } : {}),
  };
}

function parse(line: string): Line | undefined {
  try {
    const value = JSON.parse(line) as unknown;
    return typeof value === "object" && value !== null && "level" in value && "msg" in value ? value : undefined;
  } catch {
    return undefined;
  }
}
