// Why a request was not admitted. The failure's code doesn't tell all reasons apart: three of them are 429.

export const REFUSALS = [
  /** The queue is full. */
  "queue_full",
  /** A request of a tenant with fewer waiting requests, or of its own tenant with a better priority, displaced it. */
  "displaced",
  /** The estimated wait was longer than its deadline allowed. */
  "deadline_foreseen",
  /** Its deadline passed while it waited. */
  "deadline_passed",
  /** queue.timeout_ms was over. */
  "queue_timeout",
  /** No instance could serve its model. */
  "no_instance",
  /** Its client left while it waited. */
  "client_left",
  /** The bodies of all requests fill body.total_bytes. */
  "body_memory",
  /** It was strict, and the registry was away. */
  "stale_registry",
] as const;

export type Refusal = (typeof REFUSALS)[number];
