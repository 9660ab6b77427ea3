// An idle TCP connection, held for the news of its end. The system closes all connections of a process that dies, and
// refuses new ones at its port; so the death is known at once, and not at the next poll. An end alone means nothing,
// because servers close idle connections: only a port that refuses the next one is closed. A proxy in between accepts it,
// and ends it at once, each time.
import type { Socket } from "node:net";
import { type Clock, type Deferred, deferred, type Timer } from "../common/clock.ts";

/** No server ends an idle connection sooner than this. */
const SHORT_MS = 250;
/** After so many short connections in a row the next one waits, and if it is short as well, nothing is behind the port. */
const SHORT_LIMIT = 3;
const SHORT_PAUSE_MS = 1_000;
/** A machine that was restarted closes nothing: it refuses to know the connection when it is asked. */
const KEEP_ALIVE_MS = 5_000;

export interface HeldConnectionOptions {
  dial(): Socket;
  /** The port is closed. Called once; nothing is held from then on. */
  closed(): void;
  readonly clock: Clock;
}

export class HeldConnection {
  readonly #o: HeldConnectionOptions;
  #known: Deferred<void> = deferred();
  #socket: Socket | undefined;
  #timer: Timer | undefined;
  #shortCount = 0;
  #over = false;
  /** Whether the port refused the last connection. */
  isClosed = false;

  constructor(o: HeldConnectionOptions) {
    this.#o = o;
    this.#dial();
  }

  /** Resolves when it is known whether the port is closed now. */
  get known(): Promise<void> {
    return this.#known.promise;
  }

  [Symbol.dispose](): void {
    this.#over = true;
    this.#known.resolve();
    this.#timer?.cancel();
    this.#socket?.destroy();
  }

  #dial(): void {
    const { clock } = this.#o;
    const dialledMs = clock.nowMs();
    let refused = false;
    const socket = this.#o.dial();
    this.#socket = socket;
    socket.once("connect", () => this.#known.resolve());
    socket.on("error", ({ code }: NodeJS.ErrnoException) => (refused = code === "ECONNREFUSED" || code === "ENOENT"));
    socket.once("close", () => {
      if (this.#over) return;
      this.#shortCount = clock.nowMs() - dialledMs < SHORT_MS ? this.#shortCount + 1 : 0;
      if (refused || this.#shortCount > SHORT_LIMIT) {
        this.isClosed = true;
        this[Symbol.dispose]();
        return this.#o.closed();
      }
      this.#known.resolve();
      this.#known = deferred();
      if (this.#shortCount < SHORT_LIMIT) this.#dial();
      else this.#timer = clock.setTimer(SHORT_PAUSE_MS, () => this.#dial());
    });
    socket.setKeepAlive(true, KEEP_ALIVE_MS);
    socket.resume();
    socket.unref();
  }
}
