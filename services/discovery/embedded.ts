// The embedded registry: a call held open from each instance to the router. An instance that ends it in good order is
// out at once. A call that breaks says little of the instance, whose other connections may be sound and full of
// answers: its entry stays, and lapses after a while. A lapsed entry only counts against an instance that the pool
// doesn't hear either, because this registry runs in the router, and a router that is busy or paused misses calls.
import { equals } from "@bufbuild/protobuf";
import { randomUUID } from "node:crypto";
import { InfoSchema, type Info } from "#gen/tandem/instance/v1/instance_pb.js";
import { RegistryService, type RegisterRequest } from "#gen/tandem/registry/v1/registry_pb.js";
import { type Clock, pause, systemClock } from "../common/clock.ts";
import { ServiceError } from "../common/errors.ts";
import { PUNCTUAL_MS } from "../common/event-loop.ts";
import type { Log } from "../common/log.ts";
import { dialRpc } from "../rpc/channel.ts";
import { lossFault, peerFault, type PeerFault } from "../rpc/peer-fault.ts";
import { defineService, type RpcService } from "../rpc/service.ts";
import type { Tls } from "../rpc/tls.ts";
import { checkInfo } from "./check-info.ts";
import type { Directory, EntriesListener, Objection, Registration } from "./registry.ts";

const INSTANCE_LIMIT = 1_024;
/** When an entry without a call lapses: the longest pause before the next try, and time to make it. */
const GRACE_MS = 5_000;
/** Attempts that may fail to reach the router before it is logged: when all start together, the router may be the last. */
const QUIET_ATTEMPTS = 5;

/** The instance's side. */
export function registerAtRouter(
  self: () => Info,
  o: {
    readonly address: string;
    readonly token?: string;
    readonly tls?: Tls | undefined;
    readonly log: Log;
    readonly clock?: Clock;
  },
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
  /** `waiting`: its call broke a moment ago. `lapsed`: no new one came. */
  state: "held" | "waiting" | "lapsed";
}

const LAPSED: Objection = { kind: "lapsed", reason: "Its call to this router's registry broke, and no new one came." };

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
  const listTo = (watcher: EntriesListener): void => {
    const all = [...entries.values()];
    const lapsed = all.filter(({ state }) => state === "lapsed").map(({ info }) => [info.instanceId, LAPSED] as const);
    watcher(
      all.map(({ info }) => info),
      new Map(lapsed),
    );
  };
  const tell = (): void => watchers.forEach(listTo);

  function remove(entry: Entry): void {
    if (entries.get(entry.info.instanceId) !== entry) return;
    entries.delete(entry.info.instanceId);
    tell();
  }

  /** Makes room for one more entry. Returns false if all are held. */
  function hasRoom(): boolean {
    if (entries.size < limit) return true;
    for (const [id, { state }] of entries) if (state === "lapsed") return entries.delete(id);
    return false;
  }

  /** Waits in time that this router had: its own pause kept it from the new call too. */
  async function lapse(entry: Entry, graceMs: number): Promise<void> {
    for (let leftMs = graceMs; leftMs >= PUNCTUAL_MS; ) {
      const untilMs = clock.nowMs() + leftMs;
      await pause(clock, leftMs, unwatched.signal);
      if (unwatched.signal.aborted) return remove(entry);
      leftMs = clock.nowMs() - untilMs;
    }
    if (entries.get(entry.info.instanceId) !== entry) return; // It is back.
    entry.state = "lapsed";
    tell();
  }

  async function* register(requests: AsyncIterable<RegisterRequest>): AsyncGenerator<{ routerId: string }> {
    let entry: Entry | undefined;
    let left = false;
    try {
      for await (const message of requests) {
        const info = checkInfo(message.info);
        const before = entries.get(info.instanceId);
        if (before === undefined) {
          // An instance that was killed and is back, at the address that its predecessor had.
          for (const [id, other] of entries)
            if (other.state !== "held" && other.info.grpcAddress === info.grpcAddress) entries.delete(id);
          if (!hasRoom())
            throw new ServiceError("instance_busy", `The registry holds ${limit} instances, which is its limit.`);
        }
        if (entry !== undefined && entry.info.instanceId !== info.instanceId) remove(entry);
        entry = { info, state: "held" };
        entries.set(info.instanceId, entry);
        if (before === undefined || before.state === "lapsed" || !equals(InfoSchema, before.info, info)) tell();
        yield { routerId };
      }
      // The instance left in good order.
      left = true;
    } finally {
      if (entry !== undefined) {
        entry.state = "waiting";
        if (left || watchers.size === 0) remove(entry);
        else if (entries.get(entry.info.instanceId) === entry) void lapse(entry, o.graceMs ?? GRACE_MS);
      }
    }
  }

  return {
    service: defineService(RegistryService, { register }, { access: "token" }),
    watch(onChange) {
      if (watchers.size === 0) unwatched = new AbortController();
      watchers.add(onChange);
      listTo(onChange);
      return {
        async [Symbol.asyncDispose]() {
          watchers.delete(onChange);
          if (watchers.size === 0) unwatched.abort();
        },
      };
    },
  };
}
