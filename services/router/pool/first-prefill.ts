// A router that has just started finds its instances one by one. Unpaired decode makes up for prefill instances that
// are gone, but not for ones that have not registered yet: for a limited time requests wait for the first prefill
// instance.
import { Role } from "#gen/tandem/instance/v1/instance_pb.js";
import type { Clock } from "../../common/clock.ts";
import type { Known } from "./fleet.ts";
import { standingOf } from "./standing.ts";

/** How long a router waits for the first prefill instance of a model. */
export const FIRST_PREFILL_MS = 15_000;

/** @param waitMs Starts with the first serving decode instance of a model. */
export function awaitFirstPrefill(clock: Clock, waitMs: number) {
  /** By model: when its wait ends. 0 if it has had a prefill instance. */
  const awaited = new Map<string, number>();
  let nextMs = Infinity;
  return {
    /** Notes which models have instances that serve. */
    look(tracked: Iterable<Known>): void {
      const models = new Set<string>();
      const nowMs = clock.nowMs();
      for (const one of tracked) {
        if (!one.registered) continue;
        const { model, role } = one.info;
        const standing = standingOf(one);
        const serves = standing.kind === "serves";
        models.add(model);
        if (role === Role.PREFILL && serves) awaited.set(model, 0);
        // A decode instance that no probe has proven yet serves unpaired.
        else if (role === Role.DECODE && !awaited.has(model) && (serves || standing.reason === "unproven"))
          awaited.set(model, nowMs + waitMs);
      }
      nextMs = Infinity;
      for (const [model, untilMs] of awaited) {
        // A model that loses all its instances starts again.
        if (!models.has(model)) awaited.delete(model);
        else if (nowMs < untilMs) nextMs = Math.min(nextMs, untilMs);
      }
    },
    /** Whether the model never had a serving prefill instance, and one is still expected. */
    isAwaited: (model: string): boolean => clock.nowMs() < (awaited.get(model) ?? 0),
    /** Whether the wait of some model is over. */
    isOver: (): boolean => clock.nowMs() >= nextMs,
  };
}
