// Cuts a client that holds its answer, and with it a KV slot, by reading next to nothing. A minimum rate rather than "no
// byte at all": a client that takes one byte a second would keep its slot for as long as it likes.
import type { ServerResponse } from "node:http";
import type { Socket } from "node:net";
import type { Clock, Timer } from "../../common/clock.ts";

/** The text of a slow model has five times as much. */
const LEAST_BYTES_PER_S = 128;

export interface ReaderWatch {
  /** Bytes wait for the client from now on. Called again while it runs, it has no effect. */
  start(): void;
  /** None wait any more. */
  stop(): void;
}

/**
 * @param takenBytes Bytes that the client's connection has taken so far.
 * @param onStall Called once, after `stallMs` in which the connection took less than the least rate.
 */
export function watchReader(
  takenBytes: () => number,
  { stallMs, clock, onStall }: { readonly stallMs: number; readonly clock: Clock; onStall(): void },
): ReaderWatch {
  const leastBytes = Math.max(1, (LEAST_BYTES_PER_S * stallMs) / 1_000);
  let timer: Timer | undefined;
  const arm = (): void => {
    const before = takenBytes();
    timer = clock.setTimer(stallMs, () => {
      timer = undefined;
      if (takenBytes() - before < leastBytes) onStall();
      else arm();
    });
  };
  return {
    start() {
      if (timer === undefined) arm();
    },
    stop() {
      timer?.cancel();
      timer = undefined;
    },
  };
}

/** The parts of a socket that Node keeps to itself, as in Node 20 to 24. Its public figures count whole writes only. */
interface Inside {
  readonly _bytesDispatched?: number;
  readonly _handle?: { readonly writeQueueSize?: number } | null;
}

/** Bytes that the kernel has taken for the response's connection. */
export function takenBytes({ socket }: Pick<ServerResponse, "socket">): number {
  const { _bytesDispatched: given = 0, _handle } = (socket ?? {}) as Socket & Inside;
  return given - (_handle?.writeQueueSize ?? 0);
}
