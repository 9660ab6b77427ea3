// Why a request got no place to run. The code of its failure doesn't tell them apart: three of them are 429.

export const REFUSALS = [
  /** As many wait as may. */
  "queue_full",
  /** It gave its place in the full queue to a tenant that has fewer waiting, or to its own tenant's better priority. */
  "displaced",
  /** The wait that was foreseen was longer than it had. */
  "deadline_foreseen",
  /** It had no time left while it waited. */
  "deadline_passed",
  /** queue.timeout_ms was over. */
  "queue_timeout",
  /** Nothing could serve its model. */
  "no_instance",
  /** Its client left while it waited. */
  "client_left",
  /** The bodies of all requests fill body.total_bytes. */
  "body_memory",
  /** It was strict, and the registry was away. */
  "stale_registry",
] as const;

export type Refusal = (typeof REFUSALS)[number];
