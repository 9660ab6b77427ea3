// The instances that Consul lists, for the router. Known instances are kept while Consul is unreachable: an instance is
// lost when the router itself sees it fail, not when the registry fails.
import type { Info } from "#gen/tandem/instance/v1/instance_pb.js";
import type { Clock, Timer } from "../common/clock.ts";
import type { Log } from "../common/log.ts";
import { infoOf, objectionOf, proofFault, type HealthEntry } from "./consul-record.ts";
import type { EntriesListener, Objection, UnprovenEntry } from "./registry.ts";

interface Known {
  readonly info: Info;
  /** When its meta changed last, as Consul counts. What only its checks say changes more often. */
  readonly version: number;
  readonly objection: Objection | undefined;
  /** Since when it is missing in Consul. */
  readonly missingSinceMs?: number;
}

export const INSTANCE_ROLES = ["prefill", "decode"] as const;
type Role = (typeof INSTANCE_ROLES)[number];

const MISSING: Objection = { kind: "missing", reason: "It is not registered in Consul any more." };

/** A process that may write to Consul can make any number of entries. */
const UNPROVEN_LIMIT = 16;

export interface ConsulDirectory extends Disposable {
  /** The first 16 of the entries that are ignored. */
  readonly unproven: readonly UnprovenEntry[];
  /** @param gap What is missing now may only be forgotten. */
  learn(role: Role, entries: readonly HealthEntry[], gap: boolean): void;
}

/**
 * @param o.token Join token, which each entry must prove to know. Empty or left out: all entries are believed.
 * @param o.forgetMs How long an entry that is missing in Consul is kept, if its instance lives.
 * @param o.isDown Whether Consul does not answer what instances of a role there are.
 */
export function consulDirectory(
  onChange: EntriesListener,
  o: {
    readonly token?: string | undefined;
    readonly log: Log;
    readonly clock: Clock;
    readonly forgetMs: number;
    isDown(role: Role): boolean;
  },
): ConsulDirectory {
  const { clock, forgetMs } = o;
  /** By instance id, of both roles. */
  const known = { prefill: new Map<string, Known>(), decode: new Map<string, Known>() };
  const unproven: Record<Role, readonly UnprovenEntry[]> = { prefill: [], decode: [] };
  const complained = new Set<string>();
  let timer: Timer | undefined;

  function tell(): void {
    const byAddress = new Map<string, Known>();
    for (const one of [...known.prefill.values(), ...known.decode.values()]) {
      const other = byAddress.get(one.info.grpcAddress);
      // Two entries of one address: the older one was left by a killed instance, or is not yet forgotten.
      if (other === undefined || other.info.startedUnixMs <= one.info.startedUnixMs)
        byAddress.set(one.info.grpcAddress, one);
    }
    const entries: Info[] = [];
    const objections = new Map<string, Objection>();
    for (const { info, objection } of byAddress.values()) {
      entries.push(info);
      if (objection !== undefined) objections.set(info.instanceId, objection);
    }
    onChange(entries, objections);
  }

  function learn(role: Role, entries: readonly HealthEntry[], gap: boolean): void {
    const listed = new Map<string, Known>();
    const strangers: UnprovenEntry[] = [];
    let news = known[role].size === 0;
    for (const entry of entries) {
      const { ID: id, ModifyIndex: version } = entry.Service;
      const [before, objection] = [known[role].get(id), objectionOf(entry)];
      // After a gap Consul may count anew.
      const same = !gap && before?.version === version && before.missingSinceMs === undefined;
      const reason = same || !o.token ? undefined : proofFault(entry, o.token);
      if (reason !== undefined) {
        strangers.push({ instanceId: id, role, reason });
        complain(id, reason);
        continue;
      }
      news ||= !same || before.objection?.reason !== objection?.reason;
      try {
        listed.set(id, { info: same ? before.info : infoOf(entry, role), version, objection });
      } catch (error) {
        complain(id, (error as Error).message);
      }
    }
    const nowMs = clock.nowMs();
    let missing = 0;
    for (const [id, one] of known[role]) {
      if (listed.has(id)) continue;
      // After an outage Consul may have forgotten all instances; until they register again, they stay usable.
      const objection = gap ? undefined : one.missingSinceMs === undefined ? MISSING : one.objection;
      const missingSinceMs = gap ? nowMs : (one.missingSinceMs ?? nowMs);
      listed.set(id, { ...one, objection, missingSinceMs });
      news ||= one.missingSinceMs === undefined || one.objection !== objection;
      missing += 1;
    }
    if (gap && missing > 0)
      o.log.warn("instances are missing from Consul since it was unreachable; keeping them while they respond", {
        role,
        missing,
      });
    known[role] = listed;
    news ||= strangers.length !== unproven[role].length;
    unproven[role] = strangers.slice(0, UNPROVEN_LIMIT);
    if (news) tell();
    if (missing > 0) timer ??= clock.setTimer(forgetMs / 4, forget);
  }

  /** Consul answers, and still does not list them. */
  function forget(): void {
    timer = undefined;
    const nowMs = clock.nowMs();
    let [forgotten, left] = [0, 0];
    for (const role of INSTANCE_ROLES) {
      for (const [id, { missingSinceMs }] of known[role]) {
        if (missingSinceMs === undefined) continue;
        // An outage makes it start anew.
        if (nowMs - missingSinceMs < forgetMs || o.isDown(role)) left += 1;
        else {
          known[role].delete(id);
          forgotten += 1;
        }
      }
    }
    if (forgotten > 0) tell();
    if (left > 0) timer = clock.setTimer(forgetMs / 4, forget);
  }

  function complain(id: string, because: string): void {
    if (complained.has(id) || complained.size > 1_000) return;
    complained.add(id);
    o.log.warn("a service in Consul can't be used", { serviceId: id, because });
  }

  return {
    learn,
    get unproven() {
      return [...unproven.prefill, ...unproven.decode].slice(0, UNPROVEN_LIMIT);
    },
    [Symbol.dispose]: () => timer?.cancel(),
  };
}
