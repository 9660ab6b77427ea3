// The deployment under test: two routers, prefill and decode instances with engines of their own, and a proxy on
// every link between them. Instances register at the first router; the second has a static list of them.
import { randomBytes } from "node:crypto";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { routerClient, type RouterClient } from "../client/router.ts";
import { freePort } from "../../services/common/ports.ts";
import { startProxy, type Proxy } from "./proxy.ts";
import type { Child } from "../common/child.ts";
import { engineUnder, supervise, type EngineProcess } from "./process.ts";
import type { FleetShape } from "./schedule.ts";

/** Partners dial KV ports on this host, engines listen on 127.0.0.1, and the proxy is in between. */
const KV_PROXY_HOST = "127.0.0.2";
/** KV ports that one decode instance may use up: each start of its engine takes a fresh one. */
const KV_PORTS = 64;
const READY_LIMIT_MS = 60_000;
/**
 * Prefill limits of the routers, for an engine whose pace is known. With the defaults, made for GPUs that compile at
 * their first request, a leg waits until the instance finds its engine stalled, which takes longer for longer prompts.
 */
const PREFILL_LIMITS = ["--prefill.floor_ms=1000", "--prefill.slack=4"];

export interface RouterMember {
  readonly process: Child;
  readonly url: string;
  readonly control: RouterClient;
}

export interface InstanceMember {
  readonly process: Child;
  /** Undefined while no engine runs. */
  engine(): EngineProcess | undefined;
  readonly role: "prefill" | "decode";
  /** Address that callers dial. */
  readonly grpcAddress: string;
  readonly rpcLink: Proxy;
  /** Only for decode, because prefill dials. */
  readonly kvLink: Proxy | undefined;
}

export interface Cluster {
  readonly routers: readonly RouterMember[];
  readonly instances: readonly InstanceMember[];
  /** Resolves when both routers give legs to every instance. */
  ready(limitMs?: number): Promise<void>;
  close(): Promise<void>;
}

export interface ClusterOptions {
  readonly fleet: FleetShape;
  readonly engine: "sim" | "embedded";
  readonly engineFlags: readonly string[];
  readonly stallMs: number;
  readonly folder: string;
}

export async function startCluster(o: ClusterOptions): Promise<Cluster> {
  const token = randomBytes(16).toString("hex");
  const env = { TANDEM_TOKEN: token };
  const closing: (() => Promise<void>)[] = [];
  const close = async (): Promise<void> => {
    await Promise.all(closing.splice(0).map((end) => end()));
  };
  const start = (name: string, role: Child["role"], flags: readonly string[]): Child => {
    const { child, stop } = supervise({ name, role, flags, env, logFile: join(o.folder, `${name}.log`) });
    closing.push(stop);
    return child;
  };
  const proxy = async (links: Parameters<typeof startProxy>[0]): Promise<Proxy> => {
    const started = await startProxy(links);
    closing.push(() => started.close());
    return started;
  };

  try {
    const routerPorts: { rest: number; grpc: number }[] = [];
    while (routerPorts.length < o.fleet.routers) routerPorts.push({ rest: await freePort(), grpc: await freePort() });
    const instances: InstanceMember[] = [];
    // Distinct from other runs on this machine, and below the ports that `freePort` returns.
    let kvPort = 10_000 + (process.pid % 97) * 100;
    for (const role of ["prefill", "decode"] as const) {
      for (let index = 1; index <= o.fleet[role]; index++) {
        const [listen, advertised] = [await freePort(), await freePort()];
        const host = "127.0.0.1";
        const rpcLink = await proxy([{ listen: { host, port: advertised }, target: { host, port: listen } }]);
        const kvPorts = Array.from({ length: KV_PORTS }, (_, offset) => kvPort + offset);
        const kvLink =
          role === "prefill"
            ? undefined
            : await proxy(kvPorts.map((port) => ({ listen: { host: KV_PROXY_HOST, port }, target: { host, port } })));
        const process = start(`${role}-${index}`, role, [
          `--grpc.listen=${host}:${listen}`,
          `--grpc.advertise=${host}:${advertised}`,
          `--registry.address=${host}:${routerPorts[0]!.grpc}`,
          `--engine.kind=${o.engine}`,
          `--kv.listen=${kvPort}`,
          // An instance sees all streams of its engine, and a router only one: the instance detects a stall sooner, and
          // its legs move elsewhere.
          `--stall_ms=${o.stallMs / 2}`,
          "--drain.grace_ms=10000",
          "--log.level=info",
          ...(role === "decode" ? [`--kv.advertise=${KV_PROXY_HOST}`] : []),
          ...o.engineFlags.map((flag) => `--engine.flag=${flag}`),
        ]);
        kvPort += KV_PORTS;
        instances.push({
          process,
          engine: engineUnder(process),
          role,
          grpcAddress: `${host}:${advertised}`,
          rpcLink,
          kvLink,
        });
      }
    }
    const routers = routerPorts.map(({ rest, grpc }, index): RouterMember => {
      const flags = [
        `--rest.listen=127.0.0.1:${rest}`,
        `--grpc.listen=127.0.0.1:${grpc}`,
        `--stall_ms=${o.stallMs}`,
        "--drain.grace_ms=10000",
        ...(o.engine === "sim" ? PREFILL_LIMITS : []),
        ...(index === 0 ? [] : instances.map(({ grpcAddress }) => `--instances=${grpcAddress}`)),
      ];
      const url = `http://127.0.0.1:${rest}`;
      return {
        process: start(`router-${index + 1}`, "router", flags),
        url,
        control: routerClient(url, token),
      };
    });
    return {
      routers,
      instances,
      async ready(limitMs = READY_LIMIT_MS) {
        const endMs = performance.now() + limitMs;
        for (const router of routers) {
          for (;;) {
            const seen = await router.control.listInstances({}, { timeoutMs: 1_000 }).catch(() => undefined);
            const eligible = seen?.instances.filter((instance) => instance.eligible).length ?? 0;
            if (eligible === instances.length) break;
            if (performance.now() > endMs) {
              const why = seen?.instances.map(({ info, reason }) => `${info?.grpcAddress} ${reason}`).join("; ");
              throw new Error(
                `${router.process.name} sees ${eligible} of ${instances.length} instances (${why}); logs are in ${o.folder}`,
              );
            }
            await sleep(50);
          }
        }
      },
      close,
    };
  } catch (error) {
    await close();
    throw error;
  }
}
