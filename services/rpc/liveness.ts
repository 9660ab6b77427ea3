// Finds a peer that fell silent: its host is gone, the link cut, the process stopped. TCP alone would take minutes.
import type { Clock, Timer } from "../common/clock.ts";

export interface HeartbeatPace {
  /** How often the peer says something, at least: of itself, or because it is asked. */
  readonly beatMs: number;
  /** A peer is suspect when no byte has come from it for this long: new work goes elsewhere where it can. */
  readonly suspectMs: number;
  /** A peer is silent when no byte has come from it for this long. At least twice `beatMs`. */
  readonly silenceMs: number;
}

export const PACE: HeartbeatPace = { beatMs: 500, suspectMs: 1_300, silenceMs: 2_000 };

export interface Peer {
  /** Read from it so far. Any byte counts: behind a full window of data an answer may take long. */
  bytesRead(): number;
  /** Called each `beatMs`, at once for the first time: asks for a sign of life. */
  ask(): void;
}

export interface LivenessListener {
  /** False: it was heard again. */
  onSuspect(suspect: boolean): void;
  /** Once, as the last call, and never later than `silenceMs` after the last byte unless this process paused itself. */
  onSilent(): void;
}

/** @returns A function that ends the watch. */
export function watchLiveness(
  peer: Peer,
  clock: Clock,
  { beatMs, suspectMs, silenceMs }: HeartbeatPace,
  { onSuspect, onSilent }: LivenessListener,
): () => void {
  // Bytes are looked for only here, so the figure is this coarse.
  const tickMs = beatMs / 4;
  /** A tick that comes so late shows that this process paused, or its whole machine, and nothing of the peer. */
  const ownPauseMs = silenceMs / 4;
  let state: "heard" | "suspect" | "over" = "heard";
  let bytesRead = peer.bytesRead();
  let heardMs = clock.nowMs();
  /** When it was first asked since it was heard. */
  let askedMs: number | undefined;
  let nextAskMs = heardMs;
  let tickedMs = heardMs - tickMs;
  let timer: Timer | undefined;

  const listen = (): void => {
    const bytes = peer.bytesRead();
    if (bytes === bytesRead) return;
    bytesRead = bytes;
    heardMs = Math.max(heardMs, tickedMs); // They may have come right after the last look.
    askedMs = undefined;
  };
  // The second condition gives a peer time to answer a question that was asked late.
  const quietFor = (limitMs: number, nowMs: number): boolean =>
    askedMs !== undefined && nowMs + tickMs > heardMs + limitMs && nowMs + tickMs > askedMs + limitMs - beatMs;
  const become = (next: "heard" | "suspect"): void => {
    if (state === "over" || state === next) return;
    state = next;
    onSuspect(next === "suspect");
  };
  const stop = (): void => {
    state = "over";
    timer?.cancel();
  };
  const judge = (nowMs: number): void => {
    if (state === "over") return;
    listen();
    if (quietFor(silenceMs, nowMs)) {
      stop();
      onSilent();
    } else if (quietFor(suspectMs, nowMs)) become("suspect");
  };
  const tick = (): void => {
    const nowMs = clock.nowMs();
    const lateMs = nowMs - tickedMs - tickMs;
    if (lateMs > ownPauseMs) {
      heardMs += lateMs;
      if (askedMs !== undefined) askedMs += lateMs;
    }
    listen();
    // Timers run before sockets are read: what is missed may lie in the socket already.
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
