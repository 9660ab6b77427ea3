// The two connectors that pair by request id: P2P NCCL of vLLM up to 0.23, and `p2p-zmq`, its counterpart in Tandem's
// own engines. Prefill pushes the KV to the address in the id; decode finds it under the same id.
import assert from "node:assert/strict";
import type { Connector, EngineRequest, LegSpec } from "./connector.ts";
import { decodeBody, prefillBody } from "./leg-body.ts";

export const LEG_ID = /^[0-9a-f]{32}$/;
/** IPv4 or a name: vLLM builds endpoints without brackets, so an IPv6 address can't be dialled. */
export const KV_ADDRESS = /^[A-Za-z0-9.-]+:\d{1,5}$/;

export const p2pNccl: Connector = {
  traits: {
    name: "p2p-nccl",
    decodeFirst: true,
    pairedId: true,
    // vLLM drops an aborted prefill only if it had not started; after a later abort it is unknown what was sent.
    prefillCancellable: false,
    abandoned: "drain",
    servesUnpaired: false,
    // ncclCommInitRank, within the first prefill; under a second in all measurements.
    firstTransferMs: 10_000,
    // Seen on vLLM 0.23: after one decode engine was killed, prefill stopped answering, also for live decode engines.
    wedgedByPartner: true,
  },
  prefillRequest: (context) => paired(context, prefillBody(context)),
  ticket: () => "",
  fetchedFrom: () => undefined,
  decodeRequest: (context) => paired(context, decodeBody(context)),
  // vLLM's connector parses the id of every request, and an id without addresses kills it.
  unpairedRequest: () => undefined,
  // KV that no decode leg claims stays in the decode engine's memory permanently; a one-token leg claims it.
  settleRequest: (context) => paired(context, prefillBody(context)),
};

export const p2pZmq: Connector = {
  ...p2pNccl,
  traits: { ...p2pNccl.traits, name: "p2p-zmq", abandoned: "release", firstTransferMs: 0, wedgedByPartner: false },
  settleRequest: (context) => ({
    path: "/kv/release",
    headers: {},
    body: Buffer.from(JSON.stringify({ request_id: pairedId(context) })),
  }),
};

function paired(context: LegSpec, body: Buffer): EngineRequest {
  return { path: context.path, headers: { "x-request-id": pairedId(context) }, body };
}

/**
 * The request id for both engines of a pair.
 * Source: vLLM 0.23.0, p2p_nccl_connector.py, parse_request_id. Its patterns are greedy searches, so nothing after the
 * decode address may look like `:digits`; the leg id is hex and can't.
 */
function pairedId({ legId, prefillKvAddress, decodeKvAddress }: LegSpec): string {
  assert.match(legId, LEG_ID);
  assert.match(prefillKvAddress, KV_ADDRESS);
  assert.match(decodeKvAddress, KV_ADDRESS);
  return `___prefill_addr_${prefillKvAddress}___decode_addr_${decodeKvAddress}_${legId}`;
}
