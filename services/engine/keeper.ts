// Keeps one engine alive: starts it, watches it, and starts another when needed, with a growing pause. Reasons to
// restart an engine, and the fate of its running legs:
//
// - It died or stalled (progress.ts; nothing that runs on it would ever end): its legs fail at once, and the
//   instance takes none until the next engine works.
// - It works, but its state can no longer be trusted (KV that can't be accounted for): it retires. The instance takes
//   no leg from then on, running legs end within `drain.grace_ms`, and only then the engine is killed. If the engine
//   stalls meanwhile, the first case ends it sooner.
// - An operator wants it: drain the instance, SIGTERM, start the instance again (instance.ts).
//
// The next engine gets a KV port that no engine had here (spawned.ts): vLLM's P2P NCCL never forgets a partner, and
// hangs with one that reuses the address of another. If a prefill engine waits for a killed decode engine, its own
// instance notices the closed port (prefill/partner-watch.ts) and restarts it at once; the router retries its legs on
// other pairs.
import { type Clock, pause, systemClock, type Timer } from "../common/clock.ts";
import { ServiceError } from "../common/errors.ts";
import { backoffMs } from "../common/lifecycle.ts";
import type { Log } from "../common/log.ts";
import type { EngineKeeper, EngineSource, LiveEngine, StartedEngine } from "./engine.ts";
import { EngineSilent } from "./http.ts";
import { NO_GAUGES, readGauges, type EngineGauges } from "./metrics-text.ts";
import { createProgressJudge, type EngineWork, type ProgressJudge } from "./progress.ts";

const RESTART_PAUSE = { minMs: 100, maxMs: 10_000 };
/** An engine that lived this long had a good start: the next pause is a short one again. */
const SETTLED_MS = 30_000;
/** Interval between readings of the engine's counters; at least four fit in the longest stall. */
const TICK_MS = 1_000;
const POLL_IDLE_MS = 5_000;
const POLL_TIMEOUT_MS = 2_000;
/** Polls in a row that an attached engine may leave unanswered. */
const UNANSWERED_LIMIT = 2;

export interface KeeperOptions {
  readonly source: EngineSource;
  readonly log: Log;
  /** The engine's current work. While there is any, its metrics are read once a second. */
  readonly work: () => EngineWork;
  /** Longest time without a token, beside what prompts need. An engine that exceeds it is wedged. */
  readonly stallMs: number;
  /** What it gets on top while a request in it waits for its KV. Default 0. */
  readonly kvWaitMs?: number;
  /** Resolves when no leg runs on the engine any more, or may run any longer. Left out: there is no wait. */
  readonly emptied?: (stop: AbortSignal) => Promise<void>;
  readonly clock?: Clock;
}

/**
 * Resolves when the first engine works.
 *
 * @throws the error of `source.start`, for the first start only.
 */
export async function keepEngine(o: KeeperOptions, stop: AbortSignal): Promise<EngineKeeper> {
  const { source, log, clock = systemClock } = o;
  const listeners: (() => void)[] = [];
  const changed = (): void => {
    for (const listener of listeners) listener();
  };
  // The keeper's own end, apart from `stop`: after a signal the engine goes on until its legs have drained.
  const over = new AbortController();
  let live: LiveEngine | undefined;
  let started: StartedEngine | undefined;
  let reason = "the engine is starting";
  let gauges: EngineGauges = NO_GAUGES;
  let counted: EngineGauges | undefined;
  /** The counters of an attached engine when it was found wedged. It is back when they have moved. */
  let wedgedAt: EngineGauges | undefined;
  let incarnation = 0;
  let attempt = 0;
  let liveSinceMs = 0;
  let unanswered = 0;
  /** When it last answered a poll, or was found working. */
  let heardMs = 0;
  let tickTimer: Timer | undefined;
  let polling = false;
  let polledMs = 0;
  let restarting: Promise<void> | undefined;
  /** Finishes its running legs and is then restarted. */
  let retiring: LiveEngine | undefined;
  const tickMs = Math.min(TICK_MS, o.stallMs / 4);

  function came(next: StartedEngine): void {
    started = next;
    incarnation++;
    const engine: LiveEngine = { incarnation, http: next.http, kvAddress: next.kvAddress, facts: next.facts };
    live = engine;
    liveSinceMs = clock.nowMs();
    reason = "";
    unanswered = 0;
    heardMs = clock.nowMs();
    counted = undefined;
    polling = false;
    void next.ended.then((error) => lose(engine, error));
    const judge = createProgressJudge({ stallMs: o.stallMs, kvWaitMs: o.kvWaitMs ?? 0, tickMs });
    const tickOn = (): void => {
      tickTimer = clock.setTimer(tickMs, tickOn);
      tick(engine, judge);
    };
    tickTimer = clock.setTimer(tickMs, tickOn);
    changed();
  }

  function lose(engine: LiveEngine, why: Error): void {
    if (live !== engine) return;
    tickTimer?.cancel();
    live = undefined;
    retiring = undefined;
    gauges = NO_GAUGES;
    reason = over.signal.aborted ? "stopped" : firstLine(why.message);
    engine.http.close(
      new ServiceError("engine_failed", "The engine stopped while working on the request.", { cause: why }),
    );
    if (!over.signal.aborted) {
      log.error("the engine is lost", { incarnation: engine.incarnation, why: why.message });
      if (clock.nowMs() - liveSinceMs > SETTLED_MS) attempt = 0;
      restarting = startAgain();
    }
    changed();
  }

  async function retire(
    engine: LiveEngine,
    why: string,
    emptied: NonNullable<KeeperOptions["emptied"]>,
  ): Promise<void> {
    if (live !== engine || retiring === engine) return;
    retiring = engine;
    reason = `the engine restarts when its running legs have ended: ${why}`;
    log.warn("the engine will be restarted", { incarnation: engine.incarnation, why });
    changed();
    await emptied(over.signal);
    lose(engine, new Error(why));
  }

  async function startAgain(): Promise<void> {
    // The old process must not hold memory or ports when the new one starts.
    started?.kill();
    while (!over.signal.aborted) {
      await pause(clock, backoffMs(attempt++, RESTART_PAUSE), over.signal);
      if (over.signal.aborted) return;
      try {
        const next = await source.start(over.signal);
        if (over.signal.aborted) return await next.stop(0);
        if (wedgedAt !== undefined && !(await hasMoved(next, wedgedAt))) {
          await next.stop(0);
          throw new Error("the attached engine is wedged: it answers, but its token counters have stalled; restart it");
        }
        wedgedAt = undefined;
        came(next);
        log.info("the engine works again", { incarnation, kvAddress: live?.kvAddress });
        return;
      } catch (error) {
        if (over.signal.aborted) return;
        reason = firstLine((error as Error).message);
        log.error("the engine could not be restarted", { error });
        changed();
      }
    }
  }

  // Judged also while a poll is unanswered: an engine process that was stopped answers nothing at all.
  function tick(engine: LiveEngine, judge: ProgressJudge): void {
    const nowMs = clock.nowMs();
    const work = o.work();
    if (!polling && (work.legs > 0 || !source.ours || nowMs - polledMs >= POLL_IDLE_MS)) {
      polledMs = nowMs;
      polling = true;
      void poll(engine);
    }
    const wedged = judge.judge({ ...work, nowMs, counted });
    if (wedged === undefined) return;
    if (!source.ours) wedgedAt = counted;
    lose(engine, new Error(`the engine is ${wedged}`));
  }

  async function poll(engine: LiveEngine): Promise<void> {
    try {
      const answer = await engine.http.fetch(
        { method: "GET", path: "/metrics", repeatable: true },
        { timeoutMs: POLL_TIMEOUT_MS },
      );
      if (live !== engine) return;
      polling = false;
      if (answer.status === 200) counted = gauges = readGauges(answer.body.toString("utf8"));
      unanswered = 0;
      heardMs = clock.nowMs();
      changed();
    } catch (error) {
      if (live !== engine) return;
      polling = false;
      unanswered++;
      log.debug("the engine's metrics can't be read", { error });
      // The guardian reports the end of our own engine; an attached one has no guardian. vLLM's API server, busy
      // writing tokens, may leave polls unanswered for seconds while its streams flow: silence is judged as any other.
      const busy = error instanceof EngineSilent && clock.nowMs() - heardMs < o.stallMs;
      if (!source.ours && unanswered >= UNANSWERED_LIMIT && !busy)
        lose(engine, new Error("the attached engine does not answer"));
    }
  }

  /** `/health` alone is not enough: a permanently stalled engine answers it with 200. */
  async function hasMoved(next: StartedEngine, before: EngineGauges): Promise<boolean> {
    const answer = await next.http.fetch(
      { method: "GET", path: "/metrics", repeatable: true },
      { timeoutMs: POLL_TIMEOUT_MS },
    );
    const now = readGauges(answer.body.toString("utf8"));
    return now.promptTokens !== before.promptTokens || now.generationTokens !== before.generationTokens;
  }

  async function look(engine: LiveEngine): Promise<void> {
    let why: Error;
    try {
      const answer = await engine.http.fetch(
        { method: "GET", path: "/health", repeatable: true },
        { timeoutMs: POLL_TIMEOUT_MS },
      );
      if (answer.status === 200) return;
      why = new Error(`the engine's /health answers ${answer.status}`);
    } catch (error) {
      // The engine may be busy for a moment. The guardian reports the death of our own, and polls judge silence.
      if (source.ours || error instanceof EngineSilent) return;
      why = new Error("the attached engine does not answer", { cause: error });
    }
    if (live !== engine) return;
    lose(engine, why);
  }

  came(await source.start(stop));
  return {
    ours: source.ours,
    get live() {
      return live;
    },
    get retiring() {
      return retiring !== undefined;
    },
    get reason() {
      return reason;
    },
    get gauges() {
      return gauges;
    },
    get restarts() {
      return Math.max(0, incarnation - 1);
    },
    onChange: (listener) => void listeners.push(listener),
    suspect: (engine) => void look(engine),
    restart(engine, why, { atOnce = false } = {}) {
      if (!source.ours) return false;
      if (atOnce || o.emptied === undefined) lose(engine, new Error(why));
      else void retire(engine, why, o.emptied);
      return true;
    },
    async stop(graceMs) {
      over.abort(new Error("stopped"));
      tickTimer?.cancel();
      await Promise.all([started?.stop(graceMs), restarting]);
      if (live !== undefined) lose(live, new Error("stopped"));
    },
  };
}

function firstLine(text: string): string {
  return text.split("\n", 1)[0]!;
}
