// Merges several legs of one request into one answer (n > 1, prompt lists). Choice index = prompt index x n + sample
// index; each leg already writes its own index. Usage is counted as a single vLLM counts it: the prompt once for all
// its samples, and the sum of the answers of all choices.
// Bodies are spliced, not re-printed, so that logprobs and token ids keep the digits that the engine wrote.
import { ServiceError } from "../../common/errors.ts";
import { scanArray, scanObject, splice, type Member } from "../../common/json-body.ts";

/** Can't occur inside a text, because quotes in JSON strings are escaped. */
const NO_CHOICES = Buffer.from('"choices":[]');
const EVENT_END = "\n\n";
const DATA = "data: ";

/**
 * Returns the leg's own usage chunk, a whole event, as a view of `events`; undefined if it is not among them. It is the
 * last event of a stream, so it is the last of `events`.
 */
export function usageChunkOf(events: Buffer): Buffer | undefined {
  if (!events.includes(NO_CHOICES)) return undefined;
  const before = events.lastIndexOf(EVENT_END, events.length - EVENT_END.length - 1);
  const last = before < 0 ? events : events.subarray(before + EVENT_END.length);
  return last.includes(NO_CHOICES) ? last : undefined;
}

/**
 * Merges the usage chunks of the legs into the chunk of the whole answer.
 *
 * @param chunks Usage chunks of the legs, by choice index.
 * @param choices n: legs of one prompt.
 */
export function mergeUsageEvents(chunks: readonly Buffer[], choices: number): Buffer {
  const bodies = chunks.map((chunk) => Buffer.from(chunk.toString().trim().slice(DATA.length)));
  const merged = withUsage(bodies, choices, new Map());
  return Buffer.concat([Buffer.from(DATA), merged, Buffer.from(EVENT_END)]);
}

/**
 * Merges the JSON bodies of the legs: all choices in the order of their index, the summed usage, and every other member
 * from the first leg.
 *
 * @param bodies Bodies of the legs, by choice index.
 */
export function mergeBodies(bodies: readonly Buffer[], choices: number): Buffer {
  const elements = bodies.flatMap((body) =>
    readable("choices", () => {
      const member = memberOf(body, "choices");
      if (member === undefined) throw unreadable("choices");
      return scanArray(body, member.valueStart, member.valueEnd).map(({ start, end }) =>
        body.toString("utf8", start, end),
      );
    }),
  );
  return withUsage(bodies, choices, new Map([["choices", `[${elements.join(",")}]`]]));
}

type Figures = Record<string, unknown>;

function withUsage(bodies: readonly Buffer[], choices: number, changes: Map<string, string>): Buffer {
  const usages = bodies.map((body) => {
    const member = readable("usage", () => memberOf(body, "usage"));
    const value: unknown =
      member === undefined ? undefined : JSON.parse(body.toString("utf8", member.valueStart, member.valueEnd));
    return typeof value === "object" && value !== null ? (value as Figures) : undefined;
  });
  // An engine that counts nothing for one leg can't be summed up; the first leg's absence stands.
  if (usages.every((usage) => usage !== undefined)) changes.set("usage", JSON.stringify(sumUsage(usages, choices)));
  const [first] = bodies;
  if (first === undefined) throw unreadable("choices");
  return splice(first, scanObject(first), changes);
}

/** Sums the usage of the legs. The result has the first leg's keys in the first leg's order. */
export function sumUsage(usages: readonly Figures[], choices: number): Figures {
  // A prompt is counted with its first sample, because a single engine would have run only that prefill.
  const perPrompt = usages.filter((_, index) => index % choices === 0);
  const sum: Figures = {};
  for (const key of Object.keys(usages[0] ?? {})) {
    sum[key] = add((key.startsWith("prompt_") ? perPrompt : usages).map((usage) => usage[key]));
  }
  if (typeof sum["prompt_tokens"] === "number" && typeof sum["completion_tokens"] === "number") {
    sum["total_tokens"] = sum["prompt_tokens"] + sum["completion_tokens"];
  }
  return sum;
}

/** Sums numbers, and objects of numbers by key. Of other values it keeps the first. */
function add(values: readonly unknown[]): unknown {
  const present = values.filter((value) => value !== null && value !== undefined);
  if (present.length === 0) return values[0];
  if (present.every((value) => typeof value === "number"))
    return present.reduce((sum: number, value) => sum + (value as number), 0);
  if (present.every((value) => typeof value === "object" && !Array.isArray(value))) {
    const objects = present as Figures[];
    const keys = new Set(objects.flatMap((object) => Object.keys(object)));
    return Object.fromEntries([...keys].map((key) => [key, add(objects.map((object) => object[key]))]));
  }
  return present[0];
}

function memberOf(body: Buffer, key: string): Member | undefined {
  return scanObject(body).find((member) => member.key === key);
}

function readable<T>(key: string, read: () => T): T {
  try {
    return read();
  } catch (cause) {
    throw unreadable(key, cause);
  }
}

function unreadable(key: string, cause?: unknown): ServiceError {
  return new ServiceError("engine_failed", `A part of the answer can't be read: it has no ${key}.`, { cause });
}
