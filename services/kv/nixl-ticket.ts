// What the decode engine must find in vLLM's KV parameters: without these it ends on an assertion (vLLM 0.32), so they
// are looked for before it sees them, on both sides.

const REQUIRED = ["remote_engine_id", "remote_request_id", "remote_block_ids", "remote_host", "remote_port"];

/** The keys that `params` lacks; all of them where it is no object. */
export function missingParams(params: unknown): readonly string[] {
  if (typeof params !== "object" || params === null || Array.isArray(params)) return REQUIRED;
  return REQUIRED.filter((key) => (params as Record<string, unknown>)[key] == null);
}

/** @throws TypeError or SyntaxError for a ticket that no prefill engine can have written. */
export function checkTicket(ticket: string): string {
  const missing = missingParams(JSON.parse(ticket));
  if (missing.length > 0) throw new TypeError(`the ticket lacks ${missing.join(", ")}`);
  return ticket;
}
