// The receipts of the requests that run, and of the last ones that ended. Everything here is bounded: a watcher that
// reads too slowly loses receipts, and the next one that it gets says how many.
import { EventEmitter } from "node:events";
import { until } from "../../common/clock.ts";
import { ServiceError } from "../../common/errors.ts";
import type { ReceiptDraft } from "../request/receipt.ts";

/** Receipts that one watcher may be behind. */
const WATCHER_BACKLOG = 256;

export interface Receipts {
  opened(draft: ReceiptDraft): void;
  closed(draft: ReceiptDraft): void;
  /** Receipts of running requests, then of ended ones, each with the latest first. */
  list(limit: number): ReceiptDraft[];
  /** Finds a receipt by the id that the client got or the id that it sent. The latest one with that id wins. */
  find(id: string): ReceiptDraft | undefined;
  /** Receipts as they are closed, until `signal` aborts. @throws ServiceError `queue_full` */
  watch(signal: AbortSignal): AsyncIterable<ClosedReceipt>;
}

interface ClosedReceipt {
  readonly draft: ReceiptDraft;
  /** Receipts lost between the one before and this one. */
  readonly missed: number;
}

/** Ended requests whose receipts are kept. */
const RECEIPTS_LIMIT = 1_000;
/** Limits the calls that watch. */
const WATCHERS_LIMIT = 64;

export function createReceipts({ limit = RECEIPTS_LIMIT, watcherLimit = WATCHERS_LIMIT } = {}): Receipts {
  const running = new Map<string, ReceiptDraft>();
  // A Map keeps its order, so its first key is the oldest.
  const ended = new Map<string, ReceiptDraft>();
  const byClientId = new Map<string, ReceiptDraft>();
  /** The backlog of each, and the receipts lost since the last one in it. */
  const watchers = new Set<{ readonly backlog: ClosedReceipt[]; missed: number }>();
  const closings = new EventEmitter<{ change: [] }>().setMaxListeners(0);

  return {
    opened(draft) {
      running.set(draft.requestId, draft);
      if (draft.clientId !== undefined) byClientId.set(draft.clientId, draft);
    },
    closed(draft) {
      running.delete(draft.requestId);
      ended.set(draft.requestId, draft);
      if (ended.size > limit) {
        const oldest = ended.values().next().value!;
        ended.delete(oldest.requestId);
        if (oldest.clientId !== undefined && byClientId.get(oldest.clientId) === oldest)
          byClientId.delete(oldest.clientId);
      }
      for (const watcher of watchers) {
        if (watcher.backlog.length >= WATCHER_BACKLOG) watcher.missed += 1;
        else {
          watcher.backlog.push({ draft, missed: watcher.missed });
          watcher.missed = 0;
        }
      }
      closings.emit("change");
    },
    list(limit) {
      const newest = [...running.values()].reverse();
      if (newest.length < limit) newest.push(...[...ended.values()].reverse());
      return newest.slice(0, limit);
    },
    find: (id) => running.get(id) ?? ended.get(id) ?? byClientId.get(id),
    async *watch(signal) {
      if (watchers.size >= watcherLimit) {
        const message = `Too many watchers: ${watchers.size} watch requests already. Try again later.`;
        throw new ServiceError("queue_full", message);
      }
      const watcher = { backlog: [] as ClosedReceipt[], missed: 0 };
      watchers.add(watcher);
      try {
        while (!signal.aborted) {
          const next = watcher.backlog.shift();
          if (next !== undefined) yield next;
          else await until(closings, () => watcher.backlog.length > 0, signal);
        }
      } finally {
        watchers.delete(watcher);
      }
    },
  };
}
