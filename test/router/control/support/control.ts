// RouterService and InferenceService over gRPC, with a scripted relay behind them.
import { InferenceService } from "#gen/tandem/inference/v1/inference_pb.js";
import { RouterService } from "#gen/tandem/router/v1/router_pb.js";
import { systemClock } from "../../../../services/common/clock.ts";
import { Deadlines } from "../../../../services/common/deadlines.ts";
import { ServiceError } from "../../../../services/common/errors.ts";
import { createMetrics } from "../../../../services/common/metrics.ts";
import { inferenceService } from "../../../../services/router/control/inference-service.ts";
import { routerService } from "../../../../services/router/control/router-service.ts";
import { createReceipts } from "../../../../services/router/serving/receipts.ts";
import { createServing, type Serving } from "../../../../services/router/serving/serving.ts";
import { dialRpc } from "../../../../services/rpc/channel.ts";
import type { RpcClient } from "../../../../services/rpc/client.ts";
import { serveRpc } from "../../../../services/rpc/server.ts";
import { silentLog as log } from "../../../support/log-sink.ts";
import { manualClock, type ManualClock } from "../../../support/manual-clock.ts";
import { fakePool, type FakePool } from "../../rest/support/pool.ts";
import { fakeRelay, type FakeRelay } from "../../rest/support/relay.ts";

export const REGISTRY = {
  kind: "consul",
  address: "127.0.0.1:8500",
  up: false,
  downSinceUnixMs: 1n,
  error: "Consul does not answer",
};

export interface Control {
  /** Of RouterService. */
  readonly clock: ManualClock;
  readonly pool: FakePool;
  readonly relay: FakeRelay;
  readonly serving: Serving;
  readonly router: RpcClient<typeof RouterService>;
  readonly inference: RpcClient<typeof InferenceService>;
  /** Calls without token or key. */
  readonly stranger: {
    readonly router: RpcClient<typeof RouterService>;
    readonly inference: RpcClient<typeof InferenceService>;
  };
  [Symbol.asyncDispose](): Promise<void>;
}

export async function startControl(): Promise<Control> {
  const pool = fakePool();
  const relay = fakeRelay();
  const clock = systemClock;
  const ownClock = manualClock();
  const receipts = createReceipts({ limit: 3, watcherLimit: 1 });
  const serving = createServing({
    pool,
    relay,
    queue: { current: { limit: 4, timeoutMs: 1000, targetMs: 0, legsLimit: 4096 } },
    request: { current: { legsLimit: 8, deadlineMs: 60_000, strict: false } },
    registryIsAway: () => false,
    receipts,
    metrics: createMetrics(),
    log,
    clock,
    deadlines: new Deadlines(clock),
  });
  const settings = [
    { key: "token", value: "set", origin: "env TANDEM_TOKEN" },
    { key: "queue.limit", value: "4 requests", origin: "default" },
  ];
  const serve = (secrets: { token?: string; apiKey?: string }) =>
    serveRpc({ listen: "127.0.0.1:0", ...secrets, log, graceMs: 100, services });
  const services = [
    routerService({
      routerId: "router-1",
      pool,
      receipts,
      settings: { all: settings },
      registry: { status: REGISTRY, unproven: [] },
      watcherLimit: 1,
      probes: { now: async () => ({ kind: "right", worstDelta: 0.01, ms: 5 }) },
      clock: ownClock,
      log,
    }),
    inferenceService({ serving, bufferBytes: 1024, stallMs: 150, clock }),
  ];
  const guarded = await serve({ token: "join", apiKey: "sk-key" });
  // The API key is for clients that send it themselves, which `dialRpc` doesn't.
  const open = await serve({});
  const channels = [
    dialRpc(guarded.address, { token: "join" }),
    dialRpc(open.address),
    dialRpc(guarded.address),
  ] as const;
  return {
    clock: ownClock,
    pool,
    relay,
    serving,
    router: channels[0].client(RouterService),
    inference: channels[1].client(InferenceService),
    stranger: { router: channels[2].client(RouterService), inference: channels[2].client(InferenceService) },
    async [Symbol.asyncDispose]() {
      await Promise.all(channels.map((channel) => channel[Symbol.asyncDispose]()));
      await Promise.all([guarded, open].map((server) => server[Symbol.asyncDispose]()));
    },
  };
}

/** Whether an error is ours and has this code. */
export const code = (expected: string) => (error: unknown) => error instanceof ServiceError && error.code === expected;

export async function collect<T>(stream: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const one of stream) all.push(one);
  return all;
}
