// One event a line, with fields: text for a terminal, JSON for everything else. The JSON has pino's keys, so that tools
// for pino's lines read these (`| npx pino-pretty`); why it isn't pino that writes them: docs/adr/0011-our-own-log.md.

export const LOG_LEVELS = ["debug", "info", "warn", "error"] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];

export type LogFields = Readonly<Record<string, unknown>>;

export interface Log extends Readonly<Record<LogLevel, (event: string, fields?: LogFields) => void>> {
  /** A log whose every line carries `fields` too. */
  child(fields: LogFields): Log;
}

export interface LogOptions {
  /** Name of the process: "router". */
  readonly name: string;
  /** TANDEM_LOG_LEVEL, else info. */
  readonly level?: LogLevel | undefined;
  /** TANDEM_LOG_FORMAT, else text on a terminal and JSON lines elsewhere. */
  readonly format?: "json" | "text";
  /** Standard error by default: standard output is for the result of a command. */
  readonly out?: NodeJS.WritableStream;
}

/** Names of fields whose value must not be written. "key" alone is harmless, as are numbers and booleans. */
const SECRET = /([tT]oken|[sS]ecret|[pP]assword|[aA]uthorization|[a-z]Key|_key|-key)$/;

const COLOURS: Record<LogLevel, string> = { debug: "\x1b[2m", info: "\x1b[36m", warn: "\x1b[33m", error: "\x1b[31m" };

/** Keys that every line has; a field of that name gets a `_` appended. */
export const LINE_KEYS: ReadonlySet<string> = new Set(["level", "time", "name", "msg"]);

export function createLog(o: LogOptions): Log {
  const out = o.out ?? process.stderr;
  const onTerminal = (out as { isTTY?: boolean }).isTTY === true;
  const format = o.format ?? fromEnv("TANDEM_LOG_FORMAT", ["json", "text"]) ?? (onTerminal ? "text" : "json");
  const level = o.level ?? fromEnv("TANDEM_LOG_LEVEL", LOG_LEVELS) ?? "info";
  const lowest = LOG_LEVELS.indexOf(level);
  const coloured = onTerminal && (process.env["NO_COLOR"] ?? "") === "";

  const build = (context: LogFields): Log => {
    const write = (at: LogLevel, event: string, fields?: LogFields): void => {
      const all = { ...context, ...fields };
      out.write(format === "json" ? jsonLine(at, o.name, event, all) : textLine(at, o.name, event, all, coloured));
    };
    // A level that is off costs a call and nothing else.
    const at = (which: LogLevel): Log["info"] =>
      LOG_LEVELS.indexOf(which) < lowest ? () => {} : (event, fields) => write(which, event, fields);
    return {
      debug: at("debug"),
      info: at("info"),
      warn: at("warn"),
      error: at("error"),
      child: (fields) => build({ ...context, ...fields }),
    };
  };
  return build({});
}

function fromEnv<T extends string>(name: string, values: readonly T[]): T | undefined {
  return values.find((value) => value === process.env[name]);
}

function jsonLine(level: LogLevel, name: string, event: string, fields: LogFields): string {
  const line: Record<string, unknown> = { level, time: new Date().toISOString(), name, msg: event };
  for (const key in fields) line[LINE_KEYS.has(key) ? `${key}_` : key] = plain(key, fields[key]);
  return `${JSON.stringify(line)}\n`;
}

function textLine(level: LogLevel, name: string, event: string, fields: LogFields, coloured: boolean): string {
  const [on, dim, off] = coloured ? [COLOURS[level], "\x1b[2m", "\x1b[0m"] : ["", "", ""];
  let line = `${dim}${new Date().toISOString().slice(11, 23)}${off} ${on}${level.padEnd(5)}${off} ${name}  ${event}`;
  let below = "";
  for (const key in fields) {
    const raw = fields[key];
    if (raw === undefined) continue;
    if (raw instanceof Error && !SECRET.test(key)) below += `${stackOf(raw).replace(/^/gm, "    ")}\n`;
    line += `  ${dim}${key}=${off}${valueText(plain(key, raw))}`;
  }
  return `${line}\n${below}`;
}

/** A field of a line as text; an error is shown by its message. */
export function valueText(value: unknown): string {
  if (typeof value === "object" && value !== null && "message" in value) return valueText(value.message);
  return typeof value === "string" && /^[^\s"=]+$/.test(value) ? value : JSON.stringify(value);
}

/** With the stacks of its causes. */
export function stackOf(error: Error): string {
  const own = error.stack ?? `${error.name}: ${error.message}`;
  return error.cause instanceof Error ? `${own}\ncaused by: ${stackOf(error.cause)}` : own;
}

/** `value` as JSON can hold it, without secrets and cycles. */
function plain(key: string, value: unknown, depth = 0): unknown {
  if (typeof value === "bigint") return value.toString();
  if ((typeof value === "string" ? value !== "" : typeof value === "object" && value !== null) && SECRET.test(key))
    return "[redacted]";
  if (typeof value !== "object" || value === null) return value;
  if (depth > 5) return "[deep]";
  if (value instanceof Error) {
    const cause = value.cause === undefined ? undefined : plain("cause", value.cause, depth + 1);
    return { message: value.message, code: (value as NodeJS.ErrnoException).code, stack: value.stack, cause };
  }
  if (value instanceof Uint8Array) return `[${value.length} bytes]`;
  if (Array.isArray(value)) return value.map((item) => plain("", item, depth + 1));
  if (typeof (value as { toJSON?: unknown }).toJSON === "function") return value;
  return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, plain(name, item, depth + 1)]));
}

/** For those who have nowhere to log. */
export const SILENT: Log = { debug() {}, info() {}, warn() {}, error() {}, child: () => SILENT };
