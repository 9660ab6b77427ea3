// Starts an embedded engine: the model's file, its worker, its connector, its HTTP server.
import { totalmem } from "node:os";
import { engineClock } from "../clock.ts";
import { FaultBoard, parseFault, type Fault } from "../faults.ts";
import type { Connector } from "../kv/connector.ts";
import type { ConnectorName, EngineRole } from "../roles.ts";
import { serveEngine, type RunningEngine } from "../serve-engine.ts";
import { LlamaEngine } from "./llama-engine.ts";
import { openModelFile } from "./model-file.ts";
import { kvBlockBytes, KV_BLOCK_TOKENS, type LlamaShape } from "./shape.ts";
import { startLlamaWorker } from "./worker/start-worker.ts";

export interface LlamaEngineStart {
  /** A GGUF file, as a path or as its bytes. */
  readonly model: string | Uint8Array;
  /** Loopback: nothing guards an engine. */
  readonly host?: string;
  /** 0: any free one. */
  readonly port?: number;
  /** Default: the model's name in its file. */
  readonly modelName?: string;
  /** Default, and at most: the model's context. */
  readonly maxLength?: number;
  /** Hash to claim in KV messages instead of the file's, for tests of a false claim. */
  readonly claimedHash?: string;
  readonly role?: EngineRole;
  readonly connector?: ConnectorName;
  /** `host:port` of the KV socket; the port may be 0. */
  readonly kvListen?: string;
  /** Sequences that run or hold KV at one time; more wait. */
  readonly kvSlots?: number;
  /**
   * KV of all sequences together. Default: enough for every slot's longest sequence, within a quarter of the memory.
   */
  readonly kvTokenLimit?: number;
  readonly kvLeaseMs?: number;
  readonly kvPushTimeoutMs?: number;
  readonly faults?: readonly (string | Fault)[];
  /** How long a dead core still answers, with 503, before its process goes. */
  readonly deathMs?: number;
  readonly onDeath?: () => void;
}

const GIB = 1024 ** 3;

/** @throws GgufError if the model can't be run here, RangeError for options that contradict each other. */
export async function startLlamaEngine(options: LlamaEngineStart): Promise<RunningEngine> {
  const { role = "none", connector: connectorName = "none", host = "127.0.0.1", kvSlots = 64 } = options;
  if (connectorName === "nixl")
    throw new RangeError("the embedded engine moves KV by p2p-zmq; nixl is for the sim and for vLLM");
  if ((connectorName === "none") !== (role === "none"))
    throw new RangeError("a role needs connector p2p-zmq, and p2p-zmq needs a role");
  const { bytes, ...file } = openModelFile(options.model);
  const maxLength = Math.min(options.maxLength ?? Infinity, file.shape.maxContext);
  const kvTokenLimit = options.kvTokenLimit ?? defaultTokenLimit(file.shape, kvSlots, maxLength);
  if (kvTokenLimit < maxLength) {
    throw new RangeError(
      `kv.token_limit ${kvTokenLimit} can't hold one sequence of ${maxLength} tokens: raise it, or lower model.max_len`,
    );
  }
  const clock = engineClock;
  const kvBytes = Math.floor(kvTokenLimit / KV_BLOCK_TOKENS) * kvBlockBytes(file.shape);
  const worker = await startLlamaWorker({ file: bytes, kvBytes });
  let kill: () => void = () => {};
  const faults = new FaultBoard(
    (options.faults ?? []).map((fault) => (typeof fault === "string" ? parseFault(fault) : fault)),
    () => core.setHung(faults.has("hang")),
  );
  const core = new LlamaEngine({
    file,
    worker,
    modelName: options.modelName ?? file.name,
    maxLength,
    slots: kvSlots,
    kvTokenLimit,
    claimedHash: options.claimedHash ?? null,
    clock,
    onDeath: () => void clock.setTimer(options.deathMs ?? 200, () => kill()),
  });
  if (faults.has("hang")) core.setHung(true);
  let connector: Connector | null = null;
  if (connectorName !== "none") {
    try {
      // Loaded only here: an engine without a connector needs no sockets.
      const { startP2pZmq } = await import("../kv/p2p-zmq.ts");
      connector = await startP2pZmq({
        prefills: role === "prefill",
        listen: options.kvListen ?? "127.0.0.1:0",
        model: core,
        space: core,
        faults,
        clock,
        leaseMs: options.kvLeaseMs ?? 30_000,
        pushTimeoutMs: options.kvPushTimeoutMs ?? 5_000,
      });
    } catch (error) {
      core.close();
      throw error;
    }
    core.useConnector(connector);
  }
  const running = await serveEngine({
    kind: "embedded",
    core,
    connector,
    connectorName,
    role,
    faults,
    reportCached: false,
    host,
    port: options.port ?? 0,
    ...(options.onDeath === undefined ? {} : { onDeath: options.onDeath }),
  });
  kill = running.kill;
  return running;
}

/** Memory is allocated when tokens arrive, so a high limit costs nothing until then. */
function defaultTokenLimit(shape: LlamaShape, slots: number, maxLength: number): number {
  const budget = Math.min(totalmem() / 4, 2 * GIB);
  const blocks = Math.min(slots * Math.ceil(maxLength / KV_BLOCK_TOKENS), Math.floor(budget / kvBlockBytes(shape)));
  return blocks * KV_BLOCK_TOKENS;
}
