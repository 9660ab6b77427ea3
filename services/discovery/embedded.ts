// The embedded registry: a call held open from each instance to the router. An instance that ends it in good order is
// out at once. A call that breaks says little of the instance, whose other connections may be sound and full of
// answers: it stays for a while, and the pool sees for itself whether it is there.
import { equals } from "@bufbuild/protobuf";
import { randomUUID } from "node:crypto";
import { InfoSchema, type Info } from "#gen/tandem/instance/v1/instance_pb.js";
import { RegistryService, type RegisterRequest } from "#gen/tandem/registry/v1/registry_pb.js";
import { type Clock, systemClock, type Timer } from "../common/clock.ts";
import { ServiceError } from "../common/errors.ts";
import type { Log } from "../common/log.ts";
import { dialRpc } from "../rpc/channel.ts";
import { lossFault, peerFault, type PeerFault } from "../rpc/peer-fault.ts";
import { defineService, type RpcService } from "../rpc/service.ts";
import { checkInfo } from "./check-info.ts";
import type { Directory, EntriesListener, Registration } from "./registry.ts";

const INSTANCE_LIMIT = 1_024;
/** How long an entry outlives its broken call: the longest pause before the next try, and time to make it. */
const GRACE_MS = 5_000;
/** Attempts that may fail to reach the router before it is logged: when all start together, the router may be the last. */
const QUIET_ATTEMPTS = 5;

/** The instance's side. */
export function registerAtRouter(
  self: () => Info,
  o: { readonly address: string; readonly token?: string; readonly log: Log; readonly clock?: Clock },
): Registration {
  let held = false;
  /** Attempts in a row that failed. */
  let failures = 0;
  let logged: PeerFault["kind"] | undefined;
  const failed = ({ kind: fault, text: because }: PeerFault): void => {
    held = false;
    failures++;
    if (fault === logged || (fault === "address" && failures <= QUIET_ATTEMPTS)) return;
    logged = fault;
    o.log.warn("not registered; will keep retrying", { registry: o.address, fault, because });
  };
  const channel = dialRpc(o.address, {
    ...o,
    heartbeat: {
      method: RegistryService.method.register,
      message: () => ({ info: self() }),
      onMessage({ routerId }) {
        if (!held) o.log.info("registered", { registry: o.address, routerId });
        held = true;
        failures = 0;
        logged = undefined;
      },
      onRefused(error) {
        if (error !== undefined) failed(peerFault(error));
        else o.log.info("the registry closed the registration; registering again");
      },
    },
    onState(state) {
      if (state.kind === "down") failed(lossFault(state));
    },
  });
  return { update: () => channel.beat(), [Symbol.asyncDispose]: () => channel.retire() };
}

export interface RegistryHub extends Directory {
  readonly service: RpcService;
}

/** The router's side: serves RegistryService and knows who holds a call to it. */
export function registryHub(o: {
  /** Instances that may register. Default 1024. */
  readonly limit?: number;
  readonly routerId?: string;
  readonly graceMs?: number;
  readonly clock?: Clock;
}): RegistryHub {
  const routerId = o.routerId ?? randomUUID();
  const { graceMs = GRACE_MS, limit = INSTANCE_LIMIT, clock = systemClock } = o;
  /** By instance id. The lease distinguishes two calls of one instance: the newest counts. */
  const entries = new Map<string, { readonly info: Info; lease: symbol; held: boolean }>();
  const watchers = new Set<EntriesListener>();
  /** Timers of instances whose call broke. */
  const graces = new Set<Timer>();
  const tell = (): void => {
    const all = [...entries.values()].map((entry) => entry.info);
    for (const watcher of watchers) watcher(all);
  };

  /** An instance that was killed and is back, at the address that its predecessor had. */
  const replace = (next: Info): void => {
    for (const [id, { info, held }] of entries) if (!held && info.grpcAddress === next.grpcAddress) entries.delete(id);
  };

  async function* register(requests: AsyncIterable<RegisterRequest>): AsyncGenerator<{ routerId: string }> {
    const lease = Symbol();
    let heldId: string | undefined;
    let left = false;
    const remove = (): void => {
      if (heldId === undefined || entries.get(heldId)?.lease !== lease) return;
      entries.delete(heldId);
      tell();
    };
    try {
      for await (const { info } of requests) {
        const checked = checkInfo(info);
        if (!entries.has(checked.instanceId)) replace(checked);
        const before = entries.get(checked.instanceId);
        if (before === undefined && entries.size >= limit) {
          throw new ServiceError("instance_busy", `The registry holds ${limit} instances, which is its limit.`);
        }
        if (heldId !== undefined && heldId !== checked.instanceId && entries.get(heldId)?.lease === lease)
          entries.delete(heldId);
        heldId = checked.instanceId;
        entries.set(checked.instanceId, { info: checked, lease, held: true });
        if (before === undefined || !equals(InfoSchema, before.info, checked)) tell();
        yield { routerId };
      }
      left = true;
    } finally {
      const entry = heldId === undefined ? undefined : entries.get(heldId);
      // Once the last watcher has left, nothing waits for an instance that may come back.
      if (left || graceMs === 0 || watchers.size === 0) remove();
      else if (entry?.lease === lease) {
        entry.held = false;
        const timer = clock.setTimer(graceMs, () => {
          graces.delete(timer);
          remove();
        });
        graces.add(timer);
      }
    }
  }

  return {
    service: defineService(RegistryService, { register }, { access: "token" }),
    watch(onChange) {
      watchers.add(onChange);
      onChange([...entries.values()].map((entry) => entry.info));
      return {
        async [Symbol.asyncDispose]() {
          watchers.delete(onChange);
          if (watchers.size > 0) return;
          for (const timer of graces) timer.cancel();
          graces.clear();
        },
      };
    },
  };
}
