// The kinds of setting that a configuration may have: each knows its text form, its range and how to print itself.

/** One setting. `T` is the type of its value. */
export interface Option<T> {
  readonly kind: "address" | "integer" | "number" | "boolean" | "choice" | "text" | "secret" | "list";
  /** What the user may write, as a noun phrase: "an integer from 0 to 65536". */
  readonly expected: string;
  /** Stands for the value in `--help`: "HOST:PORT". */
  readonly placeholder: string;
  readonly doc: string;
  /** Other names of the flag, without dashes. */
  readonly aliases: readonly string[];
  /** Environment variables beside the one made from the key. */
  readonly env: readonly string[];
  readonly default: T | undefined;
  /** Without a default: the value may be left out and is then `undefined`. */
  readonly optional: boolean;
  /**
   * The value of `text`, or an exception whose message says what is wrong with it.
   *
   * @param below The value that would hold without `text`: a bare port keeps its host.
   */
  parse(text: string, below: T | undefined): T;
  /** Of a list: the value of items that came one by one, in a repeated flag or a JSON array. */
  readonly parseItems?: ((items: readonly string[], below: T | undefined) => T) | undefined;
  /** With the unit. Never a secret's value. */
  print(value: T): string;
}

export type ValueOf<O> = O extends Option<infer T> ? T : never;

interface Common {
  /** Whole sentences: what it does and when to change it. */
  readonly doc: string;
  readonly alias?: string | readonly string[];
  readonly env?: readonly string[];
  /** The empty text means "none", and the value may be `undefined`. */
  readonly optional?: boolean;
}

type Maybe<T, O> = O extends { readonly optional: true } ? T | undefined : T;

interface Kind<T> {
  readonly kind: Option<T>["kind"];
  readonly expected: string;
  readonly placeholder: string;
  readonly parse: (text: string, below: T | undefined) => T;
  readonly parseItems?: (items: readonly string[], below: T | undefined) => T;
  readonly print: (value: T) => string;
}

function option<T, O extends Common & { readonly default?: T }>(o: O, kind: Kind<T>): Option<Maybe<T, O>> {
  const optional = o.optional === true;
  const built: Option<T | undefined> = {
    kind: kind.kind,
    expected: optional ? `${kind.expected}, or nothing` : kind.expected,
    placeholder: kind.placeholder,
    doc: o.doc,
    aliases: (typeof o.alias === "string" ? [o.alias] : (o.alias ?? [])).map((name) => name.replace(/^--?/, "")),
    env: o.env ?? [],
    default: o.default,
    optional,
    parse: (written, below) => (optional && written === "" ? undefined : kind.parse(written, below)),
    parseItems: kind.parseItems,
    print: (value) => (value === undefined ? "unset" : kind.print(value)),
  };
  return built as Option<Maybe<T, O>>;
}

interface AddressOptions extends Common {
  readonly default?: string;
}

/**
 * "host:port" with a port from 0 to 65535; an IPv6 host stands in brackets. A bare port keeps the host of the source
 * below it, which is what makes `--port` a short name of a whole address.
 */
export function address<const O extends AddressOptions>(o: O): Option<Maybe<string, O>> {
  return option<string, O>(o, {
    kind: "address",
    expected: "host:port, with a port from 0 to 65535",
    placeholder: "HOST:PORT",
    parse(written, below) {
      const host = (below ?? o.default ?? "127.0.0.1:0").replace(/:\d+$/, "");
      const whole = /^\d+$/.test(written) ? `${host}:${written}` : written;
      const port = /^(?:\[[0-9a-fA-F:.%]+\]|[^\s:/[\]]+):(\d+)$/.exec(whole)?.[1];
      if (port === undefined) throw new Error("it is not an address");
      if (Number(port) > 65_535) throw new Error("the port is too large");
      return whole;
    },
    print: (value) => value,
  });
}

interface NumberOptions extends Common {
  readonly default?: number;
  readonly min?: number;
  readonly max?: number;
  readonly unit?: string;
}

function numeric<O extends NumberOptions>(o: O, whole: boolean): Option<Maybe<number, O>> {
  const { min = -Infinity, max = Infinity, unit } = o;
  const range =
    min > -Infinity && max < Infinity
      ? ` from ${min} to ${max}`
      : min > -Infinity
        ? ` of at least ${min}`
        : max < Infinity
          ? ` of at most ${max}`
          : "";
  return option<number, O>(o, {
    kind: whole ? "integer" : "number",
    expected: `${whole ? "an integer" : "a number"}${range}${unit === undefined ? "" : ` (${unit})`}`,
    placeholder: (unit ?? "N").toUpperCase().replace(/[^A-Z0-9]+/g, "_"),
    parse(written) {
      const value = Number(written);
      const formed = whole ? /^[+-]?\d+$/.test(written) : /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(written);
      if (!formed || !(whole ? Number.isSafeInteger(value) : Number.isFinite(value))) {
        throw new Error(`it is not ${whole ? "an integer" : "a number"}`);
      }
      if (value < min) throw new Error("it is too small");
      if (value > max) throw new Error("it is too large");
      return value;
    },
    print: (value) => (unit === undefined ? String(value) : `${value} ${unit}`),
  });
}

/** A whole number that a double holds exactly. `min` and `max` belong to the range. */
export function integer<const O extends NumberOptions>(o: O): Option<Maybe<number, O>> {
  return numeric(o, true);
}

/** A finite number. `min` and `max` belong to the range. */
export function number<const O extends NumberOptions>(o: O): Option<Maybe<number, O>> {
  return numeric(o, false);
}

interface BooleanOptions extends Common {
  readonly default?: boolean;
}

/** `--key`, `--no-key`, `--key=false`. */
export function boolean<const O extends BooleanOptions>(o: O): Option<Maybe<boolean, O>> {
  return option<boolean, O>(o, {
    kind: "boolean",
    expected: "true or false",
    placeholder: "",
    parse(written) {
      if (/^(true|1|yes|on)$/i.test(written)) return true;
      if (/^(false|0|no|off)$/i.test(written)) return false;
      throw new Error("it is neither true nor false");
    },
    print: String,
  });
}

interface ChoiceOptions<T extends string> extends Common {
  readonly default?: T;
}

/** One of `values`. */
export function choice<const T extends string, const O extends ChoiceOptions<NoInfer<T>>>(
  values: readonly T[],
  o: O,
): Option<Maybe<T, O>> {
  return option<T, O>(o, {
    kind: "choice",
    expected: `one of ${values.join(", ")}`,
    placeholder: values.join("|"),
    parse(written) {
      const value = values.find((candidate) => candidate === written);
      if (value === undefined) throw new Error("it is none of them");
      return value;
    },
    print: (value) => value,
  });
}

interface TextOptions extends Common {
  readonly default?: string;
}

export function text<const O extends TextOptions>(o: O): Option<Maybe<string, O>> {
  return option<string, O>(o, {
    kind: "text",
    expected: "text",
    placeholder: "TEXT",
    parse: (written) => written,
    print: (value) => (value === "" ? "(empty)" : value),
  });
}

/** Printed as `set` or `unset` and never otherwise; "" when it isn't set. */
export function secret<const O extends Omit<Common, "optional">>(o: O): Option<string> {
  return option<string, O & { readonly default: string; readonly optional: false }>(
    { ...o, default: "", optional: false },
    {
      kind: "secret",
      expected: "text",
      placeholder: "SECRET",
      parse: (written) => written,
      print: (value) => (value === "" ? "unset" : "set"),
    },
  );
}

interface ListOptions extends Common {
  readonly default?: readonly string[];
}

/** A flag that may be given again and again, a comma-separated variable, a JSON array. The default default is empty. */
export function list(o: ListOptions): Option<readonly string[]> {
  return option<readonly string[], ListOptions & { readonly optional?: false }>(
    { ...o, default: o.default ?? [], optional: false },
    {
      kind: "list",
      expected: "a list of texts",
      placeholder: "TEXT",
      parse: split,
      // Whole: a text may hold commas.
      parseItems: (items) => items,
      print: printList,
    },
  );
}

/** Addresses as `address` takes them, with commas between, in a repeated flag, or both. */
export function addresses(o: ListOptions): Option<readonly string[]> {
  const one = address({ doc: o.doc });
  const parse = (written: string, below: readonly string[] | undefined): readonly string[] =>
    split(written).map((item) => one.parse(item, below?.[0]));
  return option<readonly string[], ListOptions & { readonly optional?: false }>(
    { ...o, default: o.default ?? [], optional: false },
    {
      kind: "list",
      expected: `${one.expected}, or several of them`,
      placeholder: "HOST:PORT",
      parse,
      parseItems: (items, below) => items.flatMap((item) => parse(item, below)),
      print: printList,
    },
  );
}

function split(written: string): readonly string[] {
  return written
    .split(",")
    .map((item) => item.trim())
    .filter((item) => item !== "");
}

function printList(value: readonly string[]): string {
  return value.length === 0 ? "none" : value.join(", ");
}
