// Restarts of an engine that still serves: because of KV debt, so far. Such a restart is a cure, and must take away less
// than the fault. So the instance only asks, in `Load.restart_wanted`. Each router grants it to one instance of a role
// at a time, never to the last that serves (router/pool/restart-leases.ts), and repeats the grant with its heartbeats.
// The instance begins when all routers that watch it grant it; then the engine drains first (engine/supervisor.ts).
// Engines that are dead or wedged don't come here: the supervisor restarts them at once.
import type { Clock, Timer } from "../common/clock.ts";
import type { Log } from "../common/log.ts";
import type { LiveEngine } from "../engine/engine.ts";
import type { EngineSupervisor } from "../engine/supervisor.ts";
import type { InstanceStatus } from "./status.ts";

/** How long no router must have watched an idle instance before it decides alone: longer than a router restarts. */
const ALONE_MS = 30_000;

/** One call of WatchLoad, from its first message on. */
export interface LeaseWatcher {
  /** @param granted Of its last message. Undefined: the caller is not a router, or one that grants nothing. */
  heard(granted: boolean | undefined): void;
  left(): void;
}

export interface RestartLeaseOptions {
  readonly status: Pick<InstanceStatus, "set" | "remaining" | "orphans" | "stopping" | "on">;
  readonly supervisor: Pick<EngineSupervisor, "live" | "canRestart" | "restart">;
  readonly log: Log;
  readonly clock: Clock;
}

type Wish = { readonly engine: LiveEngine; readonly reason: string };

export class RestartLease {
  readonly #o: RestartLeaseOptions;
  /** By caller: whether it grants. Only of routers. */
  readonly #routers = new Map<LeaseWatcher, boolean>();
  #wish: Wish | undefined;
  #lookAgain: Timer | undefined;
  /** Since when no router has watched. */
  #aloneSinceMs: number;

  constructor(o: RestartLeaseOptions) {
    this.#o = o;
    this.#aloneSinceMs = o.clock.nowMs();
    o.status.on("change", () => this.#look());
  }

  /** Asks for a restart of this engine until the engine is gone. @param reason Undefined: no longer. */
  want(engine: LiveEngine, reason: string | undefined): void {
    const { supervisor, status, log } = this.#o;
    const known = this.#wish;
    if (supervisor.live !== engine || status.stopping || known?.reason === reason) return;
    this.#wish = reason === undefined ? undefined : { engine, reason };
    if (supervisor.canRestart) {
      if (known === undefined) log.warn("the instance asks its routers for a restart of its engine", { reason });
      status.set({ restartWanted: reason ?? "" });
    } else if (known === undefined) {
      log.error("restart the attached engine when its legs have ended; drain this instance first", { reason });
    }
    this.#look();
  }

  watch(): LeaseWatcher {
    const watcher: LeaseWatcher = {
      heard: (granted) => {
        if (granted === undefined) return;
        this.#routers.set(watcher, granted);
        this.#look();
      },
      left: () => {
        if (!this.#routers.delete(watcher)) return;
        if (this.#routers.size === 0) this.#aloneSinceMs = this.#o.clock.nowMs();
        this.#look();
      },
    };
    return watcher;
  }

  /** Begins the restart, if it may begin. */
  #look(): void {
    const { supervisor, status, log, clock } = this.#o;
    this.#lookAgain?.cancel();
    this.#lookAgain = undefined;
    const wish = this.#wish;
    if (wish === undefined || !supervisor.canRestart || status.stopping) return;
    if (supervisor.live !== wish.engine) {
      this.#wish = undefined;
      return status.set({ restartWanted: "" });
    }
    const waitMs = this.#waitMs(clock.nowMs());
    if (waitMs > 0) {
      if (waitMs !== Infinity) this.#lookAgain = clock.setTimer(waitMs, () => this.#look());
      return;
    }
    log.info("the restart of the engine is granted", { routers: this.#routers.size, reason: wish.reason });
    this.#wish = undefined;
    status.set({ restartWanted: "" });
    supervisor.restart(wish.engine, wish.reason);
  }

  /** 0: it may begin now. Infinity: something has to change first. */
  #waitMs(nowMs: number): number {
    if (this.#routers.size > 0) return [...this.#routers.values()].every((granted) => granted) ? 0 : Infinity;
    const idle = this.#o.status.remaining + this.#o.status.orphans === 0;
    return idle ? Math.max(0, this.#aloneSinceMs + ALONE_MS - nowMs) : Infinity;
  }
}
