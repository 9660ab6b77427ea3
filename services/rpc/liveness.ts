// Finds a peer that fell silent: its host is gone, the link cut, the process stopped. TCP alone would take minutes.
// Silence is counted in time in which this process ran: a pause, or a processor that is shared with too many others,
// makes this process deaf and says nothing about the peer.
import type { Clock, Timer } from "../common/clock.ts";
import { PUNCTUAL_MS } from "../common/event-loop.ts";

export interface HeartbeatPace {
  /** Longest interval between signs of life of a healthy peer, sent by itself or on request. */
  readonly beatMs: number;
  /** A peer is suspect when no byte has come from it for this long: new work goes elsewhere where it can. */
  readonly suspectMs: number;
  /** A peer is silent when no byte has come from it for this long. At least twice `beatMs`. */
  readonly silenceMs: number;
}

export const PACE: HeartbeatPace = { beatMs: 500, suspectMs: 1_300, silenceMs: 2_000 };

export interface Peer {
  /** Bytes read from the peer so far. Any byte counts: an answer may take long behind a full window of data. */
  bytesRead(): number;
  /** Asks for a sign of life. Called at once, and then each `beatMs`. */
  ask(): void;
  /** More time, in milliseconds, before the peer counts as silent. Left out: none. */
  patienceMs?(): number;
  /** False: the peer has sent a byte again. */
  onSuspect(suspect: boolean): void;
  /** Once, as the last call, and never later than `silenceMs` and the patience after the last byte, in own time. */
  onSilent(): void;
}

/** @returns A function that ends the watch. */
export function watchLiveness(peer: Peer, clock: Clock, { beatMs, suspectMs, silenceMs }: HeartbeatPace): () => void {
  // Bytes are checked only here, so the figure is this coarse.
  const tickMs = beatMs / 4;
  let state: "heard" | "suspect" | "over" = "heard";
  let bytesRead = peer.bytesRead();
  let heardMs = clock.nowMs();
  /** When the peer was first asked since its last byte. */
  let askedMs: number | undefined;
  let nextAskMs = heardMs;
  let tickedMs = heardMs - tickMs;
  let timer: Timer | undefined;

  const listen = (): void => {
    const bytes = peer.bytesRead();
    if (bytes === bytesRead) return;
    bytesRead = bytes;
    heardMs = Math.max(heardMs, tickedMs); // The bytes may have arrived right after the last check.
    askedMs = undefined;
  };
  // The second condition gives the peer time to answer a late question.
  const quietFor = (limitMs: number, nowMs: number): boolean =>
    askedMs !== undefined && nowMs + tickMs > heardMs + limitMs && nowMs + tickMs > askedMs + limitMs - beatMs;
  const become = (next: "heard" | "suspect"): void => {
    if (state === "over" || state === next) return;
    state = next;
    peer.onSuspect(next === "suspect");
  };
  const stop = (): void => {
    state = "over";
    timer?.cancel();
  };
  const judge = (nowMs: number): void => {
    if (state === "over") return;
    listen();
    if (quietFor(silenceMs + (peer.patienceMs?.() ?? 0), nowMs)) {
      stop();
      peer.onSilent();
    } else if (quietFor(suspectMs, nowMs)) become("suspect");
  };
  const tick = (): void => {
    const nowMs = clock.nowMs();
    const lateMs = nowMs - tickedMs - tickMs;
    if (lateMs > PUNCTUAL_MS) {
      heardMs += lateMs;
      if (askedMs !== undefined) askedMs += lateMs;
    }
    listen();
    // Timers run before sockets are read: the missing bytes may already be in the socket.
    if (quietFor(suspectMs, nowMs)) setImmediate(() => judge(nowMs));
    else become("heard");
    if (nowMs + tickMs / 2 >= nextAskMs) {
      nextAskMs = nowMs + beatMs;
      askedMs ??= nowMs;
      peer.ask();
    }
    tickedMs = nowMs;
    if (state !== "over") timer = clock.setTimer(tickMs, tick);
  };
  tick();
  return stop;
}
