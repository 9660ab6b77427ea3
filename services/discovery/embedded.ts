// The embedded registry: a call held open from each instance to the router. An instance that ends it in good order is
// out at once. A call that breaks says little of the instance, whose other connections may be sound and full of
// answers: it stays for a while, and the pool sees for itself whether it is there.
import { equals } from "@bufbuild/protobuf";
import { randomUUID } from "node:crypto";
import { InfoSchema, type Info } from "#gen/tandem/instance/v1/instance_pb.js";
import { RegistryService, type RegisterRequest } from "#gen/tandem/registry/v1/registry_pb.js";
import { type Clock, pause, systemClock } from "../common/clock.ts";
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

interface Entry {
  readonly info: Info;
  /** False once its call broke. */
  held: boolean;
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
  const { limit = INSTANCE_LIMIT, clock = systemClock } = o;
  /** By instance id. Each belongs to the newest call of its instance. */
  const entries = new Map<string, Entry>();
  const watchers = new Set<EntriesListener>();
  /** Aborted when the last watcher has left: nothing waits any more for an instance that may come back. */
  let unwatched = new AbortController();
  const all = (): Info[] => [...entries.values()].map(({ info }) => info);
  const tell = (): void => watchers.forEach((watcher) => watcher(all()));

  function remove(entry: Entry): void {
    if (entries.get(entry.info.instanceId) !== entry) return;
    entries.delete(entry.info.instanceId);
    tell();
  }

  async function* register(requests: AsyncIterable<RegisterRequest>): AsyncGenerator<{ routerId: string }> {
    let entry: Entry | undefined;
    let graceMs = o.graceMs ?? GRACE_MS;
    try {
      for await (const message of requests) {
        const info = checkInfo(message.info);
        const before = entries.get(info.instanceId);
        if (before === undefined) {
          // An instance that was killed and is back, at the address that its predecessor had.
          for (const [id, other] of entries)
            if (!other.held && other.info.grpcAddress === info.grpcAddress) entries.delete(id);
          if (entries.size >= limit)
            throw new ServiceError("instance_busy", `The registry holds ${limit} instances, which is its limit.`);
        }
        if (entry !== undefined && entry.info.instanceId !== info.instanceId) remove(entry);
        entry = { info, held: true };
        entries.set(info.instanceId, entry);
        if (before === undefined || !equals(InfoSchema, before.info, info)) tell();
        yield { routerId };
      }
      // The instance left in good order.
      graceMs = 0;
    } finally {
      const broken = entry;
      if (broken !== undefined) {
        broken.held = false;
        if (graceMs === 0 || watchers.size === 0) remove(broken);
        else void pause(clock, graceMs, unwatched.signal).then(() => remove(broken));
      }
    }
  }

  return {
    service: defineService(RegistryService, { register }, { access: "token" }),
    watch(onChange) {
      if (watchers.size === 0) unwatched = new AbortController();
      watchers.add(onChange);
      onChange(all());
      return {
        async [Symbol.asyncDispose]() {
          watchers.delete(onChange);
          if (watchers.size === 0) unwatched.abort();
        },
      };
    },
  };
}
