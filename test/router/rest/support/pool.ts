// A pool of instances that are nothing but facts.
import { create } from "@bufbuild/protobuf";
import { InfoSchema, LoadSchema, Role, State } from "#gen/tandem/instance/v1/instance_pb.js";
import { ServiceError } from "../../../../services/common/errors.ts";
import type { Member, Pool, PoolSnapshot } from "../../../../services/router/pool/pool.ts";

export interface FakeMember {
  readonly id: string;
  readonly role: "prefill" | "decode";
  readonly model?: string;
  readonly maxModelLen?: number;
  readonly slots?: number;
  readonly eligible?: boolean;
  readonly reason?: string;
}

export interface FakePool extends Pool {
  set(members: readonly FakeMember[]): void;
  readonly drained: readonly {
    readonly instanceId: string;
    readonly undrain: boolean;
    readonly reason: string | undefined;
  }[];
}

export const ONE_PAIR: readonly FakeMember[] = [
  { id: "p1", role: "prefill" },
  { id: "d1", role: "decode" },
];

export function fakePool(members: readonly FakeMember[] = ONE_PAIR): FakePool {
  const listeners = new Set<() => void>();
  const drained: { instanceId: string; undrain: boolean; reason: string | undefined }[] = [];
  let snapshot = snapshotOf(members);
  return {
    drained,
    get snapshot() {
      return snapshot;
    },
    set(next) {
      snapshot = snapshotOf(next);
      for (const listener of listeners) listener();
    },
    onChange(listener) {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
    async drain(instanceId, undrain, reason) {
      if (![...snapshot.prefill, ...snapshot.decode].some(({ info }) => info.instanceId === instanceId)) {
        throw new ServiceError("not_found", `There is no instance ${instanceId}.`);
      }
      drained.push({ instanceId, undrain, reason });
      return 3;
    },
    update() {},
    legStarted() {},
    legEnded() {},
    pairEnded() {},
    prefilled() {},
    ailing: false,
    takeProbes: () => [],
    canaryCame() {},
    pairChecked() {},
    async [Symbol.asyncDispose]() {},
  };
}

function snapshotOf(members: readonly FakeMember[]): PoolSnapshot {
  const models = new Map<string, { maxModelLen: number }>();
  for (const { model = "tiny", maxModelLen = 512 } of members) models.set(model, { maxModelLen });
  const of = (role: "prefill" | "decode"): Member[] => members.filter((member) => member.role === role).map(memberOf);
  return { prefill: of("prefill"), decode: of("decode"), models, brokenPairs: new Set() };
}

function memberOf({
  id,
  role,
  model = "tiny",
  maxModelLen = 512,
  slots = 4,
  eligible = true,
  reason = "",
}: FakeMember): Member {
  return {
    info: create(InfoSchema, {
      instanceId: id,
      role: role === "prefill" ? Role.PREFILL : Role.DECODE,
      model,
      maxModelLen,
      slotLimit: slots,
      connector: "p2p-zmq",
      engine: "sim",
      engineVersion: "0.1",
      grpcAddress: "10.1.2.3:3201",
      kvAddress: "10.1.2.3:21001",
    }),
    load: create(LoadSchema, { state: State.SERVING, freeSlots: slots }),
    loadAtMs: 0,
    condition: eligible ? "serving" : "draining",
    eligible,
    reason,
    legs: 0,
    legsTotal: 7n,
    legsAtLoad: 0,
    placedTokens: 0,
    tokensPerMs: 0,
    suspicion: 0,
    // Only the real relay uses them.
    channel: undefined as never,
    control: undefined as never,
  };
}
