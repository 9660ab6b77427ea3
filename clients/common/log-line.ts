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

type Line = Readonly<Record<string, unknown>>;

/** Events that users see in words of their own: an engine may take minutes to load. */
const PROGRESS: Readonly<Record<string, (line: Line) => string>> = {
  "engine loading": ({ phase }) => `${phase}`,
  "engine loaded": ({ seconds, phases }) => `engine ready after ${seconds} s: ${phases}`,
  "adopting an engine": ({ role, httpAddress }) => `adopting the ${role} engine at ${httpAddress}`,
};

const LEVEL_COLOURS: Readonly<Record<string, string>> = { warn: "\x1b[33m", error: "\x1b[31m" };

export function renderLogLine(line: string, colour: boolean, plainIsLoud = true): RenderedLine {
  const parsed = line.startsWith("{") ? parse(line) : undefined;
  if (parsed === undefined) return { text: line, isLoud: plainIsLoud };
  const [level, msg] = [String(parsed["level"]), String(parsed["msg"])];
  const progress = PROGRESS[msg]?.(parsed);
  if (progress !== undefined) return { text: progress, isLoud: true };
  const on = colour ? LEVEL_COLOURS[level] : undefined;
  let text = `${on === undefined ? level : `${on}${level}\x1b[0m`} ${msg}`;
  for (const key in parsed) {
    if (!LINE_KEYS.has(key)) text += ` ${key}=${valueText(parsed[key])}`;
  }
  const isLoud = level === "warn" || level === "error";
  return { text, isLoud, ...(msg === "settings" ? { isSettings: true } : {}) };
}

function parse(line: string): Line | undefined {
  try {
    const value = JSON.parse(line) as Line;
    return "level" in value && "msg" in value ? value : undefined;
  } catch {
    return undefined;
  }
}
