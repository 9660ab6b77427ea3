// One request from its body to its receipt, whichever way it came in: REST and InferenceService both serve through
// here. Parses, admits, relays, and sees to it that every request that was opened is closed once, logged once and
// counted.
import { randomUUID } from "node:crypto";
import type { Clock } from "../../common/clock.ts";
import type { Live } from "../../common/config.ts";
import { asServiceError, ServiceError } from "../../common/errors.ts";
import type { Log } from "../../common/log.ts";
import type { LegPath } from "../../kv/connector.ts";
import type { Admission, Admitted } from "../admission/admission.ts";
import type { RouterConfig } from "../config.ts";
import type { Pool } from "../pool/pool.ts";
import { createReceiptDraft, type ReceiptDraft } from "../request/receipt.ts";
import type { AnswerSink, Ending, Relay, RelayRequest } from "../relay/relay.ts";
import { readOpenAiRequest } from "./openai-request.ts";
import type { Receipts } from "./receipts.ts";
import { clampedPriority, type Scheduling } from "./scheduling.ts";
import { logEnded } from "./request-log.ts";
import type { ServingMetrics } from "./metrics.ts";

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

/** A request that runs. Its opener closes it. */
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
  /** @throws ServiceError where the request can't be served */
  open(incoming: Incoming): Served;
  /** Requests that run or wait. */
  readonly count: number;
  readonly draining: boolean;
  /** Every request is strict, unless it says otherwise. */
  readonly strict: boolean;
  /** From now on `open` refuses. Resolves when the last request is closed. */
  drain(): Promise<void>;
  /** Ends all that run. */
  abandonAll(reason: ServiceError): void;
}

export interface ServingOptions {
  readonly pool: Pool;
  readonly admission: Admission;
  readonly relay: Relay;
  readonly receipts: Receipts;
  readonly metrics: ServingMetrics;
  readonly log: Log;
  readonly clock: Clock;
  /** What each request is held to. */
  readonly request: Live<RouterConfig["request"]["current"]>;
  /** Whether the registry is away: requests are placed by the last known instances. */
  registryIsAway?(): boolean;
}

const STALE =
  "The registry of instances doesn't answer, or says that none of them serves, and this request is strict: it isn't placed " +
  "by what was known before. Try again in a second, or without strict.";

export function createServing(o: ServingOptions): Serving {
  const open = new Set<Served>();
  let draining = false;
  let onIdle: (() => void) | undefined;

  function notAdmitted(because: "no_instance" | "stale_registry", message: string): ServiceError {
    o.metrics.notAdmitted(because);
    return new ServiceError("no_instance", message, { retryAfterS: 1 });
  }

  function openOne(incoming: Incoming): Served {
    const openedMs = o.clock.nowMs();
    if (draining) {
      throw new ServiceError("instance_unavailable", "The server is stopping and takes no new request. Try again.", {
        retryAfterS: 1,
      });
    }
    const { view } = o.pool;
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
    const request: RelayRequest = {
      ...asked,
      id,
      path,
      body,
      deadlineMs,
      strict,
      createdUnixS: Math.floor(Date.now() / 1000),
    };
    const draft = createReceiptDraft({
      requestId: id,
      clientId: incoming.clientId,
      startedUnixMs: Date.now(),
      path: label,
      model: asked.model,
      stream: asked.stream,
      tenant,
      priority,
    });
    const stale = view.overruled || o.registryIsAway?.() === true;
    if (stale && !strict) {
      draft.fallbacks.push("stale-registry");
      o.metrics.staleRegistry();
    }
    const gone = new AbortController();
    let admitted: Admitted | undefined;
    let closed = false;

    const served: Served = {
      request,
      draft,
      async run(sink) {
        try {
          const lack = view.models.get(asked.model)?.lack(strict);
          if (lack !== undefined) throw notAdmitted("no_instance", `${lack} Try again in a second.`);
          if (stale && strict) throw notAdmitted("stale_registry", STALE);
          admitted = await o.admission.acquire(gone.signal, {
            legs: asked.choices * asked.prompts,
            model: asked.model,
            tenant,
            priority,
            deadlineMs,
          });
          draft.queueMs = admitted.waitedMs;
          return await o.relay.run(request, sink, draft, admitted, gone.signal);
        } catch (error) {
          if (gone.signal.aborted) throw gone.signal.reason;
          throw error;
        } finally {
          admitted?.release();
        }
      },
      abandon: (reason) => gone.abort(reason),
      started() {
        if (draft.ttftMs === 0) draft.ttftMs = o.clock.nowMs() - openedMs;
      },
      close({ status, bodyBytes, ending, error }) {
        if (closed) return;
        closed = true;
        open.delete(served);
        draft.totalMs = o.clock.nowMs() - openedMs;
        draft.bodyBytes = bodyBytes;
        draft.status = status;
        if (error !== undefined) fill(draft, asServiceError(error));
        else draft.outcome = "completed";
        o.receipts.closed(draft);
        o.metrics.closed(draft, ending);
        logEnded(o.log, draft, ending, error);
        if (open.size === 0) onIdle?.();
      },
    };
    open.add(served);
    o.receipts.opened(draft);
    o.metrics.opened();
    return served;
  }

  return {
    open: openOne,
    get count() {
      return open.size;
    },
    strict: o.request.current.strict,
    get draining() {
      return draining;
    },
    drain() {
      draining = true;
      if (open.size === 0) return Promise.resolve();
      return new Promise((resolve) => {
        onIdle = resolve;
      });
    },
    abandonAll(reason) {
      for (const served of open) served.abandon(reason);
    },
  };
}

function fill(draft: ReceiptDraft, error: ServiceError): void {
  draft.errorCode = error.code;
  draft.error = error.message;
  if (error.code === "cancelled") draft.outcome = "cancelled";
  else draft.outcome = draft.legs.length === 0 && error.code !== "internal" ? "refused" : "failed";
}
