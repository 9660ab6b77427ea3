// The p2p-zmq connector: KV is pushed from prefill to decode under the request's id, which names both
// engines as P2P NCCL's ids do. Unlike P2P NCCL it answers every failure with a typed error, unless the
// fault "upstream" makes it fail as vLLM 0.23 does.
import type { SequenceRequest } from "../engine.ts";
import type { FaultBoard } from "../faults.ts";
import { kvFailure, type Arrival, type Connector, type ConnectorOptions } from "./connector.ts";
import { KvPusher } from "./kv-push.ts";
import { KvStore } from "./kv-store.ts";
import { listenForKv, type Reply } from "./sockets.ts";
import { parseBlocks, parseJson, type KvHeader, type KvMessage, type Refusal } from "./wire.ts";

export interface P2pZmqOptions extends ConnectorOptions {
  /** Whether this is the prefill engine; else it decodes. */
  readonly prefills: boolean;
  /** How long a push may take before the prefill request fails. */
  readonly pushTimeoutMs: number;
}

const LIE = "0000000000000000";

// The pairing grammar of vLLM 0.23's P2pNcclConnector (`parse_request_id`): searched anywhere in the
// engine-level id, greedy, so nothing after the decode address may hold a colon followed by digits.
// Canonical: ___prefill_addr_{ip:port}___decode_addr_{ip:port}_{32 hex}
const DECODE_ADDRESS = /___decode_addr_(.*:\d+)/;
const PREFILL_ADDRESS = /___prefill_addr_(.*:\d+)___/;

export async function startP2pZmq(options: P2pZmqOptions): Promise<Connector> {
  const { prefills, model, space, faults } = options;
  const store = new KvStore(options);
  // A prefill engine listens too: its address is half of the id, so the address must be its own.
  const sockets = await listenForKv(
    { ...options, blockBytes: model.blockSize * model.bytesPerToken },
    (message, reply) => {
      if (faults.take("silent-kv") === null) answer(message, reply, store, faults);
    },
  );
  const pusher = new KvPusher(sockets, options.clock, options.pushTimeoutMs);

  const refuse = (status: number, message: string, param: string): Arrival => ({
    kind: "refuse",
    failure: kvFailure(status, message, param),
  });
  const unpaired = (part: string): Arrival => {
    if (faults.has("upstream")) return { kind: "kill" };
    const why = `kv_unpaired: this engine runs p2p-zmq and needs X-Request-Id to hold ${part}`;
    return refuse(400, why, "request_id");
  };
  const arriveAtPrefill = (request: SequenceRequest): Arrival => {
    if (!DECODE_ADDRESS.test(request.id)) return unpaired("___decode_addr_{ip:port}");
    if (request.sampling.maxTokens <= 1) return { kind: "compute" };
    // vLLM's connector fails an assertion here in the second step; the other tokens would be dropped anyway.
    if (faults.has("upstream")) return { kind: "kill" };
    return refuse(400, "a p2p prefill engine computes one token: max_tokens must be 1", "max_tokens");
  };
  const arriveAtDecode = (request: SequenceRequest): Arrival => {
    if (!PREFILL_ADDRESS.test(request.id)) return unpaired("___prefill_addr_{ip:port}___");
    if (store.wasReleased(request.id)) return refuse(500, `kv_released: the KV of ${request.id} was released`, "kv");
    const claimed = store.claim(request.id);
    if (claimed === null) {
      if (faults.has("upstream")) return { kind: "wedge" };
      return refuse(500, `kv_missing: no KV is held under id ${request.id}`, "kv");
    }
    const { header, blocks } = claimed;
    const unfit =
      header.token_count !== request.prompt.length
        ? `the KV has ${header.token_count} tokens, the prompt ${request.prompt.length}`
        : header.prompt_hash !== model.promptHash(request.prompt)
          ? "the KV belongs to another prompt"
          : null;
    // vLLM compares nothing and answers from the wrong KV, so "upstream" accepts the KV.
    if (unfit !== null && !faults.has("upstream")) {
      space.releaseSlot(header.token_count);
      return refuse(500, `kv_mismatch: ${unfit}`, "kv");
    }
    return { kind: "claim", blocks, tokens: header.token_count };
  };

  return {
    address: sockets.address,
    arrive: prefills ? arriveAtPrefill : arriveAtDecode,
    push(request, signal) {
      const address = DECODE_ADDRESS.exec(request.id)?.[1];
      if (!prefills || address === undefined) return null;
      const header: KvHeader = {
        model_hash: faults.take("wrong-model") === null ? model.modelHash : LIE,
        block_size: model.blockSize,
        bytes_per_token: model.bytesPerToken,
        layout: model.layout,
        token_count: request.prompt.length,
        prompt_hash: model.promptHash(request.prompt),
      };
      const corrupt = faults.take("corrupt-kv") !== null;
      return pusher.open(address, { id: request.id, header, corrupt }, signal);
    },
    // How much moved, for the receipt of the request.
    offer: (request) => (prefills ? { kv_bytes: request.prompt.length * model.bytesPerToken } : null),
    release: (id) => store.releaseRequest(id),
    state: () => ({
      held: store.held(),
      leasesExpired: store.leasesExpired,
      lateCount: store.lateCount,
      sentBytes: pusher.sentBytes,
      receivedBytes: store.receivedBytes,
    }),
    close() {
      sockets.close();
      store.close();
    },
  };
}

function answer(message: KvMessage, reply: Reply, store: KvStore, faults: FaultBoard): void {
  const { type, id, rest } = message;
  const settle = (good: string, refusal: Refusal | null): void =>
    reply(refusal === null ? [good, id] : ["REFUSE", id, JSON.stringify(refusal)]);
  if (type === "RESERVE") {
    const header = parseJson(rest[0]);
    settle(
      "GRANT",
      header === null
        ? { reason: "bad_message", message: "RESERVE needs a JSON header" }
        : store.reserve(id, header as unknown as KvHeader),
    );
  } else if (type === "BLOCK") {
    const blocks = parseBlocks(rest);
    if (blocks !== null) store.fill(id, blocks);
  } else if (type === "COMMIT") {
    const refusal = store.commit(id);
    if (refusal === null && faults.take("drop-kv") !== null) store.release(id);
    settle("ACK", refusal);
  } else if (type === "RELEASE") {
    store.release(id);
  }
}
