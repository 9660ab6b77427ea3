// How many bytes of request bodies the router holds at once, in all: those that are being read, that wait in the queue,
// and that run. Without it, many large bodies at once would each be within their own limit and together take all memory.
import { ServiceError } from "../../common/errors.ts";

export interface BodyBudget {
  /** One body's share of it. */
  open(): BodyShare;
  readonly heldBytes: number;
}

export interface BodyShare {
  /** @throws ServiceError `queue_full` when that would be too much in all */
  take(bytes: number): void;
  /** Gives everything back. Further calls do nothing. */
  release(): void;
}

/** @param onRefused A body didn't fit. */
export function createBodyBudget(limitBytes: number, onRefused: () => void = () => {}): BodyBudget {
  let heldBytes = 0;
  return {
    open() {
      let mine = 0;
      let released = false;
      return {
        take(bytes) {
          if (heldBytes + bytes > limitBytes) {
            onRefused();
            throw new ServiceError(
              "queue_full",
              "Too many requests: their bodies fill the server's memory for them. Try again in a second.",
              {
                retryAfterS: 1,
              },
            );
          }
          // A body whose request was cut meanwhile takes nothing.
          if (released) return;
          mine += bytes;
          heldBytes += bytes;
        },
        release() {
          if (released) return;
          released = true;
          heldBytes -= mine;
        },
      };
    },
    get heldBytes() {
      return heldBytes;
    },
  };
}
