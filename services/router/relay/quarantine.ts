// Finds queries of death: requests whose own body makes an engine fail, wherever they run. Failures and successes in,
// decisions out; no clock, no I/O, no instances. query-of-death.ts feeds it.
//
// A body is condemned if it failed on two instances of the same side (on one, if the side has no other) while each of
// those instances serves other requests, and none of its size was served there a moment ago, which may have been the
// same. Two different bodies that fail on an instance in a row, with no success in between, show a sick instance: nothing
// that rests on it is condemned, and what was is released. When an engine dies, everything that ran on it fails, so a
// body is condemned for deaths only if it alone was aboard each of them.
// A condemned body is held for a while; the hold starts short and doubles each time, because a verdict may be wrong.
import type { Live } from "../../common/config.ts";
import type { Side } from "../pool/pool.ts";

export interface QuarantineLimits {
  /** Bodies that are held at once. 0: none is. */
  readonly quarantineLimit: number;
  /** The longest hold. The first one takes a tenth of it. */
  readonly quarantineHoldMs: number;
}

/** An attempt that failed by its engine's fault. */
export interface EngineFailure<Leg> {
  /** Of the body. */
  readonly digest: string;
  /** Bytes of the body. Requests of another size are certainly other requests, and cost no digest. */
  readonly size: number;
  readonly side: Side;
  readonly instanceId: string;
  /** The engine answered with an error and lives on, or it died or broke off. */
  readonly how: "answered" | "died";
  /** No other instance of the side could have been tried. */
  readonly alone: boolean;
  /** Given back with the decision. */
  readonly leg: Leg;
}

export interface Hold<Leg> {
  readonly side: Side;
  /** Engines died, rather than answered. */
  readonly fatal: boolean;
  /** Where it failed. */
  readonly instanceIds: readonly string[];
  readonly sinceMs: number;
  readonly untilMs: number;
  /** How often the body was condemned. */
  readonly count: number;
  /** The attempt that condemned it. */
  readonly leg: Leg;
}

/** `forgiven`: the failures that say nothing about the instances. */
export type Decision<Leg> =
  | { readonly kind: "unknown" }
  | {
      readonly kind: "condemned";
      readonly isNew: boolean;
      readonly hold: Hold<Leg>;
      readonly forgiven: readonly Leg[];
    };

/** Failures of one body, and of one instance, belong together within this time. */
const WINDOW_MS = 60_000;
/** A success this long ago still shows that an instance serves others. */
const SERVES_MS = 300_000;
const FIRST_HOLD = 0.1;
const FAILED_BODY_LIMIT = 1_024;
const INSTANCE_LIMIT = 4_096;
/** Everything that ran on an engine that died is reported lost within this time. */
const BURST_MS = 5_000;
/** Failures of one body that are kept. */
const FAILURE_LIMIT = 8;

interface FailedBody<Leg> {
  readonly failures: (EngineFailure<Leg> & { readonly atMs: number })[];
}

/** What is known of one instance. */
interface Witness {
  /** The last success, and the last one of another size. -Infinity: none. */
  size: number;
  servedMs: number;
  otherSize: number;
  otherServedMs: number;
  /** The body that failed since the last success, and when it did. */
  failed: string | undefined;
  failedMs: number;
  /** Another one failed as well. */
  sick: boolean;
}

export class Quarantine<Leg> {
  readonly #limits: Live<QuarantineLimits>;
  readonly #failedBodies = new Map<string, FailedBody<Leg>>();
  /** Those whose hold is over stay for a while, for their next hold. */
  readonly #holds = new Map<string, Hold<Leg>>();
  readonly #witnesses = new Map<string, Witness>();
  #watchedUntilMs = -Infinity;

  constructor(limits: Live<QuarantineLimits>) {
    this.#limits = limits;
  }

  /** Whether the digest of a request matters now. Usually it does not, and is not computed. */
  isWatching(nowMs: number): boolean {
    return nowMs < this.#watchedUntilMs;
  }

  /** The hold on a body, if it is held. */
  holdOn(digest: string, nowMs: number): Hold<Leg> | undefined {
    const hold = this.#holds.get(digest);
    return hold !== undefined && nowMs < hold.untilMs ? hold : undefined;
  }

  /** Bodies that are held. */
  heldCount(nowMs: number): number {
    let count = 0;
    for (const { untilMs } of this.#holds.values()) if (nowMs < untilMs) count += 1;
    return count;
  }

  /** Notes a failure, and decides. `released`: the holds that it ended. */
  failed(failure: EngineFailure<Leg>, nowMs: number): { decision: Decision<Leg>; released: readonly Hold<Leg>[] } {
    const { digest, side, instanceId, how } = failure;
    const nothing: Decision<Leg> = { kind: "unknown" };
    if (this.#limits.current.quarantineLimit === 0) return { decision: nothing, released: [] };
    const released = how === "answered" ? this.#answered(digest, instanceId, nowMs) : this.#died(failure, nowMs);
    const body = this.#failedBody(digest, nowMs);
    if (body.failures.length === FAILURE_LIMIT) body.failures.shift();
    body.failures.push({ ...failure, atMs: nowMs });
    this.#watch(nowMs + WINDOW_MS);

    const held = this.holdOn(digest, nowMs);
    // Its other attempts were under way when it was condemned.
    if (held !== undefined)
      return { decision: { kind: "condemned", isNew: false, hold: held, forgiven: [failure.leg] }, released };
    const alike = body.failures.filter((one) => one.side === side && nowMs - one.atMs < WINDOW_MS);
    const instanceIds = [...new Set(alike.map((one) => one.instanceId))];
    const fatal = alike.some((one) => one.how === "died");
    const known = this.#holds.get(digest);
    const enough = instanceIds.length > 1 || (failure.alone && countOf(alike) > 1) || known !== undefined;
    if (!enough || !instanceIds.every((id) => this.#servesOthers(id, failure.size, nowMs)))
      return { decision: nothing, released };
    if (fatal && this.#explainedByOthers(digest, side, instanceIds, nowMs)) {
      // One that was aboard the same engines, and was reported first.
      const wasAboard = (hold: Hold<Leg>): boolean =>
        hold.fatal && hold.side === side && hold.instanceIds.every((id) => instanceIds.includes(id));
      return { decision: nothing, released: [...released, ...this.#release(wasAboard)] };
    }
    const found = { side, fatal, instanceIds, count: (known?.count ?? 0) + 1, leg: failure.leg };
    const hold = this.#hold(digest, found, nowMs);
    return { decision: { kind: "condemned", isNew: true, hold, forgiven: alike.map(({ leg }) => leg) }, released };
  }

  /**
   * Notes a success.
   *
   * @param digest Given while `isWatching`.
   * @returns The hold that it ended: the body does work.
   */
  succeeded(
    instanceIds: readonly string[],
    size: number,
    digest: string | undefined,
    nowMs: number,
  ): Hold<Leg> | undefined {
    if (this.#limits.current.quarantineLimit === 0) return undefined;
    for (const id of instanceIds) {
      const witness = this.#witness(id);
      if (witness.size !== size) {
        witness.otherSize = witness.size;
        witness.otherServedMs = witness.servedMs;
        witness.size = size;
      }
      witness.servedMs = nowMs;
      witness.failed = undefined;
      witness.sick = false;
    }
    if (digest === undefined) return undefined;
    this.#failedBodies.delete(digest);
    const hold = this.#holds.get(digest);
    this.#holds.delete(digest);
    return hold;
  }

  #servesOthers(instanceId: string, size: number, nowMs: number): boolean {
    const { sick, ...seen } = this.#witness(instanceId);
    const own = seen.size === size ? seen.servedMs : seen.otherSize === size ? seen.otherServedMs : -Infinity;
    // It may well be this body that was served a moment ago.
    if (sick || nowMs - own < WINDOW_MS) return false;
    const servedMs = seen.size === size ? seen.otherServedMs : seen.servedMs;
    return nowMs - servedMs < SERVES_MS;
  }

  #answered(digest: string, instanceId: string, nowMs: number): Hold<Leg>[] {
    const witness = this.#witness(instanceId);
    noteFailure(witness, digest, nowMs);
    return witness.sick ? this.#release(({ instanceIds }) => instanceIds.includes(instanceId)) : [];
  }

  /** Engines also die without the bodies that are held for deaths: so those need not be the cause. */
  #died({ digest, side, instanceId }: EngineFailure<Leg>, nowMs: number): Hold<Leg>[] {
    const sameDeath = (hold: Hold<Leg>): boolean =>
      hold.instanceIds.includes(instanceId) && nowMs - hold.sinceMs < BURST_MS;
    return this.#release((hold, other) => hold.fatal && hold.side === side && other !== digest && !sameDeath(hold));
  }

  /** Whether another body was aboard the same engines when they died, or aboard one that died without this body. */
  #explainedByOthers(digest: string, side: Side, instanceIds: readonly string[], nowMs: number): boolean {
    const ambiguous = Math.min(2, instanceIds.length);
    for (const [other, { failures }] of this.#failedBodies) {
      if (other === digest) continue;
      const lost = failures.filter((one) => one.how === "died" && one.side === side && nowMs - one.atMs < WINDOW_MS);
      const where = new Set(lost.map((one) => one.instanceId));
      const together = instanceIds.filter((id) => where.has(id)).length;
      if (together >= ambiguous || together < where.size) return true;
    }
    return false;
  }

  #hold(digest: string, found: Omit<Hold<Leg>, "sinceMs" | "untilMs">, nowMs: number): Hold<Leg> {
    const { quarantineLimit, quarantineHoldMs } = this.#limits.current;
    const holdMs = Math.min(quarantineHoldMs, quarantineHoldMs * FIRST_HOLD * 2 ** (found.count - 1));
    const hold: Hold<Leg> = { ...found, sinceMs: nowMs, untilMs: nowMs + holdMs };
    this.#holds.delete(digest);
    while (this.#holds.size >= quarantineLimit) this.#holds.delete(oldestOf(this.#holds));
    this.#holds.set(digest, hold);
    // Remembered for one more longest hold.
    this.#watch(hold.untilMs + quarantineHoldMs);
    return hold;
  }

  #release(isOver: (hold: Hold<Leg>, digest: string) => boolean): Hold<Leg>[] {
    const released: Hold<Leg>[] = [];
    for (const [digest, hold] of this.#holds) {
      if (!isOver(hold, digest)) continue;
      this.#holds.delete(digest);
      released.push(hold);
    }
    return released;
  }

  #failedBody(digest: string, nowMs: number): FailedBody<Leg> {
    for (const [other, { failures }] of this.#failedBodies) {
      if (nowMs - failures.at(-1)!.atMs < WINDOW_MS && this.#failedBodies.size < FAILED_BODY_LIMIT) break;
      this.#failedBodies.delete(other);
    }
    const body = this.#failedBodies.get(digest) ?? { failures: [] };
    // The latest last.
    this.#failedBodies.delete(digest);
    this.#failedBodies.set(digest, body);
    return body;
  }

  #witness(instanceId: string): Witness {
    let witness = this.#witnesses.get(instanceId);
    if (witness !== undefined) return witness;
    if (this.#witnesses.size >= INSTANCE_LIMIT) this.#witnesses.delete(oldestOf(this.#witnesses));
    witness = {
      size: 0,
      servedMs: -Infinity,
      otherSize: 0,
      otherServedMs: -Infinity,
      failed: undefined,
      failedMs: -Infinity,
      sick: false,
    };
    this.#witnesses.set(instanceId, witness);
    return witness;
  }

  #watch(untilMs: number): void {
    this.#watchedUntilMs = Math.max(this.#watchedUntilMs, untilMs);
  }
}

function noteFailure(witness: Witness, digest: string, nowMs: number): void {
  if (witness.failed === undefined || nowMs - witness.failedMs >= WINDOW_MS) witness.sick = false;
  else if (witness.failed !== digest) witness.sick = true;
  witness.failed = digest;
  witness.failedMs = nowMs;
}

/** Failures, where all that one death of an engine caused is one. */
function countOf<Leg>(failures: FailedBody<Leg>["failures"]): number {
  const isNew = ({ how, instanceId, atMs }: (typeof failures)[number], index: number): boolean =>
    how === "answered" ||
    !failures.slice(0, index).some((one) => one.instanceId === instanceId && atMs - one.atMs < BURST_MS);
  return failures.filter(isNew).length;
}

function oldestOf(map: ReadonlyMap<string, unknown>): string {
  return map.keys().next().value!;
}
