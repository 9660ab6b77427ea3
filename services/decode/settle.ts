// Frees KV that prefill pushed, or may have pushed, for a leg that will no longer be decoded. The KV is claimed or
// released as its connector requires. If it is unknown what was pushed, the engine is restarted, which frees all KV.
// Until then the leg is counted as an orphan and keeps its slot.
import type { Reserve } from "#gen/tandem/decode/v1/decode_pb.js";
import { InstanceService } from "#gen/tandem/instance/v1/instance_pb.js";
import { Outcome, PrefillService } from "#gen/tandem/prefill/v1/prefill_pb.js";
import { pause, until } from "../common/clock.ts";
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

/** The facts about a leg from its reservation on. */
export interface ReservedLeg {
  readonly engine: LiveEngine;
  readonly spec: LegSpec;
  readonly reserve: Reserve;
  /** Epoch milliseconds. */
  readonly reservedAtMs: number;
}

/**
 * Takes over the KV of an abandoned leg. Resolves when none of the KV is left.
 *
 * @param ticket Undefined: the outcome of prefill is unknown, and prefill is asked.
 * @param maybeTaken The engine may have taken the KV before it failed. A drain would then wait forever for KV that is
 *   gone.
 */
export type Settle = (leg: ReservedLeg, ticket: string | undefined, maybeTaken: boolean) => Promise<void>;

export function createSettle(parts: InstanceParts, askTimeoutMs: number): Settle {
  const { connector, status, supervisor, log, clock } = parts;
  const { abandoned: means } = connector.traits;
  const isGone = ({ engine }: ReservedLeg): boolean => supervisor.live !== engine;
  const usePrefill = prefillChannels(parts);

  async function run(leg: ReservedLeg, known: string | undefined, maybeTaken: boolean): Promise<void> {
    const { legId } = leg.spec;
    const { outcome, ticket } = known === undefined ? await askOutcome(leg) : { outcome: Outcome.SENT, ticket: known };
    // The KV was the dead engine's.
    if (isGone(leg) || outcome === Outcome.NOTHING_SENT) return;
    // Releasing is harmless if nothing is held; draining KV that never arrived would stall the engine.
    const drainable = outcome === Outcome.SENT && !maybeTaken;
    if ((drainable || means === "release") && (await request(leg, ticket))) return;
    if (isGone(leg)) return;
    log.error("can't account for the KV of a lost leg; restarting the engine", { legId, outcome: Outcome[outcome] });
    if (supervisor.restart(leg.engine, "KV of a lost leg can't be accounted for")) return;
    // An operator has to act.
    log.error("the attached engine holds KV that will never be fetched; restart it", { legId });
    await until(status, () => isGone(leg) || status.stopping);
  }

  /** Makes a few attempts, with pauses between them, until one has a result, or the engine is gone. */
  async function retry<T>(leg: ReservedLeg, attempt: () => Promise<T | undefined>): Promise<T | undefined> {
    let result: T | undefined;
    for (let failures = 0; result === undefined && failures < TRIES && !isGone(leg); failures++) {
      if (failures > 0) await pause(clock, backoffMs(failures - 1, RETRY));
      result = await attempt();
    }
    return result;
  }

  async function request(leg: ReservedLeg, ticket: string): Promise<boolean> {
    const { legId } = leg.spec;
    const wanted = connector.settleRequest(leg.spec, ticket);
    if (wanted === undefined) return true;
    // A drain carries the leg's id and must not arrive twice; a release may.
    const call = { method: "POST", ...wanted, repeatable: means === "release" } as const;
    const freed = await retry(leg, async () => {
      try {
        const { status: answered } = await leg.engine.http.fetch(call, { timeoutMs: SETTLE_TIMEOUT_MS });
        if (answered === 200 || answered === 204) return true;
        log.warn("the engine would not free abandoned KV", { legId, status: answered });
      } catch (error) {
        log.warn("abandoned KV could not be freed", { legId, error });
      }
      return call.repeatable ? undefined : false;
    });
    return freed ?? isGone(leg);
  }

  async function askOutcome(leg: ReservedLeg): Promise<{ outcome: Outcome; ticket: string }> {
    const address = leg.reserve.prefillGrpcAddress;
    const unknown = { outcome: Outcome.UNKNOWN, ticket: "" };
    if (address === "") return unknown;
    const deadlineMs = clock.nowMs() + askTimeoutMs;
    const answer = await usePrefill(address, (channel) =>
      retry(leg, async () => {
        const timeoutMs = deadlineMs - clock.nowMs();
        if (timeoutMs <= 0) return unknown;
        try {
          return await channel.client(PrefillService).getOutcome({ legId: leg.spec.legId }, { timeoutMs });
        } catch (error) {
          if (!(error instanceof ServiceError)) throw error;
          if (error.code === "deadline_exceeded") return unknown;
          if (error.code !== "not_found") return undefined;
          // It never arrived there, unless the instance is a new one that has forgotten.
          const same = await startedBefore(channel, leg.reservedAtMs);
          return same ? { outcome: Outcome.NOTHING_SENT, ticket: "" } : unknown;
        }
      }),
    );
    return answer ?? unknown;
  }

  return async (leg, ticket, maybeTaken) => {
    // A lease frees itself; an engine of ours that is about to be stopped takes all its KV with it.
    if (means === "lease" || (status.stopping && supervisor.ours)) return;
    status.count({ orphans: 1 });
    try {
      await run(leg, ticket, maybeTaken);
    } catch (error) {
      log.error("settling failed", { legId: leg.spec.legId, error });
      supervisor.restart(leg.engine, "settling abandoned KV failed");
    } finally {
      status.count({ orphans: -1 });
    }
  };
}

/** Whether the instance is the one that ran at that time. */
async function startedBefore(channel: RpcChannel, reservedAtMs: number): Promise<boolean> {
  try {
    const { info } = await channel.client(InstanceService).getInfo({}, { timeoutMs: 2_000 });
    const startedAtMs = Number(info?.startedUnixMs ?? 0n);
    return startedAtMs > 0 && startedAtMs < reservedAtMs - CLOCK_SKEW_MS;
  } catch {
    return false;
  }
}

/** One channel to each prefill instance, open while legs use it: a lost router leaves many legs at once. */
function prefillChannels({ token, log }: InstanceParts) {
  const open = new Map<string, { readonly channel: RpcChannel; users: number }>();
  return async <T>(address: string, use: (channel: RpcChannel) => Promise<T>): Promise<T> => {
    // A prefill that runs is waited for, so an instance that falls silent meanwhile must be noticed.
    const heartbeat = { method: InstanceService.method.watchLoad, message: () => ({}) };
    const entry = open.get(address) ?? { channel: dialRpc(address, { token, log, heartbeat }), users: 0 };
    open.set(address, entry);
    entry.users++;
    try {
      return await use(entry.channel);
    } finally {
      if (--entry.users === 0) {
        open.delete(address);
        await entry.channel[Symbol.asyncDispose]();
      }
    }
  };
}
