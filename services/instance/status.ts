// What an instance reports of itself: its state and its load. Services count here, the supervisor of the engine reports
// here, and InstanceService reports both to the routers.
import { create } from "@bufbuild/protobuf";
import { EventEmitter } from "node:events";
import { LoadSchema, State, type Load } from "#gen/tandem/instance/v1/instance_pb.js";
import type { LoopDelay } from "../common/event-loop.ts";
import { ServiceError } from "../common/errors.ts";
import { kvDebtText } from "../common/kv-debt-text.ts";
import type { SelfReport } from "../discovery/registry.ts";
import { NO_GAUGES, type EngineGauges } from "../engine/metrics-text.ts";

/** Routers are told of a delay in these steps, so that jitter causes no reports. */
const LOOP_STEP_MS = 10;

/** Each has one writer. */
interface Facts {
  readonly engine: {
    /** Why no engine works. Empty: one works. */
    readonly reason: string;
    /** Why the engine is about to be restarted; running legs go on. Empty: no restart is due. */
    readonly retiring?: string;
    /** Of the engine that works. */
    readonly kvAddress?: string;
    /** When legs are expected to be taken again, if that is known. */
    readonly readyInMs?: () => number | undefined;
    readonly gauges?: EngineGauges;
  };
  /** KV in the engine that only a restart of it can free. */
  readonly kvDebt: KvDebt;
  /** Why a restart of the engine is asked for. Empty: it is not. */
  readonly restartWanted: string;
  /** Why the instance was drained. Empty: it takes legs. */
  readonly drained: string;
  /** The instance drains until it has stopped, and will not serve again. */
  readonly ending: "" | "stopping" | "stopped";
}

export type KvDebt = Pick<Load, "kvDebtBytes" | "kvDebtRatio">;

export const NO_DEBT: KvDebt = { kvDebtBytes: 0n, kvDebtRatio: 0 };

/** `held`: running legs whose caller takes nothing more for now. */
type Count = "running" | "held" | "reserved" | "orphans" | "queuedTokens";

/** Emits `change` when anything changed. */
export class InstanceStatus extends EventEmitter<{ change: [] }> {
  readonly slotLimit: number;
  readonly #loop: LoopDelay;
  readonly #counts: Record<Count, number> = { running: 0, held: 0, reserved: 0, orphans: 0, queuedTokens: 0 };
  #facts: Facts = {
    engine: { reason: "the engine is starting" },
    kvDebt: NO_DEBT,
    restartWanted: "",
    drained: "",
    ending: "",
  };

  /** @param loop The event loop of the process. */
  constructor(slotLimit: number, loop: LoopDelay = { delayMs: 0 }) {
    super();
    this.slotLimit = slotLimit;
    this.#loop = loop;
    // One for each router that watches.
    this.setMaxListeners(0);
  }

  get stopping(): boolean {
    return this.#facts.ending !== "";
  }

  /** Legs and reservations that have not ended. */
  get remaining(): number {
    return this.#counts.running + this.#counts.reserved;
  }

  /** Legs that run and wait for nothing but the engine. */
  get waitingForEngine(): number {
    return this.#counts.running - this.#counts.held;
  }

  /** Legs whose KV is no longer wanted and not freed yet. */
  get orphans(): number {
    return this.#counts.orphans;
  }

  load(): Load {
    const { kvAddress = "", gauges = NO_GAUGES, readyInMs } = this.#facts.engine;
    const { running, reserved, orphans, queuedTokens } = this.#counts;
    const { kvDebt, restartWanted, drained, ending } = this.#facts;
    const readyMs = ending === "" && drained === "" ? readyInMs?.() : undefined;
    return create(LoadSchema, {
      ...this.#standing,
      running,
      reserved,
      freeSlots: this.#freeSlots,
      queuedTokens,
      engineRunning: gauges.running,
      engineWaiting: gauges.waiting,
      kvUsageRatio: gauges.kvUsageRatio,
      kvOrphans: orphans,
      kvAddress,
      engineKvHeld: gauges.kvHeld,
      engineKvLate: gauges.kvLate,
      ...kvDebt,
      restartWanted,
      ...(readyMs === undefined ? {} : { readyInMs: readyMs }),
      loopDelayMs: LOOP_STEP_MS * Math.floor(this.#loop.delayMs / LOOP_STEP_MS),
    });
  }

  /** For the health check and the registry. */
  report(): SelfReport {
    const { state, reason } = this.#standing;
    const debt = kvDebtText(this.#facts.kvDebt);
    const name = State[state].toLowerCase();
    return {
      serving: state === State.SERVING,
      text: reason === "" || reason === name ? name : `${name}: ${reason}`,
      load: `${this.#freeSlots} of ${this.slotLimit} slots free${debt === "" ? "" : `, KV debt ${debt}`}`,
    };
  }

  /** @throws ServiceError `instance_unavailable` if no new leg is taken, `instance_busy` if no slot is free. */
  admit(): void {
    const { state } = this.#standing;
    if (state !== State.SERVING) {
      const what = State[state].toLowerCase();
      throw new ServiceError("instance_unavailable", `The instance is ${what} and takes no new request.`);
    }
    if (this.#freeSlots === 0) {
      const message = `All ${this.slotLimit} slots of the instance are taken.`;
      throw new ServiceError("instance_busy", message, { retryAfterS: 1 });
    }
  }

  /** Adds to the counts. Every addition must be taken back once. */
  count(change: Partial<Record<Count, number>>): void {
    for (const name in change) this.#counts[name as Count] += change[name as Count]!;
    this.emit("change");
  }

  set(change: Partial<Facts>): void {
    this.#facts = { ...this.#facts, ...change };
    this.emit("change");
  }

  get #standing(): { readonly state: State; readonly reason: string } {
    const { engine, drained, ending } = this.#facts;
    if (ending !== "") return { state: ending === "stopped" ? State.STOPPED : State.DRAINING, reason: ending };
    if (engine.reason !== "") return { state: State.STARTING, reason: engine.reason };
    const reason = engine.retiring || drained;
    return { state: reason === "" ? State.SERVING : State.DRAINING, reason };
  }

  // KV that is no longer wanted still fills its slot.
  get #freeSlots(): number {
    const { running, reserved, orphans } = this.#counts;
    return Math.max(0, this.slotLimit - running - reserved - orphans);
  }
}
