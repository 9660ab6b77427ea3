// A router that has just started hears of its instances one by one. Decode that serves unpaired makes up for prefill that is
// gone, not for prefill that was never there yet: until then requests wait for a pair, for as long as one may be expected.
import { Role } from "#gen/tandem/instance/v1/instance_pb.js";
import type { Clock } from "../../common/clock.ts";
import type { Known } from "./fleet.ts";
import { standingOf } from "./standing.ts";

/** How long a router waits for the first prefill instance of a model. */
export const FIRST_PREFILL_MS = 15_000;

export interface FirstPrefill {
  /** Notes which models have instances that serve. */
  look(tracked: Iterable<Known>): void;
  /** Whether the model had no prefill instance that served, while one may still come. */
  isAwaited(model: string): boolean;
  /** Whether the time of one that was awaited is over. */
  readonly isOver: boolean;
}

/** @param waitMs From the first decode instance of a model that serves. */
export function awaitFirstPrefill(clock: Clock, waitMs: number): FirstPrefill {
  /** By model: until when, or that there was one. */
  const awaited = new Map<string, number | "had">();
  let nextMs = Infinity;
  return {
    look(tracked) {
      const models = new Set<string>();
      const nowMs = clock.nowMs();
      for (const one of tracked) {
        if (!one.registered) continue;
        const { model, role } = one.info;
        models.add(model);
        if (role === Role.PREFILL && standingOf(one).kind === "serves") awaited.set(model, "had");
        // One that no probe has proven yet serves alone.
        else if (role === Role.DECODE && !awaited.has(model) && isUp(one)) awaited.set(model, nowMs + waitMs);
      }
      nextMs = Infinity;
      for (const [model, untilMs] of awaited) {
        // A model without any instance starts afresh.
        if (!models.has(model)) awaited.delete(model);
        else if (untilMs !== "had" && nowMs < untilMs) nextMs = Math.min(nextMs, untilMs);
      }
    },
    isAwaited(model) {
      const untilMs = awaited.get(model);
      return untilMs !== undefined && untilMs !== "had" && clock.nowMs() < untilMs;
    },
    get isOver() {
      return clock.nowMs() >= nextMs;
    },
  };
}

function isUp(one: Known): boolean {
  const standing = standingOf(one);
  return standing.kind === "serves" || standing.reason === "unproven";
}
