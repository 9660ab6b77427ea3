// What an instance reports of itself: its state and its load. Services count here, the supervisor of the engine reports
// here, and InstanceService reports both to the routers. Each fact has one writer.
import { create } from "@bufbuild/protobuf";
import { LoadSchema, State, type Load } from "#gen/tandem/instance/v1/instance_pb.js";
import { ServiceError } from "../common/errors.ts";
import { NO_GAUGES, type EngineGauges } from "../engine/metrics-text.ts";

export interface Board {
  readonly slotLimit: number;
  /** Legs and reservations that have not ended. */
  readonly remaining: number;
  /** Legs that run and wait for nothing but the engine. */
  readonly waitingForEngine: number;
  readonly state: State;
  load(): Load;
  /** Called when anything changed. */
  onChange(listener: () => void): () => void;

  /** @throws ServiceError `instance_unavailable` if no new leg is taken, `instance_busy` if no slot is free. */
  admit(): void;
  /** Adds to the counts. Every addition must be taken back once. */
  count(change: Partial<Record<Count, number>>): void;

  /** `reason` empty: the engine works. */
  setEngine(reason: string): void;
  /** The address of the engine that works now; empty if none does. */
  setKvAddress(address: string): void;
  setGauges(gauges: EngineGauges): void;
  /** Why the engine is about to be restarted; running legs go on. Empty: no restart is due. */
  setRetiring(reason: string): void;
  /** Undefined: takes legs again. */
  setDraining(reason: string | undefined): void;
  /** The instance stops and will not serve again: draining until `stopped`. */
  setStopping(): void;
  setStopped(): void;
  readonly stopping: boolean;
}

/** `held`: running legs whose caller takes nothing more for now. */
export type Count = "running" | "held" | "reserved" | "orphans" | "queuedTokens";

export function createBoard(slotLimit: number): Board {
  const counts: Record<Count, number> = { running: 0, held: 0, reserved: 0, orphans: 0, queuedTokens: 0 };
  const listeners = new Set<() => void>();
  let engineReason = "the engine is starting";
  let retireReason = "";
  let drainReason: string | undefined;
  let ending: "no" | "stopping" | "stopped" = "no";
  let gauges = NO_GAUGES;
  let kvAddress = "";
  const changed = (): void => {
    for (const listener of listeners) listener();
  };
  const stateNow = (): State =>
    ending === "stopped"
      ? State.STOPPED
      : ending === "stopping"
        ? State.DRAINING
        : engineReason !== ""
          ? State.STARTING
          : retireReason !== "" || drainReason !== undefined
            ? State.DRAINING
            : State.SERVING;
  const reasonNow = (): string => {
    if (ending !== "no") return ending === "stopped" ? "stopped" : "stopping";
    return engineReason || retireReason || (drainReason ?? "");
  };
  // KV that is no longer wanted still fills its slot.
  const freeSlots = (): number => Math.max(0, slotLimit - counts.running - counts.reserved - counts.orphans);

  return {
    slotLimit,
    get remaining() {
      return counts.running + counts.reserved;
    },
    get waitingForEngine() {
      return counts.running - counts.held;
    },
    get state() {
      return stateNow();
    },
    get stopping() {
      return ending !== "no";
    },
    load: () =>
      create(LoadSchema, {
        state: stateNow(),
        running: counts.running,
        reserved: counts.reserved,
        freeSlots: freeSlots(),
        queuedTokens: counts.queuedTokens,
        engineRunning: gauges.running,
        engineWaiting: gauges.waiting,
        kvUsageRatio: gauges.kvUsageRatio,
        kvOrphans: counts.orphans,
        reason: reasonNow(),
        kvAddress,
      }),
    onChange(listener) {
      listeners.add(listener);
      return () => void listeners.delete(listener);
    },
    admit() {
      const state = stateNow();
      if (state !== State.SERVING) {
        const what = state === State.STARTING ? "is starting" : state === State.DRAINING ? "is draining" : "is stopped";
        throw new ServiceError("instance_unavailable", `The instance ${what} and takes no new request.`);
      }
      if (freeSlots() === 0)
        throw new ServiceError("instance_busy", `All ${slotLimit} slots of the instance are taken.`, {
          retryAfterS: 1,
        });
    },
    count(change) {
      for (const name in change) counts[name as Count] += change[name as Count]!;
      changed();
    },
    setEngine(reason) {
      if (reason === engineReason) return;
      engineReason = reason;
      changed();
    },
    setRetiring(reason) {
      if (reason === retireReason) return;
      retireReason = reason;
      changed();
    },
    setKvAddress(address) {
      kvAddress = address;
    },
    setGauges(now) {
      gauges = now;
      changed();
    },
    setDraining(reason) {
      drainReason = reason;
      changed();
    },
    setStopping() {
      if (ending === "no") ending = "stopping";
      changed();
    },
    setStopped() {
      ending = "stopped";
      changed();
    },
  };
}
