// Frees KV that prefill pushed, or may have pushed, for a leg that will no longer be decoded. The KV is claimed or
// released as its connector requires. If it is unknown what was pushed, the engine is restarted, which frees all KV.
// Until then the leg is counted as an orphan and keeps its slot.
import { InstanceService } from "#gen/tandem/instance/v1/instance_pb.js";
import { Outcome, PrefillService } from "#gen/tandem/prefill/v1/prefill_pb.js";
import { pause } from "../common/clock.ts";
import { ServiceError } from "../common/errors.ts";
import { backoffMs } from "../common/lifecycle.ts";
import type { LiveEngine } from "../engine/engine.ts";
import type { InstanceParts } from "../instance/instance.ts";
import type { LegSpec } from "../kv/connector.ts";
import { dialRpc, type RpcChannel } from "../rpc/channel.ts";

const TRIES = 4;
const RETRY = { minMs: 100, maxMs: 1_000 };
/** For the engine to drop or drain it; draining waits in the engine's queue like any request. */
const SETTLE_TIMEOUT_MS = 60_000;
/** How far the clocks of two hosts may differ when it is judged whether a prefill instance was restarted. */
const CLOCK_SKEW_MS = 2_000;

export interface Abandoned {
  readonly engine: LiveEngine;
  readonly context: LegSpec;
  /** Undefined: the outcome of prefill is unknown, and prefill is asked. */
  readonly ticket: string | undefined;
  /** gRPC address of the prefill instance. May be empty. */
  readonly prefillAddress: string;
  /** Epoch milliseconds. */
  readonly reservedAtMs: number;
  /** The engine may have taken the KV before it failed. A drain would then wait forever for KV that is gone. */
  readonly maybeTaken?: boolean;
}

export interface Settler {
  /** Takes over the KV of an abandoned leg. `done` is called when none of the KV is left. */
  settle(abandoned: Abandoned, done: () => void): void;
  /** Resolves when nothing is left to settle. */
  idle(): Promise<void>;
}

export function createSettler(parts: InstanceParts, o: { readonly askTimeoutMs: number }): Settler {
  const { connector, board, supervisor, log } = parts;
  const { abandoned: means } = connector.traits;
  const running = new Set<Promise<void>>();
  const prefills = prefillChannels(parts);

  const isGone = (engine: LiveEngine): boolean => supervisor.live !== engine;

  async function run(leg: Abandoned): Promise<void> {
    const { legId } = leg.context;
    let outcome = Outcome.HANDED_OVER;
    let ticket = leg.ticket ?? "";
    if (leg.ticket === undefined) {
      const asked = await askOutcome(leg);
      outcome = asked.outcome;
      ticket = asked.ticket;
    }
    // The KV was the dead engine's.
    if (isGone(leg.engine) || outcome === Outcome.NOTHING_SENT) return;
    const known = outcome === Outcome.HANDED_OVER && leg.maybeTaken !== true;
    // Releasing is harmless if nothing is held; draining KV that never arrived would stall the engine.
    if (known || means === "release") {
      if (await request(leg, ticket)) return;
    }
    if (isGone(leg.engine)) return;
    log.error("can't account for the KV of a lost leg; restarting the engine", { legId, outcome: Outcome[outcome] });
    if (supervisor.restart(leg.engine, "KV of a lost leg can't be accounted for")) return;
    log.error("the attached engine holds KV that will never be fetched; restart it", { legId });
    await untilGone(leg.engine);
  }

  async function request(leg: Abandoned, ticket: string): Promise<boolean> {
    const wanted = connector.settleRequest(leg.context, ticket);
    if (wanted === undefined) return true;
    for (let attempt = 0; attempt < TRIES && !isGone(leg.engine); attempt++) {
      if (attempt > 0) await pause(parts.clock, backoffMs(attempt - 1, RETRY));
      try {
        // A drain carries the leg's id and must not arrive twice; a release may.
        const repeatable = means === "release";
        const answer = await leg.engine.http.fetch(
          { method: "POST", ...wanted, repeatable },
          { timeoutMs: SETTLE_TIMEOUT_MS },
        );
        if (answer.status === 200 || answer.status === 204) return true;
        log.warn("the engine would not free abandoned KV", { legId: leg.context.legId, status: answer.status });
        if (means === "drain") return false;
      } catch (error) {
        log.warn("abandoned KV could not be freed", { legId: leg.context.legId, error });
        if (means === "drain") return false;
      }
    }
    return isGone(leg.engine);
  }

  async function askOutcome(leg: Abandoned): Promise<{ outcome: Outcome; ticket: string }> {
    const unknown = { outcome: Outcome.UNKNOWN, ticket: "" };
    if (leg.prefillAddress === "") return unknown;
    await using asking = prefills.ask(leg.prefillAddress);
    const { channel } = asking;
    const deadlineMs = parts.clock.nowMs() + o.askTimeoutMs;
    for (let attempt = 0; attempt < TRIES; attempt++) {
      if (attempt > 0) await pause(parts.clock, backoffMs(attempt - 1, RETRY));
      const timeoutMs = deadlineMs - parts.clock.nowMs();
      if (timeoutMs <= 0 || isGone(leg.engine)) return unknown;
      try {
        return await channel.client(PrefillService).getOutcome({ legId: leg.context.legId }, { timeoutMs });
      } catch (error) {
        if (!(error instanceof ServiceError)) throw error;
        if (error.code === "deadline_exceeded") return unknown;
        if (error.code !== "not_found") continue;
        // It never arrived there, unless the instance is a new one that has forgotten.
        try {
          const { info } = await channel.client(InstanceService).getInfo({}, { timeoutMs: 2_000 });
          const startedAtMs = Number(info?.startedUnixMs ?? 0n);
          const sameInstance = startedAtMs > 0 && startedAtMs < leg.reservedAtMs - CLOCK_SKEW_MS;
          return sameInstance ? { outcome: Outcome.NOTHING_SENT, ticket: "" } : unknown;
        } catch {
          return unknown;
        }
      }
    }
    return unknown;
  }

  /** Or until the instance stops. An operator has to act. */
  function untilGone(engine: LiveEngine): Promise<void> {
    return new Promise((resolve) => {
      const look = (): void => {
        if (!isGone(engine) && !board.stopping) return;
        forget();
        resolve();
      };
      const forget = board.onChange(look);
      look();
    });
  }

  return {
    settle(leg, done) {
      // A lease frees itself; an engine of ours that is about to be stopped takes all its KV with it.
      if (means === "lease" || (board.stopping && supervisor.ours)) return done();
      board.count({ orphans: 1 });
      const work = run(leg)
        .catch((error: unknown) => {
          log.error("settling failed", { legId: leg.context.legId, error });
          supervisor.restart(leg.engine, "settling abandoned KV failed");
        })
        .finally(() => {
          board.count({ orphans: -1 });
          running.delete(work);
          done();
        });
      running.add(work);
    },
    async idle() {
      while (running.size > 0) await Promise.all(running);
    },
  };
}

interface Asking extends AsyncDisposable {
  readonly channel: RpcChannel;
}

/** One channel to each prefill instance, open while calls need it: a lost router leaves many legs at once. */
function prefillChannels({ token, log }: InstanceParts): { ask(address: string): Asking } {
  const open = new Map<string, { readonly channel: RpcChannel; askers: number }>();
  return {
    ask(address) {
      // A prefill that runs is waited for, so an instance that falls silent meanwhile must be noticed.
      const heartbeat = { method: InstanceService.method.watchLoad, message: () => ({}) };
      const entry = open.get(address) ?? { channel: dialRpc(address, { token, log, heartbeat }), askers: 0 };
      const { channel } = entry;
      entry.askers++;
      open.set(address, entry);
      return {
        channel,
        async [Symbol.asyncDispose]() {
          if (--entry.askers > 0) return;
          open.delete(address);
          await channel[Symbol.asyncDispose]();
        },
      };
    },
  };
}
