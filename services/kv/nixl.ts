// NIXL, pull mode: the prefill engine keeps the KV and reports its address; the decode engine fetches it.
// Source: vLLM 0.32, kv_connector/v1/nixl/, and recorded traffic. The parameters are opaque here: vLLM adds fields from
// release to release, and a number might change on its way through a double.
import { ServiceError } from "../common/errors.ts";
import type { Connector, EngineRequest, LegSpec } from "./connector.ts";
import { decodeBody, prefillBody } from "./leg-body.ts";

const ASK_TO_KEEP =
  '{"do_remote_decode":true,"do_remote_prefill":false,"remote_engine_id":null,' +
  '"remote_block_ids":null,"remote_host":null,"remote_port":null}';

/**
 * Keys that the decode engine needs in vLLM's KV parameters. Without them the engine dies of an assertion (vLLM 0.32), so
 * both sides check for them first.
 */
const REQUIRED = ["remote_engine_id", "remote_request_id", "remote_block_ids", "remote_host", "remote_port"];

export const nixl: Connector = {
  traits: {
    name: "nixl",
    decodeFirst: false,
    pairedId: false,
    prefillCancellable: true,
    abandoned: "lease",
    servesUnpaired: true,
    // vLLM 0.23 first cuts all KV of the partner into pieces, one per block, layer and K or V, at 0.56 us each: 11.7 s
    // were measured at 80 GiB of KV, 18.7 s are expected at 128 GiB. The bound is three times that.
    firstTransferMs: 60_000,
    wedgedByPartner: false,
  },
  prefillRequest: (context) => request(context, prefillBody(context, ASK_TO_KEEP)),
  ticket(answer) {
    const params = (answer as { kv_transfer_params?: unknown } | null)?.kv_transfer_params;
    const missing = missingParams(params);
    if (missing.length === 0) return JSON.stringify(params);
    throw new ServiceError("kv_transfer_failed", "The prefill engine answered without keeping the KV cache.", {
      cause: new Error(`kv_transfer_params lacks ${missing.join(", ")}`),
    });
  },
  fetchedFrom: (ticket) => String((JSON.parse(ticket) as { remote_engine_id?: unknown }).remote_engine_id),
  decodeRequest(context, ticket) {
    const missing = missingParams(JSON.parse(ticket));
    if (missing.length > 0) throw new TypeError(`the ticket lacks ${missing.join(", ")}`);
    return request(context, decodeBody(context, ticket));
  },
  unpairedRequest: (context) => request(context, decodeBody(context)),
  settleRequest: () => undefined,
};

/** All of the required keys if `params` is not an object. */
function missingParams(params: unknown): readonly string[] {
  return REQUIRED.filter((key) => (params as Record<string, unknown> | null | undefined)?.[key] == null);
}

// Both engines use the leg id, so that their logs can be read side by side.
function request(context: LegSpec, body: Buffer): EngineRequest {
  return { path: context.path, headers: { "x-request-id": context.legId }, body };
}
