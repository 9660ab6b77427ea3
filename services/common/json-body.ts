// A byte-level view of a JSON object, for changing some members of a request and leaving all other bytes alone: a
// parse and re-print would change large integers, key order and number formats. Knows nothing of LLMs.

/** One member of an object. Offsets are bytes into the buffer; ends are exclusive. */
export interface Member {
  /** Decoded: `"\u006b"` is `k`. */
  readonly key: string;
  /** Offset of the key's opening quote. */
  readonly start: number;
  readonly valueStart: number;
  readonly valueEnd: number;
}

const QUOTE = 0x22;
const BACKSLASH = 0x5c;
const COMMA = 0x2c;
const COLON = 0x3a;
const OPEN_BRACE = 0x7b;
const CLOSE_BRACE = 0x7d;
const OPEN_BRACKET = 0x5b;
const CLOSE_BRACKET = 0x5d;

/** 1 for the bytes of numbers, true, false and null. */
const PLAIN = Uint8Array.from({ length: 256 }, (_, byte) => Number(/[-+.0-9Ea-z]/.test(String.fromCharCode(byte))));

/** Up to this length a loop finds a string's end faster than `indexOf` does. */
const SHORT_STRING = 24;

/**
 * Members of the top-level object in their order, duplicates included. Values are delimited, not checked.
 *
 * @throws SyntaxError with the position when the text is not an object.
 */
export function scanObject(json: Buffer): Member[] {
  const members: Member[] = [];
  let at = skipSpace(json, 0);
  if (json[at] !== OPEN_BRACE) throw unexpected(json, at, "an object");
  at = skipSpace(json, at + 1);
  if (json[at] === CLOSE_BRACE) {
    endOfText(json, at + 1);
    return members;
  }
  for (;;) {
    if (json[at] !== QUOTE) throw unexpected(json, at, "a key");
    const start = at;
    const keyEnd = endOfString(json, start);
    at = skipSpace(json, keyEnd);
    if (json[at] !== COLON) throw unexpected(json, at, '":"');
    const valueStart = skipSpace(json, at + 1);
    const valueEnd = endOfValue(json, valueStart);
    members.push({ key: decodeKey(json, start, keyEnd), start, valueStart, valueEnd });
    at = skipSpace(json, valueEnd);
    if (json[at] === CLOSE_BRACE) break;
    if (json[at] !== COMMA) throw unexpected(json, at, '"," or "}"');
    at = skipSpace(json, at + 1);
  }
  endOfText(json, at + 1);
  return members;
}

/**
 * Elements of the array value that fills [start, end).
 *
 * @throws SyntaxError when it is not an array.
 */
export function scanArray(json: Buffer, start: number, end: number): { start: number; end: number }[] {
  const elements: { start: number; end: number }[] = [];
  if (json[start] !== OPEN_BRACKET) throw unexpected(json, start, "an array");
  let at = skipSpace(json, start + 1);
  if (json[at] === CLOSE_BRACKET) return elements;
  while (at < end) {
    const valueEnd = endOfValue(json, at);
    elements.push({ start: at, end: valueEnd });
    at = skipSpace(json, valueEnd);
    if (json[at] === CLOSE_BRACKET) return elements;
    if (json[at] !== COMMA) throw unexpected(json, at, '"," or "]"');
    at = skipSpace(json, at + 1);
  }
  throw unexpected(json, end, '"]"');
}

/**
 * `json` with some members changed and all other bytes as they were. A key that occurs twice is changed twice.
 *
 * @param members What `scanObject(json)` returned.
 * @param changes By key: raw JSON replaces the value, or appends the member; `undefined` removes it.
 */
export function splice(
  json: Buffer,
  members: readonly Member[],
  changes: ReadonlyMap<string, string | Buffer | undefined>,
): Buffer {
  const pieces: Buffer[] = [];
  let copied = 0;
  let kept = false;
  const edit = (start: number, end: number, replacement?: string | Buffer): void => {
    if (start > copied) pieces.push(json.subarray(copied, start));
    if (replacement !== undefined)
      pieces.push(typeof replacement === "string" ? Buffer.from(replacement) : replacement);
    copied = end;
  };

  const present = new Set<string>();
  members.forEach((member, index) => {
    present.add(member.key);
    const change = changes.get(member.key);
    if (change !== undefined) edit(member.valueStart, member.valueEnd, change);
    if (change !== undefined || !changes.has(member.key)) {
      kept = true;
      return;
    }
    // A removed member takes one comma with it: the one before it or, with nothing left before it, the one after it.
    const next = members[index + 1];
    if (kept) edit(members[index - 1]!.valueEnd, member.valueEnd);
    else edit(member.start, next === undefined ? member.valueEnd : next.start);
  });

  const appendAt = members.at(-1)?.valueEnd ?? json.indexOf(OPEN_BRACE) + 1;
  for (const [key, value] of changes) {
    if (value === undefined || present.has(key)) continue;
    edit(appendAt, appendAt, `${kept ? "," : ""}${JSON.stringify(key)}:`);
    edit(appendAt, appendAt, value);
    kept = true;
  }
  pieces.push(json.subarray(copied));
  return Buffer.concat(pieces);
}

/**
 * `parsed` with the keys that the text really has, in nested objects of the first level too. V8 of Node 24 sometimes
 * decodes an escaped key as another one (24.21.0: the key `\"` as `\\`, once V8 has seen that), which could hide a
 * field from a check by its name. If no key is written with an escape, as in nearly all bodies, `parsed` is returned
 * unchanged.
 *
 * @param parsed The result of JSON.parse for `json`.
 * @param members What `scanObject(json)` returned, without duplicates.
 */
export function withTrueKeys(
  parsed: Readonly<Record<string, unknown>>,
  json: Buffer,
  members: readonly Member[],
): Readonly<Record<string, unknown>> {
  const doubtful = members.filter((member) => hasEscape(json, member) || json[member.valueStart] === OPEN_BRACE);
  if (doubtful.length === 0) return parsed;
  const values = new Map(Object.entries(parsed));
  if (doubtful.some((member) => hasEscape(json, member))) {
    values.clear();
    for (const { key, valueStart, valueEnd } of members)
      values.set(key, JSON.parse(json.toString("utf8", valueStart, valueEnd)));
  }
  for (const { key, valueStart, valueEnd } of doubtful) {
    const inner = json.subarray(valueStart, valueEnd);
    if (inner[0] !== OPEN_BRACE || !inner.includes(BACKSLASH)) continue;
    const entries = scanObject(inner).map((member) => [
      member.key,
      JSON.parse(inner.toString("utf8", member.valueStart, member.valueEnd)),
    ]);
    values.set(key, Object.fromEntries(entries));
  }
  return Object.fromEntries(values);
}

function hasEscape(json: Buffer, { key, start }: Member): boolean {
  return json.toString("utf8", start + 1, start + 1 + Buffer.byteLength(key)) !== key;
}

/**
 * The number of fields, objects and lists at any depth, which decides how long a parse takes. Stops counting just above
 * `limit`, and checks nothing.
 */
export function countParts(json: Buffer, limit: number): number {
  let parts = 0;
  for (let at = 0; at < json.length && parts <= limit; ) {
    const byte = json[at];
    if (byte === QUOTE) {
      const end = closingQuote(json, at);
      if (end < 0) break;
      at = end + 1;
      continue;
    }
    if (byte === COLON || byte === OPEN_BRACE || byte === OPEN_BRACKET) parts++;
    at++;
  }
  return parts;
}

/** A key that occurs more than once; parsers disagree about which one counts. */
export function duplicateKey(members: readonly Member[]): string | undefined {
  const seen = new Set<string>();
  for (const { key } of members) {
    if (seen.has(key)) return key;
    seen.add(key);
  }
  return undefined;
}

function skipSpace(json: Buffer, from: number): number {
  let at = from;
  for (let byte = json[at]; byte === 0x20 || byte === 0x0a || byte === 0x0d || byte === 0x09; byte = json[at]) at++;
  return at;
}

/** Just behind the closing quote of the string that opens at `open`. */
function endOfString(json: Buffer, open: number): number {
  const quote = closingQuote(json, open);
  if (quote < 0) throw unexpected(json, json.length, "the end of a string");
  return quote + 1;
}

/** Where the string that opens at `open` ends; -1 if it doesn't. */
function closingQuote(json: Buffer, open: number): number {
  const nearby = Math.min(json.length, open + SHORT_STRING);
  let at = open + 1;
  while (at < nearby) {
    const byte = json[at];
    if (byte === QUOTE) return at;
    at += byte === BACKSLASH ? 2 : 1;
  }
  // `at` is behind whole characters and escapes here, so a run of backslashes before a quote begins at `at` or later.
  const searchedFrom = at;
  for (;;) {
    const quote = json.indexOf(QUOTE, at);
    if (quote < 0) return -1;
    let run = quote;
    while (run > searchedFrom && json[run - 1] === BACKSLASH) run--;
    // An odd number of backslashes escapes the quote.
    if ((quote - run) % 2 === 0) return quote;
    at = quote + 1;
  }
}

/** Just behind the value that begins at `start`. */
function endOfValue(json: Buffer, start: number): number {
  const first = json[start];
  if (first === QUOTE) return endOfString(json, start);
  let at = start;
  if (first === OPEN_BRACE || first === OPEN_BRACKET) {
    let depth = 0;
    while (at < json.length) {
      const byte = json[at];
      if (byte === QUOTE) {
        at = endOfString(json, at);
        continue;
      }
      at++;
      if (byte === OPEN_BRACE || byte === OPEN_BRACKET) depth++;
      else if ((byte === CLOSE_BRACE || byte === CLOSE_BRACKET) && --depth === 0) return at;
    }
    throw unexpected(json, at, first === OPEN_BRACE ? '"}"' : '"]"');
  }
  while (PLAIN[json[at]!] === 1) at++;
  if (at === start) throw unexpected(json, at, "a value");
  return at;
}

function decodeKey(json: Buffer, start: number, end: number): string {
  const raw = json.toString("utf8", start, end);
  return raw.includes("\\") ? (JSON.parse(raw) as string) : raw.slice(1, -1);
}

function endOfText(json: Buffer, from: number): void {
  const at = skipSpace(json, from);
  if (at < json.length) throw unexpected(json, at, "the end of the text");
}

function unexpected(json: Buffer, at: number, expected: string): SyntaxError {
  const found = at < json.length ? JSON.stringify(json.toString("utf8", at, at + 1)) : "the end";
  return new SyntaxError(`expected ${expected} at position ${at}, found ${found}`);
}
