// One request from its body to its receipt, whichever way it came in: REST and InferenceService both serve through
// here. Parses, admits, relays, and sees to it that every request that was opened is closed once, logged once and
// counted, also when the router stops.
import { randomUUID } from "node:crypto";
import { type Clock, settlesWithin } from "../../common/clock.ts";
import type { Deadlines } from "../../common/deadlines.ts";
import { asServiceError, ServiceError } from "../../common/errors.ts";
import type { Log } from "../../common/log.ts";
import type { Metrics } from "../../common/metrics.ts";
import type { SelfReport } from "../../discovery/registry.ts";
import type { LegPath } from "../../kv/connector.ts";
import { createAdmission, type Admitted } from "../admission/admission.ts";
import type { Overload } from "../admission/overload.ts";
import type { RouterConfig } from "../config.ts";
import type { Pool } from "../pool/pool.ts";
import { createReceiptDraft, type ReceiptDraft } from "../request/receipt.ts";
import type { AnswerSink, Ending, RelayRequest, RunningRelay } from "../relay/relay.ts";
import { createServingMetrics, type ServingMetrics } from "./metrics.ts";
import { readOpenAiRequest } from "./openai-request.ts";
import { createReceipts, type Receipts } from "./receipts.ts";
import { clampedPriority, type Scheduling } from "./scheduling.ts";

/** Time for ended requests to tell their clients. */
const LAST_WORDS_MS = 250;
/** Time to settle the KV of requests whose client left. Afterwards the instances settle the rest by themselves. */
const SETTLE_MS = 500;

export interface Incoming {
  /** As the receipt names it: the path, or `Generate`. */
  readonly label: string;
  readonly path: LegPath;
  readonly body: Buffer;
  readonly clientId?: string | undefined;
  /** When the caller gives up, in epoch milliseconds. */
  readonly deadlineMs?: number | undefined;
  readonly scheduling?: Scheduling;
}

/** A running request. The caller of `open` closes it. */
export interface Served {
  readonly request: RelayRequest;
  readonly draft: ReceiptDraft;
  /** Waits for admission and runs. Rejects with a ServiceError, which is `abandon`'s reason after that. */
  run(sink: AnswerSink): Promise<Ending>;
  /** Ends it early: the client left, or we stop. */
  abandon(reason: ServiceError): void;
  /** The first byte is about to be written. */
  started(): void;
  /** @param status What the client got. */
  close(o: { status: number; bodyBytes: number; ending?: Ending; error?: unknown }): void;
}

export interface Serving {
  /** @throws ServiceError if the request can't be served */
  open(incoming: Incoming): Served;
  /** Requests that run or wait. */
  readonly count: number;
  /** Requests in the queue, and legs that returned to it. */
  readonly waiting: number;
  readonly draining: boolean;
  /** Every request is strict, unless it says otherwise. */
  readonly strict: boolean;
  readonly receipts: Receipts;
  readonly metrics: ServingMetrics;
  /** Admits waiting requests, after a limit has changed. */
  poke(): void;
  /** What the registry shows of this router. */
  standing(): SelfReport;
  /**
   * Refuses new requests from the call on, lets the running ones end for `graceMs`, then ends them. Resolves when all
   * have ended, at the latest a second after `graceMs`.
   */
  drain(graceMs: number): Promise<void>;
}

export interface ServingOptions {
  readonly pool: Pool;
  readonly relay: Pick<RunningRelay, "run" | "idle" | "refusal">;
  readonly queue: RouterConfig["queue"];
  /** Limits and defaults of each request. */
  readonly request: RouterConfig["request"];
  readonly metrics: Metrics;
  readonly log: Log;
  readonly clock: Clock;
  readonly deadlines: Deadlines;
  /** Left out: never overloaded. */
  readonly overload?: Overload;
  /** Whether the registry is away: requests are placed by the last known instances. */
  registryIsAway(): boolean;
  /** Tests set smaller ones. */
  readonly receipts?: Receipts;
}

const STALE =
  "The registry does not answer, or reports that no instance serves. This request is strict, so the last known " +
  "instances are not used. Try again in a second, or without strict.";

export function createServing(o: ServingOptions): Serving {
  const { pool, relay, queue, log, clock, receipts = createReceipts() } = o;
  const admission = createAdmission({
    capacity: (name) => {
      const model = pool.view.models.get(name);
      // While a side is missing, requests wait for it here.
      if (model === undefined || model.lack(o.request.current.strict) !== undefined) return 0;
      return Math.min(model.slots, queue.current.legsLimit);
    },
    lack: (model) => pool.view.models.get(model)?.lack(o.request.current.strict),
    lackEnd: (model) => pool.view.models.get(model)?.lackEnd(o.request.current.strict, clock.nowMs()),
    queue,
    ...(o.overload === undefined ? {} : { overload: o.overload }),
    onRefused: (because) => metrics.notAdmitted(because),
    clock,
    deadlines: o.deadlines,
  });
  pool.onChange(admission.poke);
  const metrics = createServingMetrics(o.metrics, admission);
  const open = new Set<Served>();
  let draining = false;
  let onIdle = (): void => {};

  function notAdmitted(because: "no_instance" | "stale_registry", message: string): ServiceError {
    metrics.notAdmitted(because);
    return new ServiceError("no_instance", message, { retryAfterS: 1 });
  }

  function openOne(incoming: Incoming): Served {
    const openedMs = clock.nowMs();
    if (draining) {
      throw new ServiceError("instance_unavailable", "The server is stopping and takes no new request. Try again.", {
        retryAfterS: 1,
      });
    }
    const { view } = pool;
    const { path, body, label, scheduling = {} } = incoming;
    const limits = o.request.current;
    const { user, priority: wished, ...asked } = readOpenAiRequest(path, body, view.models, limits.legsLimit);
    const tenant = scheduling.tenant ?? user;
    const priority = scheduling.priority ?? clampedPriority(wished);
    const strict = scheduling.strict ?? limits.strict;
    const deadlineMs = Math.min(
      openedMs + Math.min(limits.deadlineMs, scheduling.timeoutMs ?? Infinity),
      incoming.deadlineMs ?? Infinity,
    );
    const id = `${path === "/v1/completions" ? "cmpl" : "chatcmpl"}-${randomUUID().replaceAll("-", "")}`;
    const startedUnixMs = Date.now();
    const createdUnixS = Math.floor(startedUnixMs / 1000);
    const request: RelayRequest = { ...asked, id, path, body, deadlineMs, strict, createdUnixS };
    const draft = createReceiptDraft({
      requestId: id,
      clientId: incoming.clientId,
      startedUnixMs,
      path: label,
      model: asked.model,
      stream: asked.stream,
      tenant,
      priority,
    });
    const stale = view.overruled || o.registryIsAway();
    if (stale && !strict) {
      draft.fallbacks.push("stale-registry");
      metrics.fallback("stale-registry");
    }
    // Costs the request nothing that it asked for, so a strict one goes on too.
    if (view.doubtsItself) {
      draft.fallbacks.push("stale-view");
      metrics.fallback("stale-view");
    }
    const gone = new AbortController();
    let admitted: Admitted | undefined;
    let closed = false;

    const served: Served = {
      request,
      draft,
      async run(sink) {
        try {
          const refusal = relay.refusal(request);
          if (refusal !== undefined) {
            draft.fallbacks.push("quarantined");
            metrics.notAdmitted("quarantined");
            throw refusal;
          }
          const model = view.models.get(asked.model);
          const lack = model?.lack(strict);
          if (lack !== undefined && model!.lackEnd(strict, openedMs) === undefined)
            throw notAdmitted("no_instance", `${lack} Try again in a second.`);
          if (stale && strict) throw notAdmitted("stale_registry", STALE);
          admitted = await admission.acquire(gone.signal, {
            legs: asked.choices * asked.prompts,
            model: asked.model,
            tenant,
            priority,
            deadlineMs,
          });
          draft.queueMs = admitted.waitedMs;
          return await relay.run(request, sink, draft, admitted, gone.signal);
        } catch (error) {
          if (gone.signal.aborted) throw gone.signal.reason;
          throw error;
        } finally {
          admitted?.release();
        }
      },
      abandon: (reason) => gone.abort(reason),
      started() {
        if (draft.ttftMs === 0) draft.ttftMs = clock.nowMs() - openedMs;
      },
      close({ status, bodyBytes, ending, error }) {
        if (closed) return;
        closed = true;
        open.delete(served);
        draft.totalMs = clock.nowMs() - openedMs;
        draft.bodyBytes = bodyBytes;
        draft.status = status;
        if (error !== undefined) fill(draft, asServiceError(error));
        else draft.outcome = "completed";
        receipts.closed(draft);
        metrics.closed(draft, ending);
        logEnded(log, draft, ending, error);
        if (open.size === 0) onIdle();
      },
    };
    open.add(served);
    receipts.opened(draft);
    metrics.opened();
    return served;
  }

  return {
    open: openOne,
    get count() {
      return open.size;
    },
    get waiting() {
      return admission.waiting;
    },
    get draining() {
      return draining;
    },
    strict: o.request.current.strict,
    receipts,
    metrics,
    poke: admission.poke,
    standing: () => ({
      serving: !draining,
      text: draining ? `draining: ${open.size} requests still run` : "serving",
    }),
    async drain(graceMs) {
      draining = true;
      const idle = open.size === 0 ? Promise.resolve() : new Promise<void>((resolve) => (onIdle = resolve));
      if (open.size > 0) log.info("router is draining", { requests: open.size, graceMs });
      if (!(await settlesWithin(clock, idle, graceMs))) {
        log.warn("router is ending the requests that are still running", { requests: open.size });
        const message = "The server was stopped before the answer was complete. Try again.";
        const reason = new ServiceError("instance_unavailable", message, { retryAfterS: 1 });
        for (const served of open) served.abandon(reason);
        await settlesWithin(clock, idle, LAST_WORDS_MS);
      }
      await settlesWithin(clock, relay.idle(), Math.min(graceMs, SETTLE_MS));
    },
  };
}

function fill(draft: ReceiptDraft, error: ServiceError): void {
  draft.errorCode = error.code;
  draft.error = error.message;
  if (error.code === "cancelled") draft.outcome = "cancelled";
  else draft.outcome = draft.legs.length === 0 && error.code !== "internal" ? "refused" : "failed";
}

/** Writes the one line that the log gets of a request. */
function logEnded(log: Log, draft: ReceiptDraft, ending: Ending | undefined, error: unknown): void {
  // Of two attempts side by side, the one that answered.
  const leg = draft.legs.findLast(({ error }) => error === "") ?? draft.legs.at(-1);
  // A field that is undefined is left out.
  const fields = {
    requestId: draft.requestId,
    clientId: draft.clientId,
    tenant: draft.tenant || undefined,
    path: draft.path,
    model: draft.model,
    stream: draft.stream,
    outcome: draft.outcome,
    status: draft.status,
    prefill: leg?.prefillInstanceId,
    decode: leg?.decodeInstanceId,
    legId: leg?.legId,
    queueMs: rounded(draft.queueMs),
    ttftMs: rounded(draft.ttftMs),
    totalMs: rounded(draft.totalMs),
    promptTokens: ending?.promptTokens,
    completionTokens: ending?.completionTokens,
    cachedTokens: ending?.cachedTokens,
    finish: ending?.finishReasons.join(","),
    bytes: draft.bodyBytes,
    legs: draft.legs.length > 1 ? draft.legs.length : undefined,
    fallbacks: draft.fallbacks.join(", ") || undefined,
    errorCode: draft.errorCode || undefined,
  };
  // What the engine refused is the client's to look at; the rest is ours, with the whole chain of causes.
  if (draft.outcome !== "failed" || draft.errorCode === "engine_refused") log.info("request ended", fields);
  else log[draft.errorCode === "internal" ? "error" : "warn"]("request ended", { ...fields, error });
}

function rounded(ms: number): number {
  return Math.round(ms * 10) / 10;
}
