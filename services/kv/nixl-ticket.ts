// Keys that the decode engine needs in vLLM's KV parameters. Without them the engine dies of an assertion (vLLM 0.32),
// so both sides check for them first.

const REQUIRED = ["remote_engine_id", "remote_request_id", "remote_block_ids", "remote_host", "remote_port"];

/** The keys that `params` lacks; all of them if it is not an object. */
export function missingParams(params: unknown): readonly string[] {
  if (typeof params !== "object" || params === null || Array.isArray(params)) return REQUIRED;
  return REQUIRED.filter((key) => (params as Record<string, unknown>)[key] == null);
}

/** @throws TypeError or SyntaxError for a ticket that no prefill engine could have written. */
export function checkTicket(ticket: string): string {
  const missing = missingParams(JSON.parse(ticket));
  if (missing.length > 0) throw new TypeError(`the ticket lacks ${missing.join(", ")}`);
  return ticket;
}
