// What the router knows about the instances. Discovery lists them, they report their own state, and the rest of the
// router reads one view of them. An instance that is gone from discovery keeps its channels until its last leg has
// ended, so the registry never ends a stream.
import { InstanceService, Role } from "#gen/tandem/instance/v1/instance_pb.js";
import type { Info } from "#gen/tandem/instance/v1/instance_pb.js";
import type { Clock, Timer } from "../../common/clock.ts";
import { asServiceError, ServiceError } from "../../common/errors.ts";
import type { Log } from "../../common/log.ts";
import type { Metrics } from "../../common/metrics.ts";
import type { Objection } from "../../discovery/registry.ts";
import type { Tls } from "../../rpc/tls.ts";
import { traitsOf } from "../../kv/index.ts";
import { type Breaker, BREAKER_LIMITS, type BreakerLimits, type ProbeFailure, type Verdict } from "./breaker.ts";
import { misfitOf } from "./compat.ts";
import { awaitFirstPrefill } from "./first-prefill.ts";
import { DOUBT_MS, keptOf, mostAreSuspect } from "./doubt.ts";
import { fleetOf, modelSideOf, sideOf, type FleetView } from "./fleet.ts";
import { type Instance, TrackedInstance } from "./instance.ts";
import { registerPoolMetrics } from "./metrics.ts";
import { Pairs, type PairEntry } from "./pairs.ts";
import { RestartLeases } from "./restart-leases.ts";
import { claimsToServe, isForsaken } from "./standing.ts";

export type { FleetView, ModelView, Seen, Side } from "./fleet.ts";
export type { Instance } from "./instance.ts";
export type { Reason, Standing } from "./standing.ts";
export type { ProbeFailure, Verdict } from "./breaker.ts";

export interface Pool {
  /** The same object until a standing, a pair or a fact changes. */
  readonly view: FleetView;
  /**
   * Replaces the instances with those that discovery knows now.
   *
   * @param objections What the registry has against some of them, by instance id.
   */
  update(entries: readonly Info[], objections?: ReadonlyMap<string, Objection>): void;
  /** Called after every change of the view or of figures, and when a leg ends. Returns a function that unsubscribes. */
  onChange(listener: (isNewView: boolean) => void): () => void;
  /**
   * Orders an instance to take no new legs, or to take them again. This router acts on the order at once. Returns the
   * legs of all routers that still run on the instance.
   *
   * @throws ServiceError `not_found`; `instance_unavailable` if the instance did not confirm the order. This router
   *   still acts on the order.
   */
  drain(instanceId: string, undrain: boolean, reason?: string): Promise<number>;
  /** @param tokens The leg's prompt tokens, if they are still to be computed. */
  legStarted(instance: Instance, tokens?: number): void;
  legEnded(instance: Instance, verdict: Verdict): void;
  /** Takes out an instance that made no progress with a leg, which another instance answered meanwhile. */
  outrun(instance: Instance): void;
  /** Books what the same leg says about the two as a pair. */
  pairEnded(prefill: Instance, decode: Instance, verdict: Verdict): void;
  /**
   * Takes a `bad` verdict back, because the request's own body was at fault.
   *
   * @param decode Given if the verdict was on the pair.
   */
  pardon(instance: Instance, decode?: Instance): void;
  /** @param tokens Tokens that were computed, or waited for, in `ms`. */
  prefilled(instance: Instance, tokens: number, ms: number): void;
  /** Whether KV has moved between the two since both of them started. */
  isWarm(prefill: Instance, decode: Instance): boolean;
  readonly probes: ProbeBooks;
  [Symbol.asyncDispose](): Promise<void>;
}

/** The instances and pairs that are out until a probe succeeds. Used by probe/, which sends the probes. */
export interface ProbeBooks {
  /** When the next probe is due, by the pool's clock; Infinity while nothing is out. */
  readonly dueMs: number;
  /** Instances and pairs that are due for a probe now, reachable or not, each with the longest due first. */
  due(nowMs: number): { readonly instances: readonly Instance[]; readonly pairs: readonly PairEntry[] };
  /** Whether a pair with the instance is out. */
  isInPair(instance: Instance): boolean;
  /** Notes that a probe is sent through the two. They and their pair are due again after their pauses. */
  sending(prefill: Instance, decode: Instance): void;
  succeeded(prefill: Instance, decode: Instance): void;
  /** @param text The reason, as one sentence for people. */
  failed(prefill: Instance, decode: Instance, failure: ProbeFailure, text: string): void;
}

export interface PoolOptions {
  readonly token?: string | undefined;
  readonly tls?: Tls | undefined;
  readonly log: Log;
  readonly clock: Clock;
  readonly metrics?: Metrics;
  /** Limits the tracked instances. Further ones are left out and logged. */
  readonly limit?: number;
  readonly breaker?: BreakerLimits;
  /** Timeout for connecting to an instance. */
  readonly connectTimeoutMs?: number;
  /** Whether decode serves unpaired while no prefill instance is left, if the connector allows it. */
  readonly unpaired?: boolean;
  /** How long a model that has a decode instance waits for its first prefill instance. Default 0. */
  readonly firstPrefillMs?: number;
  /** Whether an instance gets users' requests only after a successful probe. Default: never. */
  readonly proves?: (info: Info) => boolean;
}

const SWEEP_MS = 250;
const DRAIN_TIMEOUT_MS = 2_000;
/** 8 x 8. */
const WARMED_PAIRS = 64;

export function createPool(o: PoolOptions): Pool {
  const { token, tls, log, clock, limit = 1024, breaker = BREAKER_LIMITS, unpaired = false, proves = () => false } = o;
  const tracked = new Set<TrackedInstance>();
  /** Instances that left, with calls that have not ended. */
  const retiring = new Set<TrackedInstance>();
  const listeners = new Set<(isNewView: boolean) => void>();
  const pairs = new Pairs(breaker);
  const restarts = new RestartLeases();
  const firstPrefill = awaitFirstPrefill(clock, o.firstPrefillMs ?? 0);
  let view: FleetView | undefined;
  /** Most instances are suspect together. */
  let doubtsItself = false;
  let closed = false;

  const find = (instanceId: string): TrackedInstance | undefined => {
    for (const one of tracked) if (one.registered && one.instanceId === instanceId) return one;
    return undefined;
  };
  // The router only sees instances that this pool made.
  const own = (instance: Instance): TrackedInstance => instance as TrackedInstance;

  /** @param isNewView Whether a standing, a pair or a fact has changed, and not only figures. */
  function changed(isNewView: boolean): void {
    if (closed) return;
    if (isNewView) {
      view = undefined;
      doubtItself(mostAreSuspect(tracked));
      for (const one of tracked) if (!one.registered && one.legs === 0) retire(one);
    }
    for (const listener of listeners) listener(isNewView);
  }

  function doubtItself(now: boolean): void {
    if (now === doubtsItself) return;
    doubtsItself = now;
    if (doubtsItself)
      log.warn("most instances are suspect together: this router doubts itself, and takes none out for it");
    else log.info("this router no longer doubts itself");
  }

  function retire(one: TrackedInstance): void {
    tracked.delete(one);
    retiring.add(one);
    void one.retire().then(() => retiring.delete(one));
  }

  function makeView(): FleetView {
    firstPrefill.look(tracked);
    expectPairs();
    return fleetOf(tracked, pairs, (model) => unpaired && !firstPrefill.isAwaited(model), doubtsItself);
  }

  /**
   * The first transfer of a pair sets up its connection, which may take many seconds. In small fleets a probe does that
   * in advance. In large fleets only instances are proven, and the first user of a pair waits.
   */
  function expectPairs(): void {
    const sound = [...tracked].filter(
      (one) => proves(one.info) && claimsToServe(one) && (traitsOf(one.info.connector)?.firstTransferMs ?? 0) > 0,
    );
    for (const model of new Set(sound.map(({ info }) => info.model))) {
      const members = sound.filter(({ info }) => info.model === model);
      const prefill = members.filter((one) => sideOf(one) === "prefill");
      const decode = members.filter((one) => sideOf(one) === "decode");
      if (prefill.length * decode.length > WARMED_PAIRS) continue;
      for (const { info, instanceId } of prefill)
        for (const other of decode)
          if (misfitOf(info, other.info) === undefined) pairs.expect(instanceId, other.instanceId, clock.nowMs());
    }
  }

  function update(entries: readonly Info[], objections?: ReadonlyMap<string, Objection>): void {
    if (closed) return;
    const named = new Set<string>();
    for (const info of entries) {
      if (info.role !== Role.PREFILL && info.role !== Role.DECODE) continue;
      const known = find(info.instanceId);
      const objection = objections?.get(info.instanceId);
      // Its registry no longer vouches for it, and the instance itself doesn't report that it serves.
      if (isForsaken({ objection }) && (known === undefined || !claimsToServe(known))) continue;
      named.add(info.instanceId);
      if (known !== undefined) {
        known.objection = objection;
        if (known.info.grpcAddress === info.grpcAddress) {
          known.info = info;
          continue;
        }
        // It has a new address. Legs over the old one end there.
        known.registered = false;
      }
      if (tracked.size >= limit) {
        log.warn("instance left out: too many are known", { instanceId: info.instanceId, limit });
        continue;
      }
      track(info).objection = objection;
    }
    for (const one of tracked) if (one.registered && !named.has(one.instanceId)) leave(one);
    changed(true);
  }

  function track(info: Info): TrackedInstance {
    const one: TrackedInstance = new TrackedInstance(info, {
      token,
      tls,
      log,
      clock,
      breaker,
      connectTimeoutMs: o.connectTimeoutMs,
      proves,
      onChange: changed,
      onServing: () => partnerIsBack(one),
      onSuspect: () => suspected(one),
      patienceMs: () => (doubtsItself ? DOUBT_MS : 0),
    });
    tracked.add(one);
    log.info("instance found", { instanceId: info.instanceId, role: Role[info.role], model: info.model });
    return one;
  }

  /** Probes of its pairs and partners may have been refused because of it. */
  function partnerIsBack(one: TrackedInstance): void {
    const nowMs = clock.nowMs();
    pairs.cool(one.instanceId, nowMs);
    const { model, role } = one.info;
    for (const { info, breaker: other } of tracked)
      if (info.model === model && info.role !== role) other.probeSoon(nowMs);
  }

  function leave(one: TrackedInstance): void {
    log.info("instance left", { instanceId: one.instanceId, legs: one.legs });
    one.registered = false;
    pairs.forget(one.instanceId);
  }

  /** Moves its unanswered calls elsewhere now, rather than when the instance is given up. */
  function suspected(one: TrackedInstance): void {
    if (closed) return;
    changed(true);
    if (one.suspect && !keptOf(tracked, modelSideOf, doubtsItself).has(one)) one.channel.dropUnanswered();
  }

  function grantRestarts(): void {
    let wanted = restarts.any;
    for (const { load } of tracked) wanted ||= (load?.restartWanted ?? "") !== "";
    if (!wanted) return;
    const granted = restarts.granted(pool.view, clock.nowMs());
    for (const one of tracked) one.grantRestart(granted.has(one.instanceId));
  }

  let sweepTimer: Timer;
  const sweep = (): void => {
    let left = false;
    for (const one of tracked) {
      // Its registry dropped it before, and now the instance has stopped too.
      if (!one.registered || !isForsaken(one) || claimsToServe(one)) continue;
      leave(one);
      left = true;
    }
    if (left || firstPrefill.isOver()) changed(true);
    grantRestarts();
    sweepTimer = clock.setTimer(SWEEP_MS, sweep);
  };
  sweepTimer = clock.setTimer(SWEEP_MS, sweep);

  const probes: ProbeBooks = {
    get dueMs() {
      let dueMs = Infinity;
      for (const { breaker: one } of tracked) dueMs = Math.min(dueMs, one.dueMs);
      for (const { breaker: one } of pairs.open()) dueMs = Math.min(dueMs, one.dueMs);
      return dueMs;
    },
    due: (nowMs) => ({
      instances: [...tracked].filter((one) => one.registered && one.breaker.dueMs <= nowMs).sort(byDue),
      pairs: [...pairs.open()].filter((pair) => pair.breaker.dueMs <= nowMs).sort(byDue),
    }),
    isInPair: ({ instanceId }) => pairs.openWith(instanceId) > 0,
    sending(prefill, decode) {
      const nowMs = clock.nowMs();
      for (const one of [prefill, decode]) own(one).breaker.probing(nowMs);
      pairs.outOf(prefill.instanceId, decode.instanceId)?.probing(nowMs);
    },
    succeeded(prefill, decode) {
      let isNews = false;
      for (const one of [prefill, decode]) {
        if (!own(one).breaker.close()) continue;
        isNews = true;
        log.info("a probe succeeded: instance takes requests", { instanceId: one.instanceId });
      }
      if (pairs.close(prefill.instanceId, decode.instanceId)) {
        isNews = true;
        log.info("a probe succeeded: pair takes requests", pairFields(prefill, decode));
      }
      if (isNews) changed(true);
    },
    failed(prefill, decode, failure, text) {
      const isCostly = traitsOf(prefill.info.connector)?.abandoned === "drain";
      const failed = [failure, text, clock.nowMs(), isCostly] as const;
      const open = [own(prefill), own(decode)].filter((one) => one.breaker.open);
      for (const one of open) one.breaker.probeFailed(...failed);
      // Both work with others, so the fault is in the pair.
      if (open.length === 0) pairs.probeFailed(prefill.instanceId, decode.instanceId, ...failed);
      else pairs.outOf(prefill.instanceId, decode.instanceId)?.probeFailed(...failed);
      log.warn("a probe failed", { ...pairFields(prefill, decode), failure, why: text });
      changed(true);
    },
  };

  const pool: Pool = {
    get view() {
      return (view ??= makeView());
    },
    update,
    onChange(listener) {
      // Wrapped, so that the same function may listen twice.
      const entry = (isNewView: boolean): void => listener(isNewView);
      listeners.add(entry);
      return () => listeners.delete(entry);
    },
    async drain(instanceId, undrain, reason = "") {
      const one = find(instanceId);
      if (one === undefined) throw new ServiceError("not_found", `There is no instance ${instanceId}.`);
      one.drained = !undrain;
      changed(true);
      const client = one.channel.client(InstanceService);
      try {
        if (!undrain) return (await client.drain({ reason }, { timeoutMs: DRAIN_TIMEOUT_MS })).remaining;
        await client.undrain({}, { timeoutMs: DRAIN_TIMEOUT_MS });
        return one.legs;
      } catch (thrown) {
        const error = asServiceError(thrown);
        if (error.code === "failed_precondition") throw error;
        const done = undrain ? "" : " This router gives it no new leg anyway.";
        throw new ServiceError("instance_unavailable", `The instance did not confirm the order.${done}`, {
          cause: error,
        });
      }
    },
    legStarted: (instance, tokens = 0) => own(instance).legStarted(tokens),
    legEnded(instance, verdict) {
      const one = own(instance);
      const isNews = one.legEnded(verdict);
      if (isNews || (!one.registered && one.legs === 0)) changed(true);
      else changed(false);
    },
    outrun(instance) {
      if (own(instance).outrun()) changed(true);
    },
    pairEnded(prefill, decode, verdict) {
      if (!pairs.judge(prefill.instanceId, decode.instanceId, verdict, clock.nowMs())) return;
      log.warn("pair is out until a probe succeeds", pairFields(prefill, decode));
      // One that stalled with two partners is itself at fault, and its other partners need not find out.
      if (verdict === "wedged")
        for (const one of [prefill, decode]) if (pairs.openWith(one.instanceId) >= 2) own(one).outrun();
      changed(true);
    },
    pardon(instance, decode) {
      const { instanceId } = instance;
      changed(decode === undefined ? own(instance).pardon() : pairs.pardon(instanceId, decode.instanceId));
    },
    isWarm: (prefill, decode) => pairs.isWarm(prefill.instanceId, decode.instanceId),
    prefilled: (instance, tokens, ms) => own(instance).prefilled(tokens, ms),
    probes,
    async [Symbol.asyncDispose]() {
      if (closed) return;
      closed = true;
      sweepTimer.cancel();
      await Promise.all([...tracked, ...retiring].map((one) => one.close()));
    },
  };
  if (o.metrics !== undefined) registerPoolMetrics(o.metrics, pool);
  return pool;
}

function byDue(a: { readonly breaker: Breaker }, b: { readonly breaker: Breaker }): number {
  return a.breaker.dueMs - b.breaker.dueMs;
}

function pairFields(prefill: Instance, decode: Instance): Record<string, string> {
  return { prefill: prefill.instanceId, decode: decode.instanceId };
}
