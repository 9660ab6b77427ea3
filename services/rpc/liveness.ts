// Finds a peer that fell silent: its host gone, the link cut, the process stopped. TCP alone would take minutes.
import type { ClientHttp2Session } from "node:http2";
import type { Socket } from "node:net";

export interface LivenessOptions {
  readonly pingIntervalMs: number;
  /** Longest time without a byte from the peer. At least twice `pingIntervalMs`. */
  readonly silenceMs: number;
}

/**
 * Sends a PING each interval, and calls `onSilent` once when nothing was heard for `silenceMs`, never later. Any byte
 * counts: behind a full window of data the acknowledgement may take long.
 *
 * @returns A function that ends the watch.
 */
export function watchLiveness(
  session: ClientHttp2Session,
  socket: Socket,
  { pingIntervalMs, silenceMs }: LivenessOptions,
  onSilent: () => void,
): () => void {
  // Bytes are looked at only here, so the figure is this coarse.
  const tickMs = pingIntervalMs / 4;
  let stopped = false;
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
  const silentAt = (nowMs: number): boolean => {
    if (socket.bytesRead !== heardBytes) {
      heardBytes = socket.bytesRead;
      heardMs = Math.max(heardMs, tickedMs); // They may have come right after the last look.
    }
    // The second condition is for a process that was itself stopped: its peer gets time to answer a new PING.
    return outstanding && nowMs + tickMs > heardMs + silenceMs && nowMs + tickMs > pingSentMs + silenceMs - pingIntervalMs;
  };
  const tick = (): void => {
    const nowMs = performance.now();
    if (silentAt(nowMs)) {
      // Timers run before sockets are read. After a pause of this process the answer may lie in the socket already.
      setImmediate(() => {
        if (stopped || !silentAt(nowMs)) return;
        stop();
        onSilent();
      });
    } else if (!outstanding && nowMs + tickMs / 2 > pingSentMs + pingIntervalMs && !session.destroyed) {
      outstanding = true;
      pingSentMs = nowMs;
      // After GOAWAY Node sends no PING any more, although calls still run. Settings must be acknowledged as well.
      if (session.closed) session.settings({}, onAck);
      else if (!session.ping(onAck)) outstanding = false;
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
