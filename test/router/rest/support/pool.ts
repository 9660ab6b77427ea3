// A pool of instances that are nothing but facts.
import { create } from "@bufbuild/protobuf";
import { LoadSchema, State } from "#gen/tandem/instance/v1/instance_pb.js";
import { ServiceError } from "../../../../services/common/errors.ts";
import type { FleetView, Pool } from "../../../../services/router/pool/pool.ts";
import { type KnownInit, standingIn, viewOf } from "../../support/fleet.ts";

export interface FakeInstance {
  readonly id: string;
  readonly role: "prefill" | "decode";
  readonly model?: string;
  readonly maxModelLen?: number;
  readonly slots?: number;
  /** Its registry reports it dead: as the last one of its side it serves all the same. */
  readonly unlisted?: boolean;
  readonly suspect?: boolean;
  /** Why it drains. */
  readonly draining?: string;
}

export interface FakePool extends Pool {
  set(instances: readonly FakeInstance[]): void;
  readonly drained: readonly {
    readonly instanceId: string;
    readonly undrain: boolean;
    readonly reason: string | undefined;
  }[];
}

export const ONE_PAIR: readonly FakeInstance[] = [
  { id: "p1", role: "prefill" },
  { id: "d1", role: "decode" },
];

export function fakePool(instances: readonly FakeInstance[] = ONE_PAIR): FakePool {
  const listeners = new Set<(isNewView: boolean) => void>();
  const drained: { instanceId: string; undrain: boolean; reason: string | undefined }[] = [];
  let view = viewOfAll(instances);
  return {
    drained,
    get view() {
      return view;
    },
    set(next) {
      view = viewOfAll(next);
      for (const listener of listeners) listener(true);
    },
    onChange(listener) {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
    async drain(instanceId, undrain, reason) {
      if (standingIn(view, instanceId) === "unknown") {
        throw new ServiceError("not_found", `There is no instance ${instanceId}.`);
      }
      drained.push({ instanceId, undrain, reason });
      return 3;
    },
    update() {},
    legStarted() {},
    legEnded() {},
    outrun() {},
    pairEnded() {},
    pardon() {},
    prefilled() {},
    isWarm: () => true,
    probes: {
      dueMs: Infinity,
      due: () => ({ instances: [], pairs: [] }),
      isInPair: () => false,
      sending() {},
      succeeded() {},
      failed() {},
    },
    async [Symbol.asyncDispose]() {},
  };
}

function viewOfAll(instances: readonly FakeInstance[]): FleetView {
  const of = (role: string): KnownInit[] => instances.filter((one) => one.role === role).map(initOf);
  return viewOf(of("prefill"), of("decode"), { doubtsItself: instances.some(({ suspect }) => suspect === true) });
}

function initOf({
  id,
  model = "tiny",
  maxModelLen = 512,
  slots = 4,
  unlisted,
  suspect,
  draining,
}: FakeInstance): KnownInit {
  return {
    id,
    info: {
      model,
      maxModelLen,
      slotLimit: slots,
      connector: "p2p-zmq",
      engine: "sim",
      engineVersion: "0.1",
      grpcAddress: "10.1.2.3:3201",
      kvAddress: "10.1.2.3:21001",
    },
    load: create(LoadSchema, { freeSlots: slots }),
    loadAtMs: 0,
    legsTotal: 7n,
    slots,
    freeSlots: slots,
    ...(draining === undefined ? {} : { state: State.DRAINING, stateText: draining }),
    ...(suspect === true ? { suspect } : {}),
    ...(unlisted === true ? { objection: { kind: "critical", reason: "Its check fails." } } : {}),
  };
}
