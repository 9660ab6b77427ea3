// The request id of the P2P connectors: it carries both engines' KV addresses.
// Source: vLLM 0.23.0, p2p_nccl_connector.py, parse_request_id. Its patterns are greedy searches, so nothing after the
// decode address may look like `:digits`; the leg id is hex and can't.
import assert from "node:assert/strict";
import type { LegSpec } from "./connector.ts";

const LEG_ID = /^[0-9a-f]{32}$/;
// IPv4 only: vLLM builds endpoints without brackets, so an IPv6 address can't be dialled.
const ADDRESS = /^[A-Za-z0-9.-]+:\d{1,5}$/;

/** `X-Request-Id` for both engines of a pair. */
export function pairedId(context: Pick<LegSpec, "legId" | "prefillKvAddress" | "decodeKvAddress">): string {
  assert.match(context.legId, LEG_ID);
  assert.match(context.prefillKvAddress, ADDRESS);
  assert.match(context.decodeKvAddress, ADDRESS);
  return `___prefill_addr_${context.prefillKvAddress}___decode_addr_${context.decodeKvAddress}_${context.legId}`;
}
