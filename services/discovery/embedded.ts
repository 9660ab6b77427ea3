// The embedded registry: a call held open from each instance to the router. The call is the lease, so an instance whose
// process or connection is gone is out at once, without any clock.
import { create, equals } from "@bufbuild/protobuf";
import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { InfoSchema, type Info } from "#gen/tandem/instance/v1/instance_pb.js";
import { RegistryService, type RegisterRequest } from "#gen/tandem/registry/v1/registry_pb.js";
import { ServiceError } from "../common/errors.ts";
import { anySignal, backoffMs } from "../common/lifecycle.ts";
import type { Log } from "../common/log.ts";
import { dialRpc } from "../rpc/client.ts";
import { defineService, type RpcService } from "../rpc/service.ts";
import { createBell } from "./bell.ts";
import { checkInfo } from "./check-info.ts";
import type { Directory, EntriesListener, Registrar } from "./registry.ts";

const RETRY = { minMs: 50, maxMs: 2_000 };
/** Attempts in a row that may fail before anybody is told: where all start together, the router may be the last. */
const QUIET_ATTEMPTS = 5;

/** The instance's side. */
export function embeddedRegistry(o: { readonly address: string; readonly token?: string; readonly log: Log }): Registrar {
  return {
    name: "embedded",
    async register(self, stop) {
      const over = new AbortController();
      const ending = anySignal(over.signal, stop);
      const changed = createBell();
      const channel = dialRpc(o.address, o.token === undefined || o.token === "" ? {} : { token: o.token });
      const client = channel.client(RegistryService);

      async function* say(signal: AbortSignal): AsyncGenerator<{ info: Info }> {
        while (!signal.aborted) {
          const rung = changed.next(signal);
          yield { info: create(InfoSchema, self()) };
          await rung;
        }
      }

      async function keep(): Promise<void> {
        for (let attempt = 0, told = false; !ending.aborted; attempt++) {
          // A signal of this one call: what feeds it must end with it.
          const call = new AbortController();
          const signal = anySignal(call.signal, ending);
          try {
            for await (const held of client.register(say(signal), { signal })) {
              if (attempt > 0 || !told) o.log.info("registered", { registry: o.address, routerId: held.routerId });
              attempt = 0;
              told = true;
            }
            if (!ending.aborted) o.log.info("the registry closed the registration; registering again");
          } catch (error) {
            if (ending.aborted) break;
            if (attempt === QUIET_ATTEMPTS) o.log.warn("not registered; trying on", { registry: o.address, because: (error as Error).message });
          } finally {
            call.abort();
          }
          if (ending.aborted) break;
          await sleep(backoffMs(attempt, RETRY), undefined, { signal: ending }).catch(() => {});
        }
      }

      const kept = keep().catch((error: unknown) => o.log.error("registration ended", { error }));
      let closed: Promise<void> | undefined;
      return {
        update: () => changed.ring(),
        [Symbol.asyncDispose]() {
          over.abort();
          return (closed ??= kept.then(() => channel[Symbol.asyncDispose]()));
        },
      };
    },
  };
}

export interface RegistryHub extends Directory {
  readonly service: RpcService;
}

/** The router's side: serves RegistryService and knows who holds a call to it. */
export function registryHub(o: { readonly limit: number; readonly routerId?: string }): RegistryHub {
  const routerId = o.routerId ?? randomUUID();
  /** By instance id. The lease tells two calls of one instance apart: the newest counts. */
  const entries = new Map<string, { readonly info: Info; readonly lease: symbol }>();
  const watchers = new Set<EntriesListener>();
  const tell = (): void => {
    const all = [...entries.values()].map((entry) => entry.info);
    for (const watcher of watchers) watcher(all);
  };

  async function* register(requests: AsyncIterable<RegisterRequest>): AsyncGenerator<{ routerId: string }> {
    const lease = Symbol();
    let heldId: string | undefined;
    try {
      for await (const { info } of requests) {
        const checked = checkInfo(info);
        const before = entries.get(checked.instanceId);
        if (before === undefined && entries.size >= o.limit) {
          throw new ServiceError("instance_busy", `The registry holds ${o.limit} instances, which is its limit.`);
        }
        if (heldId !== undefined && heldId !== checked.instanceId && entries.get(heldId)?.lease === lease) entries.delete(heldId);
        heldId = checked.instanceId;
        entries.set(checked.instanceId, { info: checked, lease });
        if (before === undefined || !equals(InfoSchema, before.info, checked)) tell();
        yield { routerId };
      }
    } finally {
      if (heldId !== undefined && entries.get(heldId)?.lease === lease) {
        entries.delete(heldId);
        tell();
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
        },
      };
    },
  };
}
