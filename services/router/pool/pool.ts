// What the router knows of the instances. Discovery says who there is; the instances say how they are; policies and
// placement read one immutable snapshot. An instance that is gone from discovery keeps its channels until the last leg
// on it has ended: the registry's word ends no stream.
import { InstanceService, Role } from "#gen/tandem/instance/v1/instance_pb.js";
import type { Info } from "#gen/tandem/instance/v1/instance_pb.js";
import type { Clock, Timer } from "../../common/clock.ts";
import { asServiceError, ServiceError } from "../../common/errors.ts";
import type { Log } from "../../common/log.ts";
import type { Metrics } from "../../common/metrics.ts";
import type { Doubt } from "../../discovery/registry.ts";
import { servesUnpaired } from "../../kv/index.ts";
import { BREAKER_LIMITS, type BreakerLimits, type Verdict } from "./breaker.ts";
import { awaitFirstPrefill } from "./first-prefill.ts";
import type { Member } from "./member.ts";
import { lastResorts } from "./last-resort.ts";
import { pairable } from "./compat.ts";
import { Pairs, pairKey } from "./pairs.ts";
import { type Probe, takeDue } from "./probes.ts";
import { Tracked } from "./tracked.ts";

export type { Verdict } from "./breaker.ts";
export type { Condition, Member } from "./member.ts";
export type { Probe } from "./probes.ts";

/** Sorted by instance id. */
export interface PoolSnapshot {
  readonly prefill: readonly Member[];
  readonly decode: readonly Member[];
  /** Of all known instances, whether or not they serve now. `maxModelLen` is the shortest, 0 where none says. */
  readonly models: ReadonlyMap<string, { readonly maxModelLen: number }>;
  /** `pairKey` of the pairs that fail with each other, and get no leg until a canary comes through. */
  readonly brokenPairs: ReadonlySet<string>;
  /** Why pairs that must be checked before they take traffic take none: not yet, or the check failed. By `pairKey`. */
  readonly barredPairs?: ReadonlyMap<string, string>;
  /** Models whose first prefill instance may still come: decode does not make up for it yet. */
  readonly awaitsPrefill?: ReadonlySet<string>;
}

export interface Pool {
  /** The same object until something changes. Counts of legs in it are live. */
  readonly snapshot: PoolSnapshot;
  /**
   * All instances that discovery knows now.
   *
   * @param doubts What it has against some of them, by instance id.
   */
  update(entries: readonly Info[], doubts?: ReadonlyMap<string, Doubt>): void;
  /** After every change: an instance, its facts, its load, or a leg that ended. Returns what ends it. */
  onChange(listener: () => void): () => void;
  /**
   * Tells an instance to take no new leg, or to take them again; this router obeys at once. Returns the legs that still
   * run on it, of all routers.
   *
   * @throws ServiceError `not_found`; `instance_unavailable` when it could not be told, which undoes nothing here
   */
  drain(instanceId: string, undrain: boolean, reason?: string): Promise<number>;
  /** @param tokens Prompt tokens of it, where they are still to be computed. */
  legStarted(member: Member, tokens?: number): void;
  legEnded(member: Member, verdict: Verdict): void;
  /** What the same leg says of the two together. */
  pairEnded(prefill: Member, decode: Member, verdict: Verdict): void;
  /** @param tokens That were computed, or waited for, in `ms`. */
  prefilled(member: Member, tokens: number, ms: number): void;
  /** Whether anything is out for its failures, and may be due for a canary. */
  readonly ailing: boolean;
  /** Canaries to send now, each to be told by `canaryCame` when it has come through. */
  takeProbes(): readonly Probe[];
  canaryCame(probe: Probe): void;
  /** What the check of a pair said: "" where it may be used; undefined where it must be checked again. */
  pairChecked(key: string, fault: string | undefined): void;
  [Symbol.asyncDispose](): Promise<void>;
}

export interface PoolOptions {
  readonly token?: string | undefined;
  readonly log: Log;
  readonly clock: Clock;
  readonly metrics?: Metrics;
  /** Instances that are tracked; more are left out and logged. */
  readonly limit?: number;
  readonly breaker?: BreakerLimits;
  /** For a connection to be made. */
  readonly connectTimeoutMs?: number;
  /** How long the first prefill instance of a model is waited for, once it has a decode instance. Default 0. */
  readonly firstPrefillMs?: number;
  /** Whether a pair takes traffic only after `pairChecked` said that it may. Left out: none needs that. */
  readonly checks?: (prefill: Info, decode: Info) => boolean;
}

const NO_DOUBTS: ReadonlyMap<string, Doubt> = new Map();
const SWEEP_MS = 250;
/** A sweep that comes so late shows that this process stood still, or its machine: it could hear nobody meanwhile. */
const OWN_PAUSE_MS = 500;
const DRAIN_TIMEOUT_MS = 2_000;
const CONDITIONS = [
  "serving",
  "starting",
  "draining",
  "stopped",
  "silent",
  "unreachable",
  "failing",
  "doubted",
  "left",
] as const;

export function createPool({
  token,
  log,
  clock,
  metrics,
  limit = 1024,
  breaker = BREAKER_LIMITS,
  connectTimeoutMs,
  firstPrefillMs = 0,
  checks,
}: PoolOptions): Pool {
  const tracked = new Set<Tracked>();
  const byMember = new WeakMap<Member, Tracked>();
  const listeners = new Set<() => void>();
  const pairs = new Pairs(breaker);
  const checked = new Map<string, string>();
  const firstPrefill = awaitFirstPrefill(clock, firstPrefillMs);
  let snapshot: PoolSnapshot | undefined;
  let closed = false;

  const find = (instanceId: string): Tracked | undefined => {
    for (const one of tracked) if (one.registered && one.info.instanceId === instanceId) return one;
    return undefined;
  };

  function onChange(): void {
    if (closed) return;
    snapshot = undefined;
    for (const one of tracked) if (!one.registered && one.legs === 0) tracked.delete(one);
    for (const listener of [...listeners]) listener();
  }

  function build(): PoolSnapshot {
    const prefill: Member[] = [];
    const decode: Member[] = [];
    const models = new Map<string, { maxModelLen: number }>();
    const sorted = [...tracked].sort((a, b) => (a.info.instanceId < b.info.instanceId ? -1 : 1));
    const trusted = lastResorts(tracked);
    for (const one of sorted) {
      const member = one.member(trusted.has(one));
      byMember.set(member, one);
      (one.info.role === Role.PREFILL ? prefill : decode).push(member);
      if (!one.registered) continue;
      const { model, maxModelLen } = one.info;
      const known = models.get(model)?.maxModelLen ?? 0;
      models.set(model, {
        maxModelLen: known === 0 || maxModelLen === 0 ? known + maxModelLen : Math.min(known, maxModelLen),
      });
    }
    const barredPairs = barred(prefill, decode);
    for (const members of [prefill, decode]) {
      members.forEach((member, index) => {
        const reason = barredReason(member, prefill, decode, barredPairs);
        if (reason === undefined) return;
        // Its counts stay live: only the verdict is another.
        const out = Object.create(member, { eligible: { value: false }, reason: { value: reason } }) as Member;
        byMember.set(out, byMember.get(member)!);
        members[index] = out;
      });
    }
    const awaitsPrefill = firstPrefill.awaited(prefill, decode, models);
    return { prefill, decode, models, brokenPairs: pairs.broken(), barredPairs, awaitsPrefill };
  }

  /** Of the pairs that must be checked, those that were not, or were found wrong. */
  function barred(prefills: readonly Member[], decodes: readonly Member[]): ReadonlyMap<string, string> {
    const found = new Map<string, string>();
    if (checks === undefined) return found;
    for (const { info: prefill } of prefills) {
      for (const { info: decode } of decodes) {
        if (!checks(prefill, decode)) continue;
        const key = pairKey(prefill.instanceId, decode.instanceId);
        const fault = checked.get(key);
        if (fault !== "") found.set(key, fault ?? "it is being checked by a canary");
      }
    }
    return found;
  }

  function update(entries: readonly Info[], doubts: ReadonlyMap<string, Doubt> = NO_DOUBTS): void {
    if (closed) return;
    const named = new Set<string>();
    for (const info of entries) {
      if (info.role !== Role.PREFILL && info.role !== Role.DECODE) continue;
      const known = find(info.instanceId);
      const doubt = doubts.get(info.instanceId);
      // Gone for the registry, and by its own word too.
      if (doubt?.kind === "missing" && known?.serves !== true) continue;
      if (known !== undefined) known.doubt = doubt;
      named.add(info.instanceId);
      if (known !== undefined && known.info.grpcAddress === info.grpcAddress) {
        known.info = info;
        continue;
      }
      // Reached elsewhere now: what runs over the old address ends there.
      if (known !== undefined) known.registered = false;
      if (tracked.size >= limit) {
        log.warn("instance left out: too many are known", { instanceId: info.instanceId, limit });
        continue;
      }
      const added: Tracked = new Tracked(info, {
        token,
        log,
        clock,
        breaker,
        connectTimeoutMs,
        onChange,
        onDoubt: () => doubted(added),
      });
      added.doubt = doubt;
      tracked.add(added);
      log.info("instance found", { instanceId: info.instanceId, role: Role[info.role], model: info.model });
    }
    for (const one of tracked) {
      if (!one.registered || named.has(one.info.instanceId)) continue;
      leave(one);
    }
    onChange();
  }

  function leave(one: Tracked): void {
    log.info("instance left", { instanceId: one.info.instanceId, legs: one.legs });
    one.registered = false;
    pairs.forget(one.info.instanceId);
  }

  /** What it was just given and has not answered is tried elsewhere now, and not when it is given up. */
  function doubted(one: Tracked): void {
    if (closed) return;
    onChange();
    if (one.hesitant && !lastResorts(tracked).has(one)) one.channel.dropUnanswered();
  }

  // An instance that falls silent changes without telling.
  let sweepTimer: Timer;
  let sweptMs = clock.nowMs();
  const sweep = (): void => {
    const nowMs = clock.nowMs();
    const lateMs = nowMs - sweptMs - SWEEP_MS;
    const pausedMs = lateMs > OWN_PAUSE_MS ? lateMs : 0;
    sweptMs = nowMs;
    let left = false;
    for (const one of tracked) {
      if (!one.registered) continue;
      one.checkHeartbeat(nowMs, pausedMs);
      // Its registry let it go before; now it has ended too.
      if (one.doubt?.kind !== "missing" || one.serves) continue;
      leave(one);
      left = true;
    }
    if (left || firstPrefill.isOver) onChange();
    sweepTimer = clock.setTimer(SWEEP_MS, sweep);
  };
  sweepTimer = clock.setTimer(SWEEP_MS, sweep);

  const pool: Pool = {
    get snapshot() {
      return (snapshot ??= build());
    },
    update,
    onChange(listener) {
      // Wrapped, so that the same function may listen twice.
      const entry = (): void => listener();
      listeners.add(entry);
      return () => listeners.delete(entry);
    },
    async drain(instanceId, undrain, reason = "") {
      const one = find(instanceId);
      if (one === undefined) throw new ServiceError("not_found", `There is no instance ${instanceId}.`);
      one.drained = !undrain;
      const client = one.control.client(InstanceService);
      try {
        if (!undrain) return (await client.drain({ reason }, { timeoutMs: DRAIN_TIMEOUT_MS })).remaining;
        await client.undrain({}, { timeoutMs: DRAIN_TIMEOUT_MS });
        return one.legs;
      } catch (thrown) {
        const error = asServiceError(thrown);
        if (error.code === "failed_precondition") throw error;
        const done = undrain ? "" : " This router gives it no new leg all the same.";
        throw new ServiceError("instance_unavailable", `The instance could not be told.${done}`, { cause: error });
      }
    },
    legStarted: (member, tokens = 0) => byMember.get(member)!.legStarted(tokens),
    legEnded: (member, verdict) => byMember.get(member)!.legEnded(verdict),
    pairEnded(prefill, decode, verdict) {
      const [prefillId, decodeId] = [prefill.info.instanceId, decode.info.instanceId];
      if (!pairs.judge(prefillId, decodeId, verdict, clock.nowMs())) return;
      log.warn("pair is out until a canary comes through", { prefill: prefillId, decode: decodeId });
      onChange();
    },
    prefilled: (member, tokens, ms) => byMember.get(member)!.prefilled(tokens, ms),
    // Asked after every change, most of which nobody needs a snapshot for.
    get ailing() {
      if (pairs.someBroken) return true;
      for (const one of tracked) if (one.failing) return true;
      return false;
    },
    takeProbes: () => takeDue(pool.snapshot, pairs, (member) => byMember.get(member)!.breaker, clock.nowMs()),
    canaryCame({ prefill, decode }) {
      const [prefillId, decodeId] = [prefill.info.instanceId, decode.info.instanceId];
      const closed = [prefill, decode].filter((member) => byMember.get(member)!.breaker.close());
      for (const { info } of closed)
        log.info("a canary came through: instance is back", { instanceId: info.instanceId });
      const paired = pairs.close(prefillId, decodeId);
      if (paired) log.info("a canary came through: pair is back", { prefill: prefillId, decode: decodeId });
      if (paired || closed.length > 0) onChange();
    },
    pairChecked(key, fault) {
      if (checked.get(key) === fault) return;
      if (fault === undefined) checked.delete(key);
      else checked.set(key, fault);
      onChange();
    },
    async [Symbol.asyncDispose]() {
      if (closed) return;
      closed = true;
      sweepTimer.cancel();
      await Promise.all([...tracked].map((one) => one.close()));
    },
  };

  metrics?.gauge(
    "tandem_pool_instances",
    "Instances this router knows, by what it takes them for.",
    ["role", "state"],
    (gauge) => {
      for (const role of ["prefill", "decode"] as const) {
        for (const state of CONDITIONS) {
          gauge.set({ role, state }, pool.snapshot[role].filter(({ condition }) => condition === state).length);
        }
      }
    },
  );
  metrics?.gauge("tandem_breakers_open", "Breakers that are open: instances by role, and pairs.", ["of"], (gauge) => {
    const { prefill, decode, brokenPairs } = pool.snapshot;
    gauge.set({ of: "prefill" }, prefill.filter(isFailing).length);
    gauge.set({ of: "decode" }, decode.filter(isFailing).length);
    gauge.set({ of: "pair" }, brokenPairs.size);
  });
  // Instance ids are new after every start, so the old ones are taken off.
  metrics?.gauge(
    "tandem_kv_orphans",
    "Pushed KV whose request is gone and that is not settled yet, by instance.",
    ["instance"],
    (gauge) => {
      gauge.reset();
      for (const { info, load } of pool.snapshot.decode) gauge.set({ instance: info.instanceId }, load?.kvOrphans ?? 0);
    },
  );
  return pool;
}

function isFailing({ condition }: Member): boolean {
  return condition === "failing";
}

/** Why an instance that serves gets no legs: each of its pairs is barred. Undefined where one is not, or it has none. */
function barredReason(
  member: Member,
  prefills: readonly Member[],
  decodes: readonly Member[],
  barredPairs: ReadonlyMap<string, string>,
): string | undefined {
  if (barredPairs.size === 0 || !member.eligible) return undefined;
  const isPrefill = member.info.role === Role.PREFILL;
  // It may still serve alone, while its pairs are being checked: a prefill instance that comes back must not cost requests.
  if (!isPrefill && servesUnpaired(member.info.connector)) return undefined;
  let reason: string | undefined;
  for (const other of isPrefill ? decodes : prefills) {
    if (other.condition !== "serving") continue;
    const [prefill, decode] = isPrefill ? [member, other] : [other, member];
    const fault = barredPairs.get(pairKey(prefill.info.instanceId, decode.info.instanceId));
    if (fault === undefined && pairable(prefill.info, decode.info)) return undefined;
    if (fault !== undefined) reason ??= `With ${other.info.instanceId}: ${fault}.`;
  }
  return reason;
}
