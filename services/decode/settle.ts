// Frees KV that prefill pushed, or may have pushed, for a leg that will no longer be decoded. The KV is claimed or
// released as its connector requires; until then the leg is counted as an orphan and keeps its slot. If it is unknown
// what was pushed, or the KV can't be freed, it is booked as debt (kv-debt.ts), and the slot comes free.
import type { Reserve } from "#gen/tandem/decode/v1/decode_pb.js";
import { InstanceService } from "#gen/tandem/instance/v1/instance_pb.js";
import { Outcome, PrefillService } from "#gen/tandem/prefill/v1/prefill_pb.js";
import { pause } from "../common/clock.ts";
import { ServiceError } from "../common/errors.ts";
import { backoffMs } from "../common/lifecycle.ts";
import type { LiveEngine } from "../engine/engine.ts";
import type { InstanceParts } from "../instance/instance.ts";
import type { LegSpec } from "../kv/connector.ts";
import { estimatePromptTokens } from "../instance/leg-request.ts";
import { dialRpc, type RpcChannel } from "../rpc/channel.ts";
import type { DebtLedger } from "./kv-debt.ts";
import { type KnownOutcome, settlementOf } from "./protocol.ts";

const TRIES = 4;
const RETRY = { minMs: 100, maxMs: 1_000 };
/** For the engine to drop or drain it; draining waits in the engine's queue like any request. */
const SETTLE_TIMEOUT_MS = 60_000;

const OUTCOMES: Readonly<Record<Outcome, KnownOutcome>> = {
  [Outcome.UNSPECIFIED]: "unknown",
  [Outcome.UNKNOWN]: "unknown",
  [Outcome.SENT]: "sent",
  [Outcome.NOTHING_SENT]: "nothing sent",
};

/** The facts about a leg from its reservation on. */
export interface ReservedLeg {
  readonly engine: LiveEngine;
  readonly spec: LegSpec;
  readonly reserve: Reserve;
}

/**
 * Takes over the KV of an abandoned leg. Resolves when none of the KV is left, or the rest is booked as debt.
 *
 * @param ticket Undefined: the outcome of prefill is unknown, and prefill is asked.
 * @param maybeTaken The engine may have taken the KV before it failed. A drain would then wait forever for KV that is
 *   gone.
 */
export type Settle = (leg: ReservedLeg, ticket: string | undefined, maybeTaken: boolean) => Promise<void>;

export interface Settling {
  readonly settle: Settle;
  /** Whatever is still settled was KV of an engine that is gone. */
  engineChanged(): void;
}

export function createSettle(parts: InstanceParts, askTimeoutMs: number, debt: DebtLedger): Settling {
  const { connector, status, supervisor, log, clock } = parts;
  const { abandoned: means } = connector.traits;
  const isGone = ({ engine }: ReservedLeg): boolean => supervisor.live !== engine;
  const usePrefill = prefillChannels(parts);
  /** Ends of the waits of legs that are being settled. */
  const waits = new Set<() => void>();

  async function run(leg: ReservedLeg, known: string | undefined, maybeTaken: boolean): Promise<void> {
    const { outcome, ticket } = known === undefined ? await askOutcome(leg) : { outcome: Outcome.SENT, ticket: known };
    // The KV was the dead engine's.
    if (isGone(leg)) return;
    const settlement = settlementOf(connector.traits, OUTCOMES[outcome], maybeTaken);
    if (settlement === "nothing" || (settlement === "free" && (await request(leg, ticket)))) return;
    book(leg, { outcome: Outcome[outcome] });
  }

  function book({ engine, spec, reserve }: ReservedLeg, why: { readonly outcome: string }): void {
    debt.book(engine, estimatePromptTokens(spec), reserve.probe, { legId: spec.legId, ...why });
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
          const same = await isInstance(channel, leg.reserve.prefillInstanceId);
          return same ? { outcome: Outcome.NOTHING_SENT, ticket: "" } : unknown;
        }
      }),
    );
    return answer ?? unknown;
  }

  /** Never rejects. */
  async function runSafely(leg: ReservedLeg, ticket: string | undefined, maybeTaken: boolean): Promise<void> {
    try {
      await run(leg, ticket, maybeTaken);
    } catch (error) {
      log.error("settling failed", { legId: leg.spec.legId, error });
      book(leg, { outcome: "settling failed" });
    }
  }

  return {
    async settle(leg, ticket, maybeTaken) {
      // A lease frees itself; an engine of ours that is about to be stopped takes all its KV with it.
      if (means === "lease" || isGone(leg) || (status.stopping && supervisor.ours)) return;
      status.count({ orphans: 1 });
      await new Promise<void>((end) => {
        waits.add(end);
        void runSafely(leg, ticket, maybeTaken).then(() => {
          waits.delete(end);
          end();
        });
      });
      status.count({ orphans: -1 });
    },
    engineChanged() {
      for (const end of waits) end();
      waits.clear();
    },
  };
}

/** Whether it is the instance to which the leg was sent, and not one that was started at its address since. */
async function isInstance(channel: RpcChannel, instanceId: string): Promise<boolean> {
  try {
    const { info } = await channel.client(InstanceService).getInfo({}, { timeoutMs: 2_000 });
    return instanceId !== "" && info?.instanceId === instanceId;
  } catch {
    return false;
  }
}

/** One channel to each prefill instance, open while legs use it: a lost router leaves many legs at once. */
function prefillChannels({ token, tls, log }: InstanceParts) {
  const open = new Map<string, { readonly channel: RpcChannel; users: number }>();
  return async <T>(address: string, use: (channel: RpcChannel) => Promise<T>): Promise<T> => {
    // A prefill that runs is waited for, so an instance that falls silent meanwhile must be noticed.
    const heartbeat = { method: InstanceService.method.watchLoad, message: () => ({}) };
    const entry = open.get(address) ?? { channel: dialRpc(address, { token, tls, log, heartbeat }), users: 0 };
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
