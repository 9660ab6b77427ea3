// The two connectors that pair by request id: P2P NCCL of vLLM up to 0.23, and `p2p-zmq`, its counterpart in Tandem's
// own engines. Prefill pushes the KV to the address in the id; decode finds it under the same id.
import type { Connector, EngineRequest, LegSpec } from "./connector.ts";
import { decodeBody, prefillBody } from "./leg-body.ts";
import { pairedId } from "./paired-id.ts";

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
    headers: { "content-type": "application/json" },
    body: Buffer.from(JSON.stringify({ request_id: pairedId(context) })),
  }),
};

function paired(context: LegSpec, body: Buffer): EngineRequest {
  return {
    path: context.path,
    headers: { "content-type": "application/json", "x-request-id": pairedId(context) },
    body,
  };
}
