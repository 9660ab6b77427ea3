// The receipts of the requests that run, and of the last ones that ended. Everything here is bounded: a watcher that
// reads too slowly loses receipts, and the next one that it gets says how many.
import { ServiceError } from "../../common/errors.ts";
import type { ReceiptDraft } from "../request/receipt.ts";
import type { ReceiptBook } from "../serving/serving.ts";

/** Receipts that one watcher may be behind. */
const WATCHER_BACKLOG = 256;

export interface Receipts extends ReceiptBook {
  /** Receipts of running requests, then of ended ones, each with the latest first. */
  list(limit: number): ReceiptDraft[];
  /** Finds a receipt by the id that the client got or the id that it sent. The latest one with that id wins. */
  find(id: string): ReceiptDraft | undefined;
  /** Receipts as they are closed, until `signal` aborts. @throws ServiceError `queue_full` */
  watch(signal: AbortSignal): AsyncIterable<Seen>;
}

interface Seen {
  readonly draft: ReceiptDraft;
  /** Receipts lost between the one before and this one. */
  readonly missed: number;
}

interface Watcher {
  readonly backlog: Seen[];
  /** Receipts lost since the last one that was queued. */
  missed: number;
  wake: (() => void) | undefined;
}

/** Ended requests whose receipts are kept. */
const RECEIPTS_LIMIT = 1_000;
/** Limits the calls that watch. */
const WATCHERS_LIMIT = 64;

export function createReceipts({ limit = RECEIPTS_LIMIT, watcherLimit = WATCHERS_LIMIT } = {}): Receipts {
  const running = new Map<string, ReceiptDraft>();
  // A Map keeps its order, so its first key is the oldest. Deleting and adding again moves an id to the end.
  const ended = new Map<string, ReceiptDraft>();
  const byClientId = new Map<string, ReceiptDraft>();
  const watchers = new Set<Watcher>();

  function keep(draft: ReceiptDraft): void {
    ended.set(draft.requestId, draft);
    if (ended.size <= limit) return;
    const [oldestId, oldest] = ended.entries().next().value!;
    ended.delete(oldestId);
    if (oldest.clientId !== undefined && byClientId.get(oldest.clientId) === oldest) byClientId.delete(oldest.clientId);
  }

  return {
    opened(draft) {
      running.set(draft.requestId, draft);
      if (draft.clientId !== undefined) byClientId.set(draft.clientId, draft);
    },
    closed(draft) {
      running.delete(draft.requestId);
      keep(draft);
      for (const watcher of watchers) {
        if (watcher.backlog.length >= WATCHER_BACKLOG) watcher.missed += 1;
        else {
          watcher.backlog.push({ draft, missed: watcher.missed });
          watcher.missed = 0;
        }
        watcher.wake?.();
      }
    },
    list(limit) {
      const newest = [...running.values()].reverse();
      if (newest.length < limit) newest.push(...[...ended.values()].reverse());
      return newest.slice(0, limit);
    },
    find: (id) => running.get(id) ?? ended.get(id) ?? byClientId.get(id),
    async *watch(signal) {
      if (watchers.size >= watcherLimit) {
        throw new ServiceError(
          "queue_full",
          `Too many watchers: ${watchers.size} watch requests already. Try again later.`,
        );
      }
      const watcher: Watcher = { backlog: [], missed: 0, wake: undefined };
      const onAbort = (): void => watcher.wake?.();
      watchers.add(watcher);
      signal.addEventListener("abort", onAbort);
      try {
        while (!signal.aborted) {
          const seen = watcher.backlog.shift();
          if (seen !== undefined) yield seen;
          else {
            await new Promise<void>((resolve) => (watcher.wake = resolve));
            watcher.wake = undefined;
          }
        }
      } finally {
        watchers.delete(watcher);
        signal.removeEventListener("abort", onAbort);
      }
    },
  };
}
