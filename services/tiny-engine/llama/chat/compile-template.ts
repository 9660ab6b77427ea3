// The only user of @huggingface/jinja: compiles the chat template of a model's file, for rendering.
// The file is often untrusted. Its template only sees the given values and pure functions: no file, no network, no
// object of JavaScript. The template decides the whole prompt, and may loop: V8 ends it after a second. Memory is not
// limited: a template that fills the memory ends its own engine.
import { createRequire } from "node:module";
import { createContext, Script } from "node:vm";

/** The template can't be parsed, or can't be rendered for a conversation. */
export class TemplateError extends Error {
  override readonly name = "TemplateError";
}

/** The template's own `raise_exception`: the conversation does not fit it. The message is the template's. */
export class RefusedByTemplate extends Error {
  override readonly name = "RefusedByTemplate";
}

/** @throws RefusedByTemplate, TemplateError */
export type RenderTemplate = (context: Readonly<Record<string, unknown>>) => string;

// The package's own declarations import without file extensions, which TypeScript refuses for an ES module.
interface Jinja {
  readonly tokenize: (source: string, options: { lstrip_blocks: boolean; trim_blocks: boolean }) => unknown;
  readonly parse: (tokens: unknown) => unknown;
  readonly Environment: new () => { set(name: string, value: unknown): void };
  readonly Interpreter: new (environment: object) => { run(program: unknown): { readonly value: unknown } };
}
const require = createRequire(import.meta.url);
const { tokenize, parse, Environment, Interpreter } = require("@huggingface/jinja") as Jinja;

/** A conversation of a thousand messages takes 0.1 s. */
const TIME_LIMIT_MS = 1_000;
const RANGE_LIMIT = 100_000;

/**
 * Compiles a template. Treats whitespace as transformers does: trim_blocks and lstrip_blocks.
 *
 * @param now The time, for templates that write the date.
 * @throws TemplateError if the source is not a template.
 */
export function compileTemplate(source: string, now: () => Date = () => new Date()): RenderTemplate {
  const program = limited(() => parse(tokenize(source, { lstrip_blocks: true, trim_blocks: true })));
  const globals = {
    true: true,
    True: true,
    false: false,
    False: false,
    none: null,
    None: null,
    range,
    raise_exception: (message: unknown) => {
      throw new RefusedByTemplate(String(message));
    },
    strftime_now: (format: unknown) => dayIn(String(format), now()),
  };
  return (context) =>
    limited(() => {
      const environment = new Environment();
      for (const [name, value] of Object.entries({ ...globals, ...context })) environment.set(name, value);
      return String(new Interpreter(environment).run(program).value);
    });
}

const box = createContext({ compute: (): unknown => undefined });
const COMPUTE = new Script("compute()");

/**
 * The result of `compute`. The timeout stops JavaScript wherever it runs, not only in the context; it costs 0.14 ms.
 */
function limited<T>(compute: () => T): T {
  box["compute"] = compute;
  try {
    return COMPUTE.runInContext(box, { timeout: TIME_LIMIT_MS }) as T;
  } catch (error) {
    if (error instanceof RefusedByTemplate || error instanceof TemplateError) throw error;
    const { code, message } = error as NodeJS.ErrnoException;
    const reason = code === "ERR_SCRIPT_EXECUTION_TIMEOUT" ? `it takes more than ${TIME_LIMIT_MS} ms` : message;
    throw new TemplateError(reason, { cause: error });
  }
}

/** Python's range(). */
function range(first: number, second?: number, step = 1): number[] {
  const [start, stop] = second === undefined ? [0, first] : [first, second];
  const length = Math.max(0, Math.ceil((stop - start) / step));
  if (!(length <= RANGE_LIMIT)) throw new TemplateError(`its range() is longer than ${RANGE_LIMIT}`);
  return Array.from({ length }, (_, index) => start + index * step);
}

/** Directives of strftime: parts of the date, or what stands for a time. */
const DIRECTIVES: Readonly<Record<string, Intl.DateTimeFormatOptions | string>> = {
  "%Y": { year: "numeric" },
  "%m": { month: "2-digit" },
  "%d": { day: "2-digit" },
  "%b": { month: "short" },
  "%B": { month: "long" },
  "%a": { weekday: "short" },
  "%A": { weekday: "long" },
  "%H": "00",
  "%M": "00",
  "%S": "00",
  "%%": "%",
};

/**
 * Formats the beginning of the day in UTC as Python's strftime does: a prefill and a decode engine render the same
 * conversation at different moments, perhaps in different time zones, and must get the same prompt.
 */
function dayIn(format: string, now: Date): string {
  return format.replace(/%./g, (directive) => {
    const part = DIRECTIVES[directive] ?? directive;
    return typeof part === "string" ? part : now.toLocaleDateString("en-US", { ...part, timeZone: "UTC" });
  });
}
