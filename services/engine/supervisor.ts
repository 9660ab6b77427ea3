// Watches one engine: starts it, and starts another when needed, with a growing pause. What is known of its death, and
// what becomes of its running legs:
//
// - Its process has ended: one of ours, as its guardian reports (spawned.ts). Its legs fail at once, and the instance
//   takes none until the next engine works. So too in the next cases.
// - It has stalled (progress.ts): nothing that runs in it would ever end. While that is only likely, because a partner
//   has died to which it sends KV, the instance takes no leg.
// - An attached one leaves polls unanswered, as when its machine is gone; or /health fails, which is asked as soon as a
//   call fails; or its counters are another engine's (metrics-text.ts), as behind a proxy.
// - Its port is closed (held-connection.ts), or its socket was removed: it has died, or stops and ends what runs in it,
//   or is reached no more. The instance takes no leg from then on and drops those that wait for their prefill. Running
//   legs have connections of their own: they go on, or have ended with the engine. Then it is given up as above.
// - It works, but should be replaced (it holds much KV that nothing else frees), and the routers grant that
//   (instance/restart-lease.ts). The instance takes no leg from then on, running legs end, and only then the engine is
//   killed, or the operator's command restarts it. If it stalls meanwhile, that ends it sooner.
//
// The next engine gets a KV port that no engine had here (spawned.ts): vLLM's P2P NCCL never forgets a partner, and
// hangs with one that reuses the address of another. A prefill engine that waits for a killed decode engine stalls; its
// own instance knows of the death by the closed port (prefill/partners.ts), and then believes a stall sooner.
import { type Clock, pause, settlesWithin, systemClock } from "../common/clock.ts";
import { ServiceError } from "../common/errors.ts";
import { backoffMs } from "../common/lifecycle.ts";
import type { Log } from "../common/log.ts";
import type { EngineSource, LiveEngine, StartedEngine } from "./engine.ts";
import { HeldConnection } from "./held-connection.ts";
import { EngineSilent, neverReached } from "./http.ts";
import { haveMoved, isAnotherEngine, NO_GAUGES, readGauges, type EngineGauges } from "./metrics-text.ts";
import type { EngineWork } from "./progress.ts";
import { WatchedEngine } from "./watched-engine.ts";

/** A start before any was measured. */
const FIRST_LOAD_MS = 30_000;
/** A start that takes longer than expected is expected to take this share of its time more. */
const OVERDUE = 0.25;
const LEAST_MS = 500;
const RESTART_PAUSE = { minMs: 100, maxMs: 10_000 };
/** Between two runs of the operator's command for an attached engine. */
const COMMAND_PAUSE_MS = 60_000;
/** An engine that lived this long had a good start: the next pause is a short one again. */
const SETTLED_MS = 30_000;
const LOOK_TIMEOUT_MS = 2_000;
/** From an engine's closed port to its guardian's report. */
const REPORT_MS = 1_000;
/** How long it usually takes until an engine whose partner died has moved, or is found wedged. */
const DOUBT_MS = 1_000;
const DOUBT = "a decode engine died with KV on its way to it; whether this engine still works shows in a moment";

export interface SupervisorOptions {
  readonly source: EngineSource;
  readonly log: Log;
  /** The engine's current work. While there is any, its metrics are read once a second. */
  readonly work: () => EngineWork;
  /** Longest time without a token, beside what prompts need. An engine that exceeds it is wedged. */
  readonly stallMs: number;
  /** What it gets on top while a request in it waits for its KV. Default 0. */
  readonly kvWaitMs?: number;
  /** Whether the engine's KV port closes when it dies. Default false. */
  readonly holdsKvPort?: boolean;
  /** See `ProgressBounds`. Default false. */
  readonly stallsAddUp?: boolean;
  /** Resolves when no leg runs on the engine any more, or may run any longer. Left out: there is no wait. */
  readonly emptied?: (stop: AbortSignal) => Promise<unknown>;
  readonly clock?: Clock;
}

/**
 * When its engine dies, every call to the engine ends at once: with the socket's error, with `engine_failed`, or with
 * `instance_lost` if the engine hung because another one died, of which no request is the cause.
 */
export class EngineSupervisor {
  readonly #o: SupervisorOptions;
  readonly #clock: Clock;
  readonly #listeners: (() => void)[] = [];
  // Its own end, apart from the signal of the start: after a signal the engine goes on until its legs have drained.
  readonly #over = new AbortController();
  #watched: WatchedEngine | undefined;
  #reason = "the engine is starting";
  #starts = 0;
  /** Pauses before restarts since the last good start. */
  #attempt = 0;
  #restarting: Promise<void> | undefined;
  /** When the start that runs began, its pause included. Undefined while an engine works. */
  #loadingSinceMs: number | undefined;
  /** How long the last start took. */
  #loadMs = FIRST_LOAD_MS;
  /** The counters of an attached engine when it was found wedged. It is back when they have moved. */
  #wedgedAt: EngineGauges | undefined;
  /** When the operator's command may run again. */
  #restartAgainMs = -Infinity;

  constructor(o: SupervisorOptions) {
    this.#o = o;
    this.#clock = o.clock ?? systemClock;
  }

  /** Resolves when the first engine works. @throws the error of `source.start` */
  async start(signal: AbortSignal): Promise<void> {
    this.#loadingSinceMs = this.#clock.nowMs();
    this.#watch(await this.#o.source.start(signal));
  }

  /** False for an attached engine. */
  get ours(): boolean {
    return this.#o.source.ours;
  }

  /** Whether it can be started again from here: it is ours, or its operator said how. */
  get canRestart(): boolean {
    return this.ours || this.#o.source.restart !== undefined;
  }

  /** Undefined while no engine works, or the one that works takes no new calls. */
  get live(): LiveEngine | undefined {
    return this.#watched?.isPortClosed === true ? undefined : this.#watched?.engine;
  }

  /**
   * Why no engine works, for people. With a live engine: why it is about to be restarted; its running legs go on, no new
   * ones may be sent. Empty while the engine works.
   */
  get reason(): string {
    return this.#reason;
  }

  /** When its token counters were last seen to have moved. Of an engine that has had nothing to do: long ago. */
  get movedMs(): number {
    return this.#watched?.movedMs ?? -Infinity;
  }

  /**
   * In what time legs are expected to be taken again. Undefined while they are, or if no engine can be restarted.
   */
  get readyInMs(): number | undefined {
    if (this.#reason === DOUBT) return DOUBT_MS;
    if (this.#loadingSinceMs === undefined || !this.canRestart) return undefined;
    const spentMs = this.#clock.nowMs() - this.#loadingSinceMs;
    return Math.round(Math.max(this.#loadMs - spentMs, spentMs * OVERDUE, LEAST_MS));
  }

  get gauges(): EngineGauges {
    return this.#watched?.counted ?? NO_GAUGES;
  }

  /** Starts after the first one. */
  get restarts(): number {
    return Math.max(0, this.#starts - 1);
  }

  /** Called when `live`, `reason` or `gauges` changed. */
  onChange(listener: () => void): void {
    this.#listeners.push(listener);
  }

  /** A call to `engine` failed in a way that a dead one would explain: look at once. */
  suspect(engine: LiveEngine): void {
    const watched = this.#watched;
    if (watched?.engine !== engine) return;
    void engine.http.get("/health", LOOK_TIMEOUT_MS).then(
      ({ status }) => {
        if (status !== 200) this.#lose(watched, new Error(`the engine's /health answers ${status}`));
      },
      (error: unknown) => {
        // The engine may be busy for a moment. The guardian reports the death of our own, the held connection that of an
        // attached one, and polls judge silence.
        if (this.ours || error instanceof EngineSilent || neverReached(error)) return;
        this.#lose(watched, new Error("the attached engine does not answer", { cause: error }));
      },
    );
  }

  /**
   * Replaces an engine that works, when its running legs have ended. Nothing happens if it can't be restarted, or was a
   * moment ago by its operator's command. If that command fails, the engine serves on.
   */
  restart(engine: LiveEngine, why: string): void {
    const watched = this.#watched;
    if (watched?.engine !== engine || this.#reason !== "" || !this.canRestart || this.#commandRests) return;
    const goesOn = (error: unknown): false => {
      // The command may have failed after the engine had ended.
      if (this.live !== engine || this.#over.signal.aborted) return false;
      this.#o.log.error("the engine could not be restarted, and serves on", { error });
      this.#reason = "";
      this.#changed();
      return false;
    };
    const haveRestarted = (): Promise<boolean> => this.#haveRestarted(why).then(() => true, goesOn);
    void this.#retire(watched, `the engine restarts when its running legs have ended: ${why}`, why, haveRestarted);
  }

  /** Stops the engine: SIGTERM, and SIGKILL after `graceMs`. An attached one is left alone. May be called twice. */
  async stop(graceMs: number): Promise<void> {
    this.#over.abort(new Error("stopped"));
    await Promise.all([this.#watched?.engine.stop(graceMs), this.#restarting]);
    if (this.#watched !== undefined) this.#lose(this.#watched, new Error("stopped"));
  }

  /** Whether the engine works may have changed: judge it now. */
  look(): void {
    this.#watched?.look();
  }

  #watch(engine: StartedEngine): void {
    const { kvWaitMs = 0, holdsKvPort = false } = this.#o;
    const watched: WatchedEngine = new WatchedEngine(
      { ...this.#o, engine, ours: this.ours, kvWaitMs, holdsKvPort, clock: this.#clock },
      {
        portClosed: () => this.#portClosed(watched),
        unreachable: () => this.#unreachable(watched),
        progress: ({ kind }) => this.#doubted(watched, kind === "doubtful"),
        wedged: (why) => this.#wedged(watched, why),
        lost: (why) => this.#lose(watched, new Error(why)),
        counted: () => this.#changed(),
      },
    );
    this.#watched = watched;
    if (this.#loadingSinceMs !== undefined) this.#loadMs = this.#clock.nowMs() - this.#loadingSinceMs;
    this.#loadingSinceMs = undefined;
    this.#reason = "";
    this.#starts++;
    void engine.ended.then((error) => this.#lose(watched, error));
    this.#changed();
  }

  #unreachable(watched: WatchedEngine): void {
    if (this.#watched !== watched || this.#reason !== "") return;
    const why = "its socket was removed, so that no new request reaches it";
    void this.#retire(watched, `the engine is given up when its running legs have ended: ${why}`, why);
  }

  #doubted(watched: WatchedEngine, isDoubtful: boolean): void {
    if (this.#watched !== watched || this.#reason !== (isDoubtful ? "" : DOUBT)) return;
    this.#reason = isDoubtful ? DOUBT : "";
    this.#o.log.warn(isDoubtful ? "the engine takes no new legs" : "the engine takes legs again", { reason: DOUBT });
    this.#changed();
  }

  #wedged(watched: WatchedEngine, why: string): void {
    if (!this.ours) this.#wedgedAt = watched.counted ?? NO_GAUGES;
    const cure = this.canRestart ? "" : `; restart ${this.#o.source.process?.()}`;
    const code = this.#o.work().partnerIsGone === true ? "instance_lost" : "engine_failed";
    this.#lose(watched, new Error(`the engine is ${why}${cure}`), code);
  }

  #portClosed(watched: WatchedEngine): void {
    if (this.#watched !== watched || this.#over.signal.aborted) return;
    const reason = "the engine's port is closed: it stops, or has died";
    void this.#retire(watched, reason, "the engine has closed its port", async () => {
      // The guardian knows how it ended.
      if (this.ours) await settlesWithin(this.#clock, watched.engine.ended, REPORT_MS);
      return true;
    });
  }

  /** Takes no leg from now on. The engine is given up when the running ones have ended, if it can be by then. */
  async #retire(
    watched: WatchedEngine,
    reason: string,
    why: string,
    isReady: () => Promise<boolean> = async () => true,
  ): Promise<void> {
    this.#reason = reason;
    this.#o.log.warn("the engine takes no new legs", { restarts: this.restarts, reason });
    this.#changed();
    await this.#o.emptied?.(this.#over.signal);
    if (await isReady()) this.#lose(watched, new Error(why));
  }

  #lose(watched: WatchedEngine, why: Error, code: "engine_failed" | "instance_lost" = "engine_failed"): void {
    if (this.#watched !== watched) return;
    const { engine, sinceMs } = watched;
    const over = this.#over.signal.aborted;
    watched[Symbol.dispose]();
    this.#watched = undefined;
    this.#reason = over ? "stopped" : firstLine(why.message);
    engine.http.close(new ServiceError(code, "The engine stopped while working on the request.", { cause: why }));
    if (!over) {
      this.#o.log.error("the engine is lost", { restarts: this.restarts, why: why.message });
      if (this.#clock.nowMs() - sinceMs > SETTLED_MS) this.#attempt = 0;
      this.#restarting = this.#startAgain(engine);
    }
    this.#changed();
  }

  async #startAgain(old: StartedEngine): Promise<void> {
    const { source, log } = this.#o;
    const over = this.#over.signal;
    this.#loadingSinceMs = this.#clock.nowMs();
    // The old process must not hold memory or ports when the new one starts.
    await old.stop(0);
    // A process that ends is wedged no more, whatever the next one counts.
    using _port = new HeldConnection({
      dial: () => old.http.connect(),
      closed: () => void (this.#wedgedAt = undefined),
      clock: this.#clock,
    });
    for (;;) {
      await pause(this.#clock, backoffMs(this.#attempt++, RESTART_PAUSE), over);
      if (over.aborted) return;
      try {
        await this.#haveRestarted(this.#reason);
        const next = await source.start(over);
        if (over.aborted) return await next.stop(0);
        if (this.#wedgedAt !== undefined && !(await hasMoved(next, this.#wedgedAt))) {
          await next.stop(0);
          const cure = source.process === undefined ? "" : `; restart ${source.process()}`;
          throw new Error(`the attached engine is wedged: it answers, but its token counters have stalled${cure}`);
        }
        this.#wedgedAt = undefined;
        this.#watch(next);
        log.info("the engine works again", { restarts: this.restarts, kvAddress: next.kvAddress });
        return;
      } catch (error) {
        if (over.aborted) return;
        this.#loadingSinceMs = this.#clock.nowMs();
        this.#reason = firstLine((error as Error).message);
        log.error("the engine could not be restarted", { error });
        this.#changed();
      }
    }
  }

  /** Whether the operator's command ran a moment ago. */
  get #commandRests(): boolean {
    return this.#clock.nowMs() < this.#restartAgainMs;
  }

  /** Of an attached engine, as its operator said. Once, and again after a pause if that didn't help. */
  async #haveRestarted(why: string): Promise<void> {
    const { restart } = this.#o.source;
    if (restart === undefined || this.#commandRests) return;
    this.#restartAgainMs = this.#clock.nowMs() + COMMAND_PAUSE_MS;
    await restart(why, this.#over.signal);
  }

  #changed(): void {
    for (const listener of this.#listeners) listener();
  }
}

/** `/health` alone is not enough: a permanently stalled engine answers it with 200. */
async function hasMoved({ http }: LiveEngine, before: EngineGauges): Promise<boolean> {
  const now = readGauges((await http.get("/metrics", LOOK_TIMEOUT_MS)).body.toString("utf8"));
  return haveMoved(before, now) || isAnotherEngine(before, now);
}

function firstLine(text: string): string {
  return text.split("\n", 1)[0]!;
}
