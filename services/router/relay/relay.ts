// Serves one request from the admitted body to the last byte: places it, runs its legs, merges them if there are
// several, and ends every request exactly once. No HTTP, no registry.
import type { Clock } from "../../common/clock.ts";
import type { Live } from "../../common/config.ts";
import type { Deadline, Deadlines } from "../../common/deadlines.ts";
import { asServiceError, ServiceError } from "../../common/errors.ts";
import type { Log } from "../../common/log.ts";
import type { Metrics } from "../../common/metrics.ts";
import type { Admitted } from "../admission/admission.ts";
import type { Overload } from "../admission/overload.ts";
import type { RelayLimits, RouterConfig } from "../config.ts";
import { Picker } from "../placement/policies.ts";
import type { Pool } from "../pool/pool.ts";
import { Choice, type ChoiceContext, type ChoiceOwner } from "./choice.ts";
import { RESERVE_TIMEOUT_MS } from "../leg/bounds.ts";
import type { LegContext, LiveLeg } from "../leg/context.ts";
import { Paces } from "../leg/paces.ts";
import { thinLink } from "../leg/thin-link.ts";
import { mergeBodies, mergeUsageEvents, usageChunkOf } from "./merge.ts";
import { createHedgeBudget } from "./attempts.ts";
import { createRelayMetrics } from "../request/metrics.ts";
import { createPlacer } from "../placement/placement.ts";
import { createProber, type Prober } from "../probe/probe.ts";
import { watchQueries } from "./query-of-death.ts";
import { createRetryBudget } from "./retry-budget.ts";
import type { ReceiptDraft } from "../request/receipt.ts";
import type { AnswerEnd, AnswerSink, Ending, RelayRequest } from "../request/request.ts";

export type { AnswerSink, Ending, RelayRequest } from "../request/request.ts";

export interface RelayOptions {
  readonly pool: Pool;
  readonly placement: Live<Pick<RouterConfig["placement"]["current"], "prefill" | "decode" | "unpairedTokens">>;
  readonly limits: Live<RelayLimits>;
  readonly metrics: Metrics;
  readonly log: Log;
  readonly clock: Clock;
  readonly deadlines: Deadlines;
  /** Left out: never overloaded. */
  readonly overload?: Overload;
  /** The event loop of this router. */
  readonly loop?: LegContext["loop"];
  /** Whether the instances have capacity to spare, and most of them are above suspicion. Left out: always. */
  readonly isCalm?: () => boolean;
  /** How instances are spoken to. Left out: over their channels. */
  readonly linkTo?: LegContext["linkTo"];
  /** Constants that tests replace. */
  readonly constants?: { readonly reserveTimeoutMs?: number; readonly retriesPerS?: number };
}

export function createRelay(o: RelayOptions) {
  const { pool, placement, limits, clock, deadlines, constants = {} } = o;
  const pickers = {
    prefill: new Picker(() => placement.current.prefill),
    decode: new Picker(() => placement.current.decode),
  };
  const live = new Set<LiveLeg>();
  const runs = new Set<Run>();
  const metrics = createRelayMetrics(o.metrics, () => [...live].filter((leg) => leg.settling).length);
  const onIdle: (() => void)[] = [];
  const checkIdle = (): void => {
    if (runs.size === 0 && live.size === 0) for (const resolve of onIdle.splice(0)) resolve();
  };
  const queries = watchQueries({ pool, limits, metrics: o.metrics, log: o.log, clock });
  const context: ChoiceContext = {
    queries,
    books: pool,
    linkTo: o.linkTo ?? (({ channel }) => thinLink(channel, o.log)),
    limits,
    reserveTimeoutMs: constants.reserveTimeoutMs ?? RESERVE_TIMEOUT_MS,
    paces: new Paces(),
    loop: o.loop ?? { delayMs: 0 },
    deadlines,
    clock,
    metrics,
    live,
    onLegEnded: checkIdle,
    placer: createPlacer(pool, pickers, placement, clock),
    budget: createRetryBudget(limits, clock, constants.retriesPerS, o.overload),
    hedges: createHedgeBudget(limits),
    isCalm: o.isCalm ?? (() => true),
  };
  const { probe, unsettled } = createProber(context);
  const prober: Prober = {
    unsettled,
    async probe(prefill, decode, options) {
      const result = await probe(prefill, decode, options);
      if (result.kind !== "failed") queries.succeeded(prefill, decode);
      return result;
    },
  };

  return {
    /** Sends the router's own requests over the same legs. */
    prober,
    /** The error for a request that must not run: its body is in quarantine. */
    refusal: queries.refusal,
    /**
     * @param receipt Gets the legs and fallbacks as they happen.
     * @param admitted The request's slots. Its legs return to the queue through it.
     * @param gone Aborted when the answer is no longer wanted.
     * @returns Resolves once the whole answer was given to `sink`.
     * @throws ServiceError before or after `sink.start()`; `cancelled` when `gone`
     */
    async run(
      request: RelayRequest,
      sink: AnswerSink,
      receipt: ReceiptDraft,
      admitted: Pick<Admitted, "findSlot">,
      gone: AbortSignal,
    ): Promise<Ending> {
      if (gone.aborted) throw clientLeft();
      context.budget.earn();
      context.hedges.earn();
      const run = new Run(request, sink, receipt, admitted, context);
      const onGone = (): void => run.failed(clientLeft());
      gone.addEventListener("abort", onGone, { once: true });
      runs.add(run);
      try {
        return await run.begin();
      } finally {
        runs.delete(run);
        gone.removeEventListener("abort", onGone);
        checkIdle();
      }
    },
    /** Legs that run or settle. A leg settles while its request is gone but its KV is not. */
    get legs() {
      return live.size;
    },
    /** Resolves when the last leg has ended. */
    idle: () =>
      new Promise<void>((resolve) => {
        onIdle.push(resolve);
        checkIdle();
      }),
    /** Fails the running requests, and leaves settling legs to the instances. */
    async [Symbol.asyncDispose]() {
      for (const run of [...runs]) run.failed(new ServiceError("instance_unavailable", "The router is stopping."));
    },
  };
}

export type RunningRelay = ReturnType<typeof createRelay>;

interface Settle {
  resolve(ending: Ending): void;
  reject(error: ServiceError): void;
}

/** One request with its choices, which share one sink. */
class Run implements ChoiceOwner {
  readonly request: RelayRequest;
  readonly receipt: ReceiptDraft;
  readonly admitted: Pick<Admitted, "findSlot">;
  readonly #sink: AnswerSink;
  readonly #choices: Choice[] = [];
  readonly #ends: AnswerEnd[] = [];
  /** Held back until all choices have ended: their bodies or, for a stream, their usage chunks. */
  readonly #held: (Buffer | undefined)[] = [];
  readonly #beganMs: number;
  readonly #clock: Clock;
  readonly #firstTokenTimeoutMs: number;
  readonly #due: Deadline;
  #started = false;
  #open: number;
  #settle: Settle | undefined;

  constructor(
    request: RelayRequest,
    sink: AnswerSink,
    receipt: ReceiptDraft,
    admitted: Pick<Admitted, "findSlot">,
    context: ChoiceContext,
  ) {
    this.request = request;
    this.receipt = receipt;
    this.admitted = admitted;
    this.#sink = sink;
    this.#clock = context.clock;
    this.#beganMs = context.clock.nowMs();
    // Only a stream shows its first token to the client.
    this.#firstTokenTimeoutMs = request.stream ? context.limits.current.firstTokenTimeoutMs : Infinity;
    const count = request.choices * request.prompts;
    this.#open = count;
    for (let index = 0; index < count; index += 1) this.#choices.push(new Choice(index, context, this));
    this.#due = context.deadlines.watch(this.#dueMs(), (nowMs) => this.#look(nowMs));
    sink.onDrain = () => {
      for (const choice of this.#choices) choice.resume();
    };
  }

  begin(): Promise<Ending> {
    return new Promise((resolve, reject) => {
      this.#settle = { resolve, reject };
      for (const choice of this.#choices) {
        if (this.#settle === undefined) return;
        choice.begin();
      }
    });
  }

  // The token path. With one choice it only reads two fields before the write.
  deliver(index: number, events: Buffer): boolean {
    let bytes = events;
    if (this.#choices.length > 1) {
      if (!this.request.stream) {
        this.#held[index] = events;
        return true;
      }
      if (this.request.includeUsage) {
        const usage = usageChunkOf(events);
        if (usage !== undefined) {
          // Copied: the view would keep a whole network buffer alive until the slowest choice has ended.
          this.#held[index] = Buffer.from(usage);
          bytes = events.subarray(0, events.length - usage.length);
          if (bytes.length === 0) return true;
        }
      }
    }
    this.#start();
    return this.#sink.write(bytes);
  }

  completed(index: number, end: AnswerEnd): void {
    this.#ends[index] = end;
    this.#open -= 1;
    if (this.#open > 0) return;
    let last: Buffer | undefined;
    try {
      last = this.#merged();
    } catch (thrown) {
      return this.failed(asServiceError(thrown));
    }
    this.#start();
    if (last !== undefined) this.#sink.write(last);
    this.#end()?.resolve(this.#ending());
  }

  failed(error: ServiceError): void {
    const settle = this.#end();
    if (settle === undefined) return;
    for (const choice of this.#choices) choice.unwanted();
    settle.reject(error);
  }

  elapsedMs(): number {
    return this.receipt.queueMs + this.#clock.nowMs() - this.#beganMs;
  }

  othersIdleSinceMs(index: number): number | undefined {
    const others = this.#choices.filter((choice) => choice.index !== index);
    if (others.some(({ running }) => running)) return undefined;
    return others.reduce((last, { idleSinceMs }) => Math.max(last, idleSinceMs), 0);
  }

  /** The earlier of the request's deadline and the deadline for its first token. */
  #dueMs(): number {
    const firstMs = this.#started ? Infinity : this.#beganMs + this.#firstTokenTimeoutMs;
    return Math.min(firstMs, this.request.deadlineMs ?? Infinity);
  }

  #look(nowMs: number): number | undefined {
    if (nowMs < this.#dueMs()) return this.#dueMs();
    const { deadlineMs = Infinity } = this.request;
    const what =
      nowMs >= deadlineMs
        ? "The request ran past its deadline"
        : `No token came within ${this.#firstTokenTimeoutMs} ms`;
    // Reports the first choice that still runs, because the request was waiting for it.
    const where = this.#choices.find((choice) => choice.running)?.where() ?? "";
    const queueMs = Math.round(where === "" ? this.elapsedMs() : this.receipt.queueMs);
    const times = where === "" ? `queue ${queueMs} ms` : `queue ${queueMs} ms, ${where}`;
    this.failed(new ServiceError("deadline_exceeded", `${what} (${times}).`));
    return undefined;
  }

  #start(): void {
    if (this.#started) return;
    this.#started = true;
    this.#sink.start();
  }

  /** The merged parts of the choices, after the last one has ended. */
  #merged(): Buffer | undefined {
    if (this.#choices.length === 1) return undefined;
    const parts = this.#held.filter((part) => part !== undefined);
    if (!this.request.stream) return mergeBodies(parts, this.request.choices);
    // Without the chunk of every leg there is no sum, and a client that asked for no usage gets none.
    return parts.length === this.#choices.length ? mergeUsageEvents(parts, this.request.choices) : undefined;
  }

  #ending(): Ending {
    const firsts = this.#ends.filter((_, index) => index % this.request.choices === 0);
    const cached = firsts.map(({ cachedTokens }) => cachedTokens).filter((tokens) => tokens !== undefined);
    return {
      finishReasons: this.#ends.map(({ finishReason }) => finishReason),
      promptTokens: firsts.reduce((sum, { promptTokens }) => sum + promptTokens, 0),
      completionTokens: this.#ends.reduce((sum, { completionTokens }) => sum + completionTokens, 0),
      ...(cached.length === 0 ? {} : { cachedTokens: cached.reduce((sum, tokens) => sum + tokens, 0) }),
    };
  }

  #end(): Settle | undefined {
    const settle = this.#settle;
    this.#settle = undefined;
    this.#due.cancel();
    this.#sink.onDrain = undefined;
    return settle;
  }
}

function clientLeft(): ServiceError {
  return new ServiceError("cancelled", "The client left.");
}
