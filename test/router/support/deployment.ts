// A pool of scripted instances and a relay over it: all of the router but its doors.
import type { Info } from "#gen/tandem/instance/v1/instance_pb.js";
import { systemClock, type Clock } from "../../../services/common/clock.ts";
import { Deadlines } from "../../../services/common/deadlines.ts";
import { createMetrics, type Metrics } from "../../../services/common/metrics.ts";
import type { RelayLimits } from "../../../services/router/config.ts";
import type { BreakerLimits } from "../../../services/router/pool/breaker.ts";
import { createPool, type Pool } from "../../../services/router/pool/pool.ts";
import { startProbes } from "../../../services/router/probe/schedule.ts";
import { createAdmission } from "../../../services/router/admission/admission.ts";
import { createReceiptDraft, type ReceiptDraft } from "../../../services/router/request/receipt.ts";
import { createRelay } from "../../../services/router/relay/relay.ts";
import type {
  AnswerSink,
  Ending,
  RelayOptions,
  RelayRequest,
  RunningRelay,
} from "../../../services/router/relay/relay.ts";
import { silentLog } from "../../support/log-sink.ts";
import { deferred, within, type Deferred } from "../../support/waits.ts";
import type { DecodeLeg, FakeDecode } from "./fake-instance.ts";
import { untilStanding } from "./pool-waits.ts";

/** A client that takes all, or stops reading when told. */
export class Client implements AnswerSink {
  started = 0;
  reading = true;
  onDrain: (() => void) | undefined = undefined;
  readonly chunks: string[] = [];
  #next: Deferred<void> | undefined;

  start(): void {
    this.started += 1;
  }

  write(bytes: Buffer): boolean {
    if (this.started !== 1) throw new Error("a write before the start");
    this.chunks.push(bytes.toString());
    this.#next?.resolve();
    return this.reading;
  }

  /** Reads on. */
  read(): void {
    this.reading = true;
    this.onDrain?.();
  }

  /** Resolves when there are `count` writes. */
  async got(count: number): Promise<void> {
    while (this.chunks.length < count) await within((this.#next = deferred()).promise, `write ${count} of the answer`);
  }

  get text(): string {
    return this.chunks.join("");
  }
}

/** One request under way. */
export interface Started {
  readonly client: Client;
  readonly receipt: ReceiptDraft;
  readonly gone: AbortController;
  /** Fails after a while in which nothing happened. */
  readonly ending: Promise<Ending>;
}

export interface Deployment {
  readonly pool: Pool;
  readonly relay: RunningRelay;
  readonly metrics: Metrics;
  /** In force now. A test may change them. */
  readonly limits: { current: RelayLimits };
  start(request?: Partial<RelayRequest>): Started;
  [Symbol.asyncDispose](): Promise<void>;
}

/** A request whose client has the first token, and its decode leg, which goes on. */
export async function inMidAnswer(
  tandem: Deployment,
  decode: FakeDecode,
): Promise<Started & { readonly leg: DecodeLeg }> {
  const started = tandem.start();
  const leg = (await decode.legs.next("the reservation")).accept();
  await leg.started.promise;
  leg.events("data: 1\n\n");
  await started.client.got(1);
  return { ...started, leg };
}

/** Nothing happens by itself for ten seconds. */
export const LIMITS: RelayLimits = {
  retryLimit: 1,
  retryRatio: 0.2,
  hedgeRatio: 0,
  prefillTimeoutMs: 10_000,
  prefillFloorMs: 1_000,
  prefillSlack: 0,
  transferTimeoutMs: 10_000,
  firstTokenTimeoutMs: 3_600_000,
  stallMs: 10_000,
  quarantineLimit: 1_024,
  quarantineHoldMs: 300_000,
  replayMode: "proven",
  replayTimeoutMs: 10_000,
};

let count = 0;

export async function deploy(
  instances: readonly { readonly info: Info }[],
  o: {
    /** Of requests and their legs. */
    clock?: Clock;
    /** Of the pool and the probes: moved far, instances fall silent by it. */
    poolClock?: Clock;
    limits?: Partial<RelayLimits>;
    queueTimeoutMs?: number;
    unpairedTokens?: number;
    constants?: RelayOptions["constants"];
    breaker?: BreakerLimits;
    unpaired?: boolean;
    standing?: string;
    isCalm?: () => boolean;
  } = {},
): Promise<Deployment> {
  const { clock = systemClock, poolClock = systemClock } = o;
  const metrics = createMetrics();
  const limits = { current: { ...LIMITS, ...o.limits } };
  const pool = createPool({
    log: silentLog,
    clock: poolClock,
    metrics,
    breaker: o.breaker ?? { failureLimit: 5, probeEveryMs: 60_000 },
    unpaired: o.unpaired ?? false,
  });
  pool.update(instances.map(({ info }) => info));
  await Promise.all(instances.map(({ info }) => untilStanding(pool, info.instanceId, o.standing ?? "serves")));
  const deadlines = new Deadlines(clock);
  const relay = createRelay({
    deadlines,
    pool,
    placement: { current: { prefill: "least-load", decode: "least-load", unpairedTokens: o.unpairedTokens ?? 0 } },
    limits,
    constants: { reserveTimeoutMs: 10_000, ...o.constants },
    metrics,
    log: silentLog,
    clock,
    ...(o.isCalm === undefined ? {} : { isCalm: o.isCalm }),
  });
  const queue = { current: { limit: 0, timeoutMs: o.queueTimeoutMs ?? 10_000, targetMs: 0 } };
  // All requests are admitted as one; a leg that finds no slot returns to the queue.
  const admission = createAdmission({ capacity: () => 1_000_000, queue, clock, deadlines });
  pool.onChange(admission.poke);
  const admitted = await admission.acquire(new AbortController().signal);
  const probes = startProbes({ pool, prober: relay.prober, clock: poolClock, metrics });
  return {
    pool,
    relay,
    metrics,
    limits,
    start(request = {}) {
      count += 1;
      const full: RelayRequest = {
        id: `cmpl-${count}`,
        path: "/v1/completions",
        model: "tiny",
        body: Buffer.from('{"prompt":"hi"}'),
        stream: true,
        choices: 1,
        prompts: 1,
        promptIsList: false,
        includeUsage: false,
        createdUnixS: 7,
        ...request,
      };
      const client = new Client();
      const receipt = createReceiptDraft({
        requestId: full.id,
        clientId: undefined,
        startedUnixMs: 0,
        path: full.path,
        model: full.model,
        stream: full.stream,
        tenant: "",
        priority: 0,
      });
      const gone = new AbortController();
      const ending = within(relay.run(full, client, receipt, admitted, gone.signal), "the end of the request");
      ending.catch(() => {}); // The test looks at it when it is ready to.
      return { client, receipt, gone, ending };
    },
    async [Symbol.asyncDispose]() {
      probes[Symbol.dispose]();
      deadlines[Symbol.dispose]();
      await relay[Symbol.asyncDispose]();
      await pool[Symbol.asyncDispose]();
    },
  };
}

/** Resolves when this router runs no leg any more, neither on prefill nor on decode. */
export async function untilNoLegs({ pool }: Deployment): Promise<void> {
  const busy = (): boolean => [...pool.view.prefill, ...pool.view.decode].some(({ instance }) => instance.legs > 0);
  if (!busy()) return;
  const idle = deferred();
  const off = pool.onChange(() => {
    if (!busy()) idle.resolve();
  });
  await within(idle.promise, "the last leg").finally(off);
}
