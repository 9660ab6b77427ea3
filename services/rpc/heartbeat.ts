// The call by which both sides of a connection know that the other is there: its message is said again and again, and each
// time answered. PINGs would do it too, but servers other than Node's take more than a few of them for an attack and end
// the connection (ENHANCE_YOUR_CALM of gRPC's C core and of grpc-go).
import type { Clock, Timer } from "../common/clock.ts";
import type { ServiceError } from "../common/errors.ts";
import { backoffMs } from "../common/lifecycle.ts";
import { PACE, watchLiveness } from "./liveness.ts";
import type { ThinCall, ThinHandlers } from "./thin-call.ts";

/**
 * Header of a heartbeat call: its caller says something on it each so many milliseconds. When no byte comes over its
 * connection for four times as long, it is taken for gone, and the server ends all its calls.
 */
export const HEARTBEAT_HEADER = "tandem-heartbeat-ms";

/** After a peer refused the call. */
const REOPEN = { minMs: 50, maxMs: 1_000 };
/** For the peer to end the call after it was half-closed. */
const LEAVE_MS = 500;

export interface HeartbeatOptions {
  readonly path: string;
  /** What is said: now. */
  message(): Buffer;
  onMessage(answer: Buffer): void;
  /** The peer ended the call, well or with an error, and the connection stands. The call is opened again after a pause. */
  onRefused(error: ServiceError | undefined): void;
}

export interface HeartbeatSide {
  readonly clock: Clock;
  /** Undefined where the connection takes no more calls. */
  open(path: string, handlers: ThinHandlers): ThinCall | undefined;
  bytesRead(): number;
  onSuspect(suspect: boolean): void;
  onSilent(): void;
}

export interface Heartbeat {
  /** Says its message now, because it has changed. */
  beat(): void;
  /** Half-closes the call, and calls `done` once the peer has ended it, or has had 500 ms for that. */
  leave(done: () => void): void;
  /** Its connection is closed. */
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
    const { bytesRead, onSuspect, onSilent } = side;
    const unwatch = watchLiveness({ bytesRead, ask: say }, side.clock, PACE, { onSuspect, onSilent });
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
