// Reads the bodies of requests, each up to its own limit and to what is left for all of them: those that are being read,
// that wait in the queue, and that run. Many large bodies at once would each be within their own limit and together take
// all memory.
import type { IncomingMessage } from "node:http";
import { ServiceError } from "../../common/errors.ts";
import { REQUEST_HEADERS } from "../serving/headers.ts";

/** One body's share of the memory for all. */
export interface BodyShare {
  /** @throws ServiceError `queue_full` when that would be too much in all */
  take(bytes: number): void;
  /** Gives everything back. Further calls do nothing. */
  release(): void;
}

/**
 * @param onRefused A body didn't fit.
 * @returns Opens the share of one body.
 */
export function bodyBudget(limitBytes: number, onRefused: () => void): () => BodyShare {
  let heldBytes = 0;
  return () => {
    let mine = 0;
    let released = false;
    return {
      take(bytes) {
        if (heldBytes + bytes > limitBytes) {
          onRefused();
          const message = "Too many requests: their bodies fill the server's memory for them. Try again in a second.";
          throw new ServiceError("queue_full", message, { retryAfterS: 1 });
        }
        // A body whose request was cut meanwhile takes nothing.
        if (released) return;
        mine += bytes;
        heldBytes += bytes;
      },
      release() {
        released = true;
        heldBytes -= mine;
        mine = 0;
      },
    };
  };
}

/**
 * @param share Takes the bytes as they arrive; the caller that opened the share releases it.
 * @throws ServiceError `body_too_large` or `queue_full` as soon as that is known (reading has stopped then), `cancelled`
 *   when the client leaves before its end
 */
export function readBody(req: IncomingMessage, limitBytes: number, share: BodyShare): Promise<Buffer> {
  const declared = Number(req.headers[REQUEST_HEADERS.contentLength.name]);
  if (declared > limitBytes) return Promise.reject(tooLarge(limitBytes));
  return new Promise((resolve, reject) => {
    const chunks: Buffer[] = [];
    let bytes = 0;
    const stop = (): void => {
      req.off("data", onData).off("end", onEnd).off("error", onBroken).off("close", onBroken);
    };
    const onData = (chunk: Buffer): void => {
      bytes += chunk.length;
      try {
        if (bytes > limitBytes) throw tooLarge(limitBytes);
        share.take(chunk.length);
        chunks.push(chunk);
      } catch (error) {
        stop();
        req.pause();
        reject(error);
      }
    };
    const onEnd = (): void => {
      stop();
      resolve(chunks.length === 1 ? chunks[0]! : Buffer.concat(chunks, bytes));
    };
    const onBroken = (): void => {
      stop();
      // The parser reports a broken body by clientError; this event has no listener any more.
      req.on("error", () => {});
      reject(new ServiceError("cancelled", "The client left before the end of its body."));
    };
    req.on("data", onData).on("end", onEnd).on("error", onBroken).on("close", onBroken);
  });
}

/** Parsing and cutting up a body of this length takes about 4 ms. */
const LONG_BYTES = 256 * 1024;

let lastTurn: Promise<void> = Promise.resolve();

/**
 * For a long body, waits for a turn of the event loop in which no other long body is parsed: a dozen in one turn would
 * keep heartbeats and tokens waiting for seconds.
 *
 * @throws ServiceError `cancelled` when the client has left meanwhile
 */
export async function turnFor(body: Buffer, req: IncomingMessage): Promise<void> {
  if (body.length < LONG_BYTES) return;
  lastTurn = lastTurn.then(() => new Promise((resolve) => void setImmediate(resolve)));
  await lastTurn;
  if (req.socket.destroyed) throw new ServiceError("cancelled", "The client left before its request was read.");
}

function tooLarge(limitBytes: number): ServiceError {
  const message = `The body is larger than the ${limitBytes} bytes that this server accepts.`;
  return new ServiceError("body_too_large", message);
}
