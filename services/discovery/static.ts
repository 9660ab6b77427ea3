// A fixed list of addresses instead of a registry: each is asked for its identity repeatedly, because its answer
// changes when its engine or its process is restarted.
import { equals } from "@bufbuild/protobuf";
import { InfoSchema, InstanceService, type Info } from "#gen/tandem/instance/v1/instance_pb.js";
import { type Clock, pause, systemClock } from "../common/clock.ts";
import { background } from "../common/lifecycle.ts";
import type { Log } from "../common/log.ts";
import { dialRpc } from "../rpc/channel.ts";
import { peerFault, type PeerFault } from "../rpc/peer-fault.ts";
import type { Tls } from "../rpc/tls.ts";
import type { Directory } from "./registry.ts";

const ASK_EVERY_MS = 1_000;

/** An instance that stops answering stays listed as it was last known: the pool sees for itself that it is silent. */
export function staticRegistry(
  addresses: readonly string[],
  o: { readonly token?: string; readonly tls?: Tls | undefined; readonly log: Log; readonly clock?: Clock },
): Directory {
  const { clock = systemClock } = o;
  return {
    watch(onChange) {
      const known = new Map<string, Info>();

      async function ask(address: string, over: AbortSignal): Promise<void> {
        let channel = dialRpc(address, { token: o.token, tls: o.tls });
        let logged: PeerFault["kind"] | undefined;
        while (!over.aborted) {
          try {
            const client = channel.client(InstanceService);
            const { info } = await client.getInfo({}, { timeoutMs: 2_000, signal: over });
            if (logged !== undefined) o.log.info("a listed instance answers again", { address });
            logged = undefined;
            // An engine that is still loading has no model yet: nothing that could be used.
            if (info !== undefined && info.instanceId !== "" && info.model !== "") learn(address, info);
          } catch (error) {
            if (over.aborted) break;
            const { kind: fault, text: because } = peerFault(error);
            if (fault !== logged) o.log.warn("a listed instance can't be used", { address, fault, because });
            logged = fault;
            // Its connection may be dead without any other sign.
            await channel[Symbol.asyncDispose]();
            channel = dialRpc(address, { token: o.token, tls: o.tls });
          }
          await pause(clock, ASK_EVERY_MS, over);
        }
        await channel[Symbol.asyncDispose]();
      }

      function learn(address: string, info: Info): void {
        const before = known.get(address);
        if (before !== undefined && equals(InfoSchema, before, info)) return;
        known.set(address, info);
        onChange([...known.values()]);
      }

      onChange([]);
      return background((over) => Promise.allSettled(addresses.map((address) => ask(address, over))));
    },
  };
}
