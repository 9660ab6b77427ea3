// The call that shows each side of a connection that the other is alive: its message is sent repeatedly and answered
// each time. PINGs would do too, but servers other than Node's treat more than a few of them as an attack and end the
// connection (ENHANCE_YOUR_CALM of gRPC's C core and of grpc-go).
import type { Clock, Timer } from "../common/clock.ts";
import type { ServiceError } from "../common/errors.ts";
import { backoffMs } from "../common/lifecycle.ts";
import { PACE, type Peer, watchLiveness } from "./liveness.ts";
import type { ThinCall, ThinHandlers } from "./thin-call.ts";

/**
 * Header of a heartbeat call: the interval in milliseconds at which the caller sends a message. If no byte arrives on
 * the connection for four intervals, the server doubts the caller: work that only waits for it ends. After 24
 * intervals the caller counts as gone, and all its calls end.
 */
export const HEARTBEAT_HEADER = "tandem-heartbeat-ms";

/** Pause after a peer refused the call. */
const REOPEN = { minMs: 50, maxMs: 1_000 };
/** Time for the peer to end the call after the half-close. */
const LEAVE_MS = 500;

export interface HeartbeatOptions {
  readonly path: string;
  message(): Buffer;
  onMessage(answer: Buffer): void;
  /** The peer ended the call, with or without an error; the connection stays open. The call is retried after a pause. */
  onRefused(error: ServiceError | undefined): void;
}

export interface HeartbeatSide extends Omit<Peer, "ask"> {
  readonly clock: Clock;
  /** Undefined if the connection takes no more calls. */
  open(path: string, handlers: ThinHandlers): ThinCall | undefined;
}

export interface Heartbeat {
  /** Sends the message now, because it has changed. */
  beat(): void;
  /** Half-closes the call, and calls `done` once the peer has ended it, or after 500 ms. */
  leave(done: () => void): void;
  /** Called when the connection is closed. */
  stop(): void;
}

type State =
  | { readonly kind: "open"; readonly call: ThinCall; readonly say: () => void; readonly unwatch: () => void }
  | { readonly kind: "pausing"; readonly timer: Timer }
  | { readonly kind: "leaving"; readonly timer: Timer; readonly done: () => void }
  | { readonly kind: "over" };

export function startHeartbeat(o: HeartbeatOptions, side: HeartbeatSide): Heartbeat {
  let refusals = 0;
  let state: State = open();

  function open(): State {
    let full = false;
    const call = side.open(o.path, {
      onMessage(answer) {
        refusals = 0;
        if (state.kind === "open") o.onMessage(answer);
      },
      onEnd: ended,
      onDrain: () => (full = false),
    });
    if (call === undefined) return { kind: "over" };
    const say = (): void => {
      if (!full) full = !call.write(o.message());
    };
    const unwatch = watchLiveness({ ...side, ask: say }, side.clock, PACE);
    return { kind: "open", call, say, unwatch };
  }

  function ended(error: ServiceError | undefined): void {
    if (state.kind === "open") {
      state.unwatch();
      side.onSuspect(false);
      state = { kind: "pausing", timer: side.clock.setTimer(backoffMs(refusals++, REOPEN), () => (state = open())) };
      o.onRefused(error);
    } else if (state.kind === "leaving") {
      const { timer, done } = state;
      state = { kind: "over" };
      timer.cancel();
      done();
    }
  }

  function stop(): void {
    if (state.kind === "open") state.unwatch();
    else if (state.kind !== "over") state.timer.cancel();
    state = { kind: "over" };
  }

  return {
    beat() {
      if (state.kind === "open") state.say();
    },
    leave(done) {
      if (state.kind !== "open") {
        stop();
        return done();
      }
      const { call, unwatch } = state;
      unwatch();
      const timer = side.clock.setTimer(LEAVE_MS, () => call.cancel());
      state = { kind: "leaving", timer, done };
      call.halfClose();
    },
    stop,
  };
}
