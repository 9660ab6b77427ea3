// The nixl connector as vLLM 0.32 shows it: the prefill engine keeps finished blocks under a lease and
// returns `kv_transfer_params`; the decode engine gets them, reads the blocks and reports when it is done.
// Nothing ties the KV to the prompt: other parameters of the same size give 200 and another text, and
// parameters that do not fit kill the engine, unless the fault "tame" is set.
import { randomBytes, randomUUID } from "node:crypto";
import { joinAddress, splitAddress } from "../../common/address.ts";
import { kvFailure, type Arrival, type Connector, type Fetched } from "./connector.ts";
import { NixlBlocks, type NixlBlocksOptions } from "./nixl-blocks.ts";
import { NixlPuller, type Remote } from "./nixl-pull.ts";
import { listenForKv, type Reply } from "./sockets.ts";
import { blockMessages, parseJson, type KvMessage } from "./wire.ts";

export interface NixlOptions extends NixlBlocksOptions {
  readonly handshakeTimeoutMs: number;
}

export async function startNixl(options: NixlOptions): Promise<Connector> {
  const { model, faults, clock, metrics } = options;
  const engineId = randomUUID();
  const blocks = new NixlBlocks(options);
  let sentBytes = 0;

  const onMessage = (message: KvMessage, reply: Reply): void => {
    if (faults.take("silent-kv") !== null) return;
    if (message.type === "HELLO") {
      const modelHash = faults.take("wrong-model") === null ? model.modelHash : "another";
      reply(["FACTS", message.id, JSON.stringify({ engine_id: engineId, model_hash: modelHash })]);
    } else if (message.type === "PULL") {
      const ids = parseJson(message.rest[0])?.["block_ids"];
      const found = (Array.isArray(ids) ? ids : [])
        .map((id) => blocks.read(Number(id)))
        .filter((block) => block !== null);
      // Copies if a byte will be corrupted: the blocks themselves may be read again.
      const corrupt = faults.take("corrupt-kv") !== null;
      const sent = corrupt ? found.map((block) => Buffer.from(block)) : found;
      for (const frames of blockMessages(message.id, sent, corrupt)) reply(frames);
      for (const block of found) sentBytes += block.length;
      reply(["END", message.id]);
    } else if (message.type === "DONE") {
      blocks.done(message.id);
    }
  };
  const sockets = await listenForKv({ ...options, blockBytes: model.blockSize * model.bytesPerToken }, onMessage);
  const puller = new NixlPuller(sockets, clock, options.handshakeTimeoutMs, model.modelHash);
  const { host, port } = splitAddress(sockets.address);

  const fetch = async (remote: Remote, signal: AbortSignal): Promise<Fetched> => {
    const startMs = clock.nowMs();
    try {
      const received = await puller.pull(remote, signal);
      const bytes = received.reduce((sum, block) => sum + block.length, 0);
      metrics.observe("nixl_xfer_time_seconds", (clock.nowMs() - startMs) / 1000);
      metrics.observe("nixl_post_time_seconds", 0);
      metrics.observe("nixl_bytes_transferred", bytes);
      metrics.observe("nixl_num_descriptors", received.length);
      return { kind: "blocks", blocks: received };
    } catch {
      metrics.failedTransfers++;
      // vLLM's body says no more than this.
      return { kind: "failed", failure: kvFailure(500, "Internal server error") };
    }
  };

  return {
    address: sockets.address,
    arrive(request): Arrival {
      const params = request.kvTransferParams;
      if (params?.["do_remote_prefill"] !== true || request.prompt.length <= 1) return { kind: "compute" };
      const remote = remoteOf(params);
      const needed = Math.ceil(request.prompt.length / model.blockSize);
      if (remote !== null && needed <= remote.blockIds.length) {
        const fitting = { ...remote, blockIds: remote.blockIds.slice(0, needed) };
        return { kind: "fetch", fetch: (signal) => fetch(fitting, signal) };
      }
      if (!faults.has("tame")) return { kind: "kill" };
      const why =
        remote === null
          ? "remote_block_ids, remote_engine_id, remote_request_id, remote_host and remote_port are needed"
          : `the prompt needs ${needed} blocks, ${remote.blockIds.length} were prefilled`;
      return { kind: "refuse", failure: kvFailure(400, `kv_transfer_params do not fit: ${why}`, "kv_transfer_params") };
    },
    push: () => null,
    offer(request, kvTokens, cachedTokens) {
      if (request.kvTransferParams?.["do_remote_decode"] !== true) return null;
      const requestId = `${request.id}-${randomBytes(4).toString("hex")}`;
      const blockIds = blocks.lease(requestId, kvTokens);
      if (blockIds === null) return null;
      if (faults.take("drop-kv") !== null) blocks.lose(requestId);
      return {
        do_remote_prefill: true,
        do_remote_decode: false,
        remote_block_ids: [blockIds],
        remote_engine_id: engineId,
        remote_request_id: requestId,
        remote_host: host,
        remote_port: port,
        tp_size: 1,
        dcp_size: 1,
        pp_size: 1,
        remote_num_tokens: kvTokens.length,
        remote_blocks_expiry_time: null,
        transfer_mode: "pull",
        ...(cachedTokens === null ? {} : { remote_prefill_cached_tokens: cachedTokens }),
      };
    },
    release: (id) => blocks.held().filter((held) => held.id.includes(id) && blocks.drop(held.id)).length,
    state: () => ({
      held: blocks.held(),
      leasesExpired: metrics.expiredLeases,
      // Blocks are offered only by a request that runs, and freed by its reader or at the end of their lease.
      lateCount: 0,
      sentBytes,
      receivedBytes: puller.receivedBytes,
    }),
    close() {
      sockets.close();
      blocks.close();
    },
  };
}

/** Null if a field is missing or of another type. */
function remoteOf(params: Readonly<Record<string, unknown>>): Remote | null {
  const { remote_engine_id: engineId, remote_request_id: requestId, remote_host: host, remote_port: port } = params;
  const groups = params["remote_block_ids"];
  const blockIds: unknown = Array.isArray(groups) ? groups[0] : null;
  if (typeof engineId !== "string" || typeof requestId !== "string") return null;
  if (typeof host !== "string" || typeof port !== "number") return null;
  if (!Array.isArray(blockIds) || !blockIds.every((id) => Number.isInteger(id))) return null;
  return { engineId, requestId, address: joinAddress(host, port), blockIds: blockIds as number[] };
}
