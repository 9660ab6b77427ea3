// Finds a peer that fell silent: its host gone, the link cut, the process stopped. TCP alone would take minutes.
import type { ClientHttp2Session } from "node:http2";
import type { Socket } from "node:net";

export interface LivenessOptions {
  readonly pingIntervalMs: number;
  /** So long without a byte from the peer, and it is doubted: it gets nothing new where another can do it. */
  readonly doubtMs: number;
  /** Longest time without a byte from the peer. At least twice `pingIntervalMs`. */
  readonly silenceMs: number;
}

export interface LivenessListener {
  /** False: it was heard again. Not called any more once it is silent. */
  onDoubt(doubted: boolean): void;
  /** Once, and never later than `silenceMs` after the last byte, unless this process stood still itself. */
  onSilent(): void;
}

/**
 * Sends a PING when nothing was heard for an interval, and tells when nothing comes. Any byte counts: behind a full window of data the
 * acknowledgement may take long.
 *
 * @returns A function that ends the watch.
 */
export function watchLiveness(
  session: ClientHttp2Session,
  socket: Socket,
  { pingIntervalMs, doubtMs, silenceMs }: LivenessOptions,
  { onDoubt, onSilent }: LivenessListener,
): () => void {
  // Bytes are looked at only here, so the figure is this coarse.
  const tickMs = pingIntervalMs / 4;
  /** A tick that comes so late shows that this process stood still, or its whole machine, and nothing of the peer. */
  const ownPauseMs = silenceMs / 4;
  let stopped = false;
  let doubted = false;
  let heardMs = performance.now();
  let heardBytes = socket.bytesRead;
  let tickedMs = heardMs;
  let pingSentMs = -Infinity;
  let outstanding = false;

  const onAck = (error: Error | null): void => {
    if (error !== null) return;
    outstanding = false;
    heardMs = performance.now();
  };
  const quietAt = (nowMs: number): "no" | "doubted" | "silent" => {
    if (socket.bytesRead !== heardBytes) {
      heardBytes = socket.bytesRead;
      heardMs = Math.max(heardMs, tickedMs); // They may have come right after the last look.
    }
    // The second condition gives a peer time to answer a PING that was sent late.
    const over = (limitMs: number): boolean =>
      outstanding && nowMs + tickMs > heardMs + limitMs && nowMs + tickMs > pingSentMs + limitMs - pingIntervalMs;
    return over(silenceMs) ? "silent" : over(doubtMs) ? "doubted" : "no";
  };
  const doubt = (now: boolean): void => {
    if (doubted === now) return;
    doubted = now;
    onDoubt(now);
  };
  const tick = (): void => {
    const nowMs = performance.now();
    const lateMs = nowMs - tickedMs - tickMs;
    if (lateMs > ownPauseMs) {
      heardMs += lateMs;
      pingSentMs += lateMs;
    }
    if (quietAt(nowMs) !== "no") {
      // Timers run before sockets are read: the answer may lie in the socket already.
      setImmediate(() => {
        if (stopped) return;
        const quiet = quietAt(nowMs);
        if (quiet === "doubted") doubt(true);
        if (quiet !== "silent") return;
        stop();
        onSilent();
      });
    } else {
      doubt(false);
      // Who is heard anyway is not asked.
      if (!outstanding && nowMs + tickMs / 2 > Math.max(pingSentMs, heardMs) + pingIntervalMs && !session.destroyed) {
        outstanding = true;
        pingSentMs = nowMs;
        // After GOAWAY Node sends no PING any more, although calls still run. Settings must be acknowledged as well.
        if (session.closed) session.settings({}, onAck);
        else if (!session.ping(onAck)) outstanding = false;
      }
    }
    tickedMs = nowMs;
  };
  const timer = setInterval(tick, tickMs);
  timer.unref();
  const stop = (): void => {
    stopped = true;
    clearInterval(timer);
  };
  tick();
  return stop;
}
