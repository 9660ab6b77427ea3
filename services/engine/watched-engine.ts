// Watches one engine from when it works until it is lost: reads its counters, judges its progress, polls it and holds a
// connection to its port. What is found is told to the supervisor (supervisor.ts), which decides what becomes of it.
import { connect } from "node:net";
import { splitAddress } from "../common/address.ts";
import type { Clock, Timer } from "../common/clock.ts";
import type { Log } from "../common/log.ts";
import type { StartedEngine } from "./engine.ts";
import { HeldConnection } from "./held-connection.ts";
import { EngineSilent, neverReached } from "./http.ts";
import { haveMoved, isAnotherEngine, readGauges, type EngineGauges } from "./metrics-text.ts";
import { progressJudge, type EngineWork, type Progress, type ProgressBounds } from "./progress.ts";

/** Interval between readings of the engine's counters; at least four fit in the longest stall. */
const TICK_MS = 1_000;
/** The same while a partner is known to be dead. */
const DOUBT_TICK_MS = 250;
const POLL_IDLE_MS = 5_000;
const POLL_TIMEOUT_MS = 2_000;
/** Polls in a row that may be left unanswered. */
const UNANSWERED_LIMIT = 2;

export interface WatchedEngineOptions extends Pick<ProgressBounds, "stallMs" | "kvWaitMs" | "stallsAddUp"> {
  readonly engine: StartedEngine;
  /** False for an attached engine: it has no guardian that would report its end. */
  readonly ours: boolean;
  /**
   * Whether its KV port closes when its core dies, which its API server may outlive by seconds (P2P NCCL on vLLM 0.23: 3
   * to 6 s).
   */
  readonly holdsKvPort: boolean;
  /** The engine's current work. While there is any, its metrics are read once a second. */
  readonly work: () => EngineWork;
  readonly log: Log;
  readonly clock: Clock;
}

/** None is called after `Symbol.dispose`. */
export interface WatchedEngineEvents {
  /** Its HTTP port, or that of its KV. */
  portClosed(): void;
  /** Its socket was removed: no new request reaches it. May be called again. */
  unreachable(): void;
  /** By a verdict on its progress that changed. */
  progress(progress: Exclude<Progress, { kind: "wedged" }>): void;
  wedged(why: string): void;
  /** It is another engine than before, or answers no more. */
  lost(why: string): void;
  /** Its counters were read. */
  counted(): void;
}

export class WatchedEngine {
  readonly engine: StartedEngine;
  readonly sinceMs: number;
  /** Its last metrics. Undefined before the first. */
  counted: EngineGauges | undefined;
  /** When its token counters were last seen to have moved. */
  movedMs = -Infinity;
  readonly #o: WatchedEngineOptions;
  readonly #events: WatchedEngineEvents;
  readonly #port: HeldConnection;
  #kvPort: HeldConnection | undefined;
  #isClosed = false;
  readonly #judge: ReturnType<typeof progressJudge>;
  readonly #tickMs: number;
  #timer: Timer;
  #progress: Progress["kind"] = "sound";
  #polledMs = 0;
  #polling = false;
  /** When the last metrics were asked for. */
  #askedMs = 0;
  /** When it last answered a poll, or was found working. */
  #heardMs: number;
  /** Polls since then. */
  #unanswered = 0;
  #over = false;

  constructor(o: WatchedEngineOptions, events: WatchedEngineEvents) {
    const { engine, clock } = o;
    this.engine = engine;
    this.sinceMs = this.#heardMs = clock.nowMs();
    this.#o = o;
    this.#events = events;
    this.#tickMs = Math.min(TICK_MS, o.stallMs / 4);
    this.#judge = progressJudge({ ...o, tickMs: this.#tickMs });
    this.#port = new HeldConnection({
      dial: () => engine.http.connect(),
      closed: () => this.#portClosed(),
      clock,
    });
    if (o.holdsKvPort && engine.ownKvAddress !== undefined) this.#holdKvPort(engine.ownKvAddress);
    this.#timer = clock.setTimer(this.#tickMs, () => this.#tick());
  }

  /** Its HTTP port, or that of its KV, refuses connections. */
  get isPortClosed(): boolean {
    return this.#isClosed;
  }

  #portClosed(): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.#events.portClosed();
  }

  #holdKvPort(address: string): void {
    // One that was never open says nothing.
    let wasOpen = false;
    const port = new HeldConnection({
      dial: () => connect(splitAddress(address)),
      closed: () => {
        if (wasOpen) this.#portClosed();
      },
      clock: this.#o.clock,
    });
    void port.known.then(() => (wasOpen = !port.isClosed));
    this.#kvPort = port;
  }

  /** Judges it now, because something happened that changes the verdict. */
  look(): void {
    if (this.#over) return;
    this.#timer.cancel();
    this.#tick();
  }

  [Symbol.dispose](): void {
    this.#over = true;
    this.#timer.cancel();
    this.#port[Symbol.dispose]();
    this.#kvPort?.[Symbol.dispose]();
  }

  // Judged also while a poll is unanswered: an engine process that was stopped answers nothing at all.
  #tick(): void {
    const { clock, ours } = this.#o;
    const work = this.#o.work();
    const everyMs = work.partnerIsGone === true ? Math.min(DOUBT_TICK_MS, this.#tickMs) : this.#tickMs;
    this.#timer = clock.setTimer(everyMs, () => this.#tick());
    // Its counters can't be read any more.
    if (this.isPortClosed) return;
    const nowMs = clock.nowMs();
    const isDue = work.legs > 0 || !ours || nowMs - this.#polledMs >= POLL_IDLE_MS;
    if (isDue && !this.#polling) void this.#poll(nowMs);
    const progress = this.#judge({ ...work, nowMs, counted: this.counted, askedMs: this.#askedMs });
    const changed = progress.kind !== this.#progress;
    this.#progress = progress.kind;
    if (progress.kind === "wedged") this.#events.wedged(progress.why);
    else if (changed) this.#events.progress(progress);
  }

  async #poll(nowMs: number): Promise<void> {
    const { engine, ours, log, clock } = this.#o;
    this.#polledMs = nowMs;
    this.#polling = true;
    if (engine.http.isUnreachable) this.#events.unreachable();
    try {
      const { status, body } = await engine.http.get("/metrics", POLL_TIMEOUT_MS);
      if (this.#over) return;
      if (status === 200) {
        const before = this.counted;
        const now = readGauges(body.toString("utf8"));
        // One of ours is reported by its guardian.
        if (!ours && before !== undefined && isAnotherEngine(before, now))
          return this.#events.lost("the attached engine was replaced by another one");
        if (before !== undefined && haveMoved(before, now)) this.movedMs = clock.nowMs();
        this.counted = now;
        this.#askedMs = nowMs;
      }
      this.#unanswered = 0;
      this.#heardMs = clock.nowMs();
      this.#events.counted();
    } catch (error) {
      if (this.#over || this.isPortClosed) return;
      // A server that stops may leave idle connections open, the held one among them.
      if (neverReached(error) && !engine.http.isUnreachable) return this.#portClosed();
      this.#unanswered++;
      log.debug("the engine's metrics can't be read", { error });
      if (this.#unanswered >= UNANSWERED_LIMIT && clock.nowMs() - this.#heardMs >= this.#silenceLimitMs(error))
        this.#events.lost(`the ${ours ? "" : "attached "}engine does not answer`);
    } finally {
      this.#polling = false;
    }
  }

  /** How long the engine may leave polls unanswered, by how the last one failed. */
  #silenceLimitMs(error: unknown): number {
    const { ours, stallMs, kvWaitMs, work } = this.#o;
    // vLLM's API server, busy writing tokens, may leave polls unanswered for seconds while its streams flow: the judge
    // has the last word on an engine of ours, whose end its guardian reports, and an attached one is given as long.
    if (error instanceof EngineSilent)
      return ours ? Infinity : stallMs + ((work().firstTransfers ?? 0) > 0 ? kvWaitMs : 0);
    // It refuses connections or breaks them off. A process of ours that does so for long must be replaced.
    return ours ? stallMs : 0;
  }
}
