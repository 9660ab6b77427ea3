// A client's wishes for how its request is served, in headers that go no further than the router.
import { ServiceError } from "../../common/errors.ts";
import { REQUEST_HEADERS } from "./headers.ts";

export interface Scheduling {
  /** Lower is sooner, as in vLLM. Undefined: as the body's `priority` has it. */
  readonly priority?: number | undefined;
  /** Undefined: as the body's `user` has it. */
  readonly tenant?: string | undefined;
  /** How long the caller waits for the end of the answer. */
  readonly timeoutMs?: number | undefined;
  /** Return an error instead of using a fallback. */
  readonly strict?: boolean | undefined;
}

export const PRIORITY_LIMIT = 100;
/** Of a tenant's name. */
const NAME_LIMIT = 128;
const TIMEOUT_LIMIT_MS = 86_400_000;

/**
 * @param header By name, in lower case.
 * @throws ServiceError `invalid_request`
 */
export function schedulingOf(header: (name: string) => string | undefined): Scheduling {
  const priority = integer(header, REQUEST_HEADERS.priority.name, -PRIORITY_LIMIT, PRIORITY_LIMIT);
  const timeoutMs = integer(header, REQUEST_HEADERS.timeout.name, 1, TIMEOUT_LIMIT_MS);
  // An empty name is none.
  const tenant = header(REQUEST_HEADERS.tenant.name)?.slice(0, NAME_LIMIT) || undefined;
  const strict = header(REQUEST_HEADERS.strict.name);
  if (strict !== undefined && strict !== "true" && strict !== "false")
    throw refused(REQUEST_HEADERS.strict.name, "true or false");
  return { priority, timeoutMs, tenant, strict: strict === undefined ? undefined : strict === "true" };
}

/** A priority of the body, which vLLM takes without bounds; ours decides only the order in the queue. */
export function clampedPriority(priority: number): number {
  return Math.max(-PRIORITY_LIMIT, Math.min(PRIORITY_LIMIT, priority));
}

function integer(
  header: (name: string) => string | undefined,
  name: string,
  min: number,
  max: number,
): number | undefined {
  const text = header(name);
  if (text === undefined) return undefined;
  const value = Number(text);
  if (!/^-?\d{1,9}$/.test(text) || value < min || value > max) throw refused(name, `an integer from ${min} to ${max}`);
  return value;
}

function refused(name: string, expected: string): ServiceError {
  return new ServiceError("invalid_request", `The header ${name} must be ${expected}.`, { param: name });
}
