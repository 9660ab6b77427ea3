// What settings a process has: kinds of options, each of which knows its text form, its range and how to print itself;
// sections, which group them; and a definition, which is checked once for mistakes that only its author can make.
import { ADDRESS, splitAddress } from "./address.ts";

/** How the values of a setting are written. */
interface Kind<T> {
  readonly kind: "address" | "integer" | "number" | "boolean" | "choice" | "text" | "secret" | "list";
  /** What the user may write, as a noun phrase: "an integer from 0 to 65536". */
  readonly expected: string;
  /** Placeholder for the value in `--help`: "HOST:PORT". */
  readonly placeholder: string;
  /**
   * Parses the written text. The message of an exception says why the text is wrong. Only lists get an array: the items
   * of a repeated flag or of a list in the file.
   *
   * @param below The value of the next weaker source: a bare port keeps its host.
   */
  parse(written: string | readonly string[], below: T | undefined): T;
  /** With the unit. Never a secret's value. Default: String. */
  print?(value: T): string;
}

/** The properties of a schema's entry, beside its key and its description. */
interface Entry<T> {
  readonly default?: T;
  /** Another name of the flag, without dashes. */
  readonly alias?: string;
  /** Environment variables beside the one made from the key. */
  readonly env?: readonly string[];
  /** The empty text means "none". Without a default the value may be left out, and is then `undefined`. */
  readonly optional?: boolean;
  /** Whether a change reaches the running process. The section is then a `Live` one. */
  readonly live?: boolean;
}

/** One setting. `T` is the type of its value; `L` says whether it may change while the process runs. */
export interface Option<T = any, L extends boolean = boolean> extends Kind<T>, Entry<T> {
  /** Dotted, as in the file: "queue.limit". The names of the flag and the variable are made from it. */
  readonly key: string;
  /** Whole sentences that say what the setting does and when to change it. */
  readonly doc: string;
  readonly live: L;
}

export type ValueOf<O> = O extends Option<infer T> ? T : never;

type OptionOf<T, E> = Option<
  E extends { readonly optional: true } ? T | undefined : T,
  E extends { readonly live: true } ? true : false
>;

/** Makes the function that makes options of one kind. `X` has the further properties of this kind's entries. */
function kind<T, X = unknown>(kindOf: (entry: Entry<T> & X) => Kind<T>) {
  return <const E extends Entry<T> & X>(key: string, doc: string, entry = {} as E): OptionOf<T, E> => {
    const { expected, parse, ...rest } = kindOf(entry);
    const own: Kind<T | undefined> = {
      ...rest,
      expected: entry.optional ? `${expected}, or nothing` : expected,
      parse: (written, below) => (entry.optional && written === "" ? undefined : parse(written, below)),
    };
    return { live: false, ...own, ...entry, key, doc } as unknown as OptionOf<T, E>;
  };
}

/**
 * "host:port" with a port from 0 to 65535; an IPv6 host needs brackets. A bare port keeps the host of the next
 * weaker source, so that `--port` can be an alias of a whole address.
 */
export const address = kind<string>((entry) => ({
  kind: "address",
  expected: "host:port, with a port from 0 to 65535",
  placeholder: "HOST:PORT",
  parse(written: string, below) {
    const host = (below ?? entry.default ?? "127.0.0.1:0").replace(/:\d+$/, "");
    const whole = /^\d+$/.test(written) ? `${host}:${written}` : written;
    if (splitAddress(whole).port > 65_535) throw new Error("the port is too large");
    if (!ADDRESS.test(whole)) throw new Error("it is not an address");
    return whole;
  },
}));

interface Range {
  readonly min?: number;
  readonly max?: number;
  readonly unit?: string;
}

function numeric({ min = -Infinity, max = Infinity, unit }: Range, whole: boolean): Kind<number> {
  const noun = whole ? "an integer" : "a number";
  const from = min === -Infinity ? "" : max === Infinity ? ` of at least ${min}` : ` from ${min}`;
  const to = max === Infinity ? "" : min === -Infinity ? ` of at most ${max}` : ` to ${max}`;
  return {
    kind: whole ? "integer" : "number",
    expected: `${noun}${from}${to}${unit === undefined ? "" : ` (${unit})`}`,
    placeholder: (unit ?? "N").toUpperCase().replace(/[^A-Z0-9]+/g, "_"),
    parse(written: string) {
      const value = Number(written);
      const formed = whole ? /^[+-]?\d+$/.test(written) : /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(written);
      if (!formed || !(whole ? Number.isSafeInteger(value) : Number.isFinite(value)))
        throw new Error(`it is not ${noun}`);
      if (value < min) throw new Error("it is too small");
      if (value > max) throw new Error("it is too large");
      return value;
    },
    print: (value) => (unit === undefined ? String(value) : `${value} ${unit}`),
  };
}

/** A whole number that a double holds exactly. `min` and `max` belong to the range. */
export const integer = kind<number, Range>((entry) => numeric(entry, true));
/** A finite number. `min` and `max` belong to the range. */
export const number = kind<number, Range>((entry) => numeric(entry, false));
/** A time, by default from 1 ms to an hour. */
export const milliseconds = kind<number, Range>((entry) =>
  numeric({ min: 1, max: 3_600_000, unit: "ms", ...entry }, true),
);

/** `--key`, `--no-key`, `--key=false`. */
export const boolean = kind<boolean>(() => ({
  kind: "boolean",
  expected: "true or false",
  placeholder: "",
  parse(written: string) {
    if (/^(true|1|yes|on)$/i.test(written)) return true;
    if (/^(false|0|no|off)$/i.test(written)) return false;
    throw new Error("it is neither true nor false");
  },
}));

export function choice<const T extends string, const E extends Entry<NoInfer<T>>>(
  key: string,
  doc: string,
  values: readonly T[],
  entry: E,
): OptionOf<T, E> {
  const oneOf = kind<T>(() => ({
    kind: "choice",
    expected: `one of ${values.join(", ")}`,
    placeholder: values.join("|"),
    parse(written: string) {
      const value = values.find((candidate) => candidate === written);
      if (value === undefined) throw new Error("it is not one of them");
      return value;
    },
  }));
  return oneOf(key, doc, entry);
}

export const text = kind<string>(() => ({
  kind: "text",
  expected: "text",
  placeholder: "TEXT",
  parse: (written: string) => written,
  print: (value) => value || "(empty)",
}));

/** Always printed as `set` or `unset`. "" when not set. */
export function secret(
  key: string,
  doc: string,
  entry: Pick<Entry<string>, "alias" | "env"> = {},
): Option<string, false> {
  const plain = text(key, doc, { ...entry, default: "" });
  return { ...plain, kind: "secret", placeholder: "SECRET", print: (value) => (value === "" ? "unset" : "set") };
}

type ListEntry = Omit<Entry<readonly string[]>, "optional" | "live">;

const texts = kind<readonly string[]>(() => ({
  kind: "list",
  expected: "a list of texts",
  placeholder: "TEXT",
  // Items of an array are taken whole: a text may hold commas.
  parse: (written) => Object.freeze(typeof written === "string" ? split(written) : [...written]),
  print: (value) => value.join(", ") || "none",
}));

/** A repeatable flag, a comma-separated variable, or a list in the file. Empty by default. */
export const list = (key: string, doc: string, entry: ListEntry = {}): Option<readonly string[], false> =>
  texts(key, doc, { default: [], ...entry });

/** Addresses as `address` takes them, with commas between, in a repeated flag, or both. */
export function addresses(key: string, doc: string, entry: ListEntry = {}): Option<readonly string[], false> {
  const { expected, placeholder, parse } = address(key, doc);
  const all = list(key, doc, entry);
  return {
    ...all,
    expected: `${expected}, or several of them`,
    placeholder,
    parse(written, below) {
      const items = all.parse(written, below).flatMap(split);
      return Object.freeze(items.map((item) => parse(item, below?.[0])));
    },
  };
}

function split(written: string): string[] {
  return written.split(",").flatMap((item) => item.trim() || []);
}

/** By the name that the code uses. */
export type Entries = Readonly<Record<string, Option>>;

/** Options that belong together: one heading in the documentation, one object in the code. */
export interface Section<E extends Entries = Entries> {
  readonly title: string;
  readonly entries: E;
}

export function section<const E extends Entries>(title: string, entries: E): Section<E> {
  return { title, entries };
}

/** Sections, and options without a section, by the name that the code uses. */
export type Schema = Readonly<Record<string, Option | Section>>;

export interface ConfigDefinition<S extends Schema = Schema> {
  /** Name of the process: "router". */
  readonly name: string;
  readonly schema: S;
  /** Every option by its key, in the order of the schema. */
  readonly options: ReadonlyMap<string, Option>;
  readonly summary: string;
  readonly usage: string;
  /** Key of the list that takes all words after `--`. */
  readonly rest?: string;
  /** Keys of removed settings, with the replacement of each. */
  readonly removed: ReadonlyMap<string, string>;
}

/** Flags of every process beside its settings. */
export const COMMON_FLAGS: readonly Option[] = [
  {
    ...text(
      "config",
      "YAML file (or JSON) with any of these keys, dotted or nested. A flag beats the environment, which beats the " +
        "file. Env TANDEM_CONFIG.",
    ),
    expected: "the path of a YAML file",
    placeholder: "FILE",
  },
  boolean("print_config", "Prints every setting with its value and its origin, and exits."),
  boolean("help", "Prints this, as -h does."),
];

/** @throws Error when two settings share a name, or a default is out of its own range. */
export function defineConfig<const S extends Schema>(
  name: string,
  schema: S,
  o: Partial<Pick<ConfigDefinition, "summary" | "usage" | "rest">> & {
    readonly removed?: Readonly<Record<string, string>>;
  } = {},
): ConfigDefinition<S> {
  const options = Object.values(schema).flatMap((one) => (isSection(one) ? Object.values(one.entries) : [one]));
  const taken = new Map([["TANDEM_CONFIG", "--config"], ...COMMON_FLAGS.map(({ key }) => [key, `--${key}`] as const)]);
  for (const one of options) {
    const { key } = one;
    if (!/^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*$/.test(key))
      throw new Error(`${name}: ${key} is not a dotted snake_case key`);
    for (const word of [...namesOf(one), ...variablesOf(one)]) {
      // Names that differ only in these characters are one flag.
      const plain = word.replace(/[-.]/g, "_");
      const other = taken.get(plain);
      if (other !== undefined) throw new Error(`${name}: both ${other} and ${key} answer to ${word}`);
      taken.set(plain, key);
    }
    if (one.default !== undefined && one.kind !== "list" && one.kind !== "secret")
      one.parse(String(one.default), undefined);
  }
  const usage = `tandem ${name} [--KEY VALUE ...]`;
  const removed = new Map(Object.entries(o.removed ?? {}));
  return { name, schema, options: new Map(options.map((one) => [one.key, one])), summary: "", usage, ...o, removed };
}

export function isSection(one: Option | Section): one is Section {
  return "entries" in one;
}

/** Names of a setting's flag, without dashes. */
export function namesOf({ key, alias }: Option): readonly string[] {
  return alias === undefined ? [key] : [key, alias];
}

/** Environment variables of a setting, the strongest first: TANDEM_QUEUE_LIMIT, then the extra ones of its schema. */
export function variablesOf({ key, env = [] }: Option): readonly string[] {
  const own = variableOf(key);
  return [own, ...env.filter((name) => name !== own)];
}

export function variableOf(key: string): string {
  return `TANDEM_${key.replaceAll(".", "_").toUpperCase()}`;
}

/** The value as people see it. */
export function printed<T>({ print = String }: Option<T>, value: T): string {
  return value === undefined ? "unset" : print(value);
}
