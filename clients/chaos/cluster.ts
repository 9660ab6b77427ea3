// The deployment under test: two routers, prefill and decode instances with engines of their own, and a proxy on
// every link between them. Processes are started as a user starts them, and restarted when they end, as by an
// orchestrator. Instances register at the first router; the second has a static list of them.
import { randomBytes } from "node:crypto";
import { join } from "node:path";
import type { Instance } from "#gen/tandem/router/v1/router_pb.js";
import { freePort } from "../../services/common/ports.ts";
import { routerClient, type RouterClient } from "../client/rpc.ts";
import { createChildLog } from "../common/child-log.ts";
import { endWithin, startChild, TANDEM, type Child } from "../common/child.ts";
import { becomesTrue } from "./becomes-true.ts";
import type { ChaosConfig } from "./config.ts";
import { engineUnder, type EngineProcess } from "./engine.ts";
import { startProxy, type Proxy, type ProxyLink } from "./proxy.ts";

const HOST = "127.0.0.1";
/** Partners dial KV ports on this host, engines listen on 127.0.0.1, and the proxy is in between. */
const KV_PROXY_HOST = "127.0.0.2";
/** KV ports that one decode instance may use up: each start of its engine takes a fresh one. */
const KV_PORTS = 64;
const READY_LIMIT_MS = 60_000;
const RESTART_PAUSE_MS = 200;
const STOP_LIMIT_MS = 4_000;
/** More than any run writes, because the logs must show why a promise was broken. */
const LOG_LIMIT_BYTES = 4 * 1024 ** 3;
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

export type Cluster = Awaited<ReturnType<typeof startCluster>>;

/** The instances that a router sees. Undefined if the router does not answer. */
export async function instancesSeen({ control }: RouterMember, timeoutMs = 1_000): Promise<Instance[] | undefined> {
  const answer = await control.listInstances({}, { timeoutMs }).catch(() => undefined);
  return answer?.instances;
}

/** One of the instances that a router sees. */
export function findSeen(seen: readonly Instance[] | undefined, { grpcAddress }: InstanceMember): Instance | undefined {
  return seen?.find(({ info }) => info?.grpcAddress === grpcAddress);
}

/** @param folder For the logs. */
export async function startCluster(config: ChaosConfig, engineFlags: readonly string[], folder: string) {
  const { engineKind, stallMs } = config;
  const token = randomBytes(16).toString("hex");
  const env = { ...process.env, TANDEM_LOG_FORMAT: "json", TANDEM_TOKEN: token };
  const closing: (() => Promise<void>)[] = [];
  const close = async (): Promise<void> => {
    await Promise.all(closing.splice(0).map((end) => end()));
  };
  const start = (name: string, role: Child["role"], flags: readonly string[]): Child => {
    const log = createChildLog({ file: join(folder, `${name}.log`), limitBytes: LOG_LIMIT_BYTES });
    const spec = { name, role, argv: [...TANDEM, role, ...flags], env, pauseMaxMs: RESTART_PAUSE_MS };
    const child = startChild(spec, log.read, () => true);
    closing.push(async () => {
      child.signal("SIGCONT");
      await endWithin([child], "SIGINT", STOP_LIMIT_MS);
      await log.close();
    });
    return child;
  };
  const proxy = async (links: readonly ProxyLink[]): Promise<Proxy> => {
    const started = await startProxy(links);
    closing.push(() => started.close());
    return started;
  };

  try {
    const routerPorts: { rest: number; grpc: number }[] = [];
    while (routerPorts.length < config.routers) routerPorts.push({ rest: await freePort(), grpc: await freePort() });
    const instances: InstanceMember[] = [];
    // Distinct from other runs on this machine, and below the ports that `freePort` returns.
    let kvPort = 10_000 + (process.pid % 97) * 100;
    for (const role of ["prefill", "decode"] as const) {
      for (let index = 1; index <= config[role]; index++) {
        const [listen, advertised] = [await freePort(), await freePort()];
        const grpcAddress = `${HOST}:${advertised}`;
        const rpcLink = await proxy([link(HOST, advertised, listen)]);
        const kvPorts = Array.from({ length: KV_PORTS }, (_, offset) => kvPort + offset);
        const kvLink =
          role === "decode" ? await proxy(kvPorts.map((port) => link(KV_PROXY_HOST, port, port))) : undefined;
        const started = start(`${role}-${index}`, role, [
          `--grpc.listen=${HOST}:${listen}`,
          `--grpc.advertise=${grpcAddress}`,
          `--registry.address=${HOST}:${routerPorts[0]!.grpc}`,
          `--engine.kind=${engineKind}`,
          `--kv.listen=${kvPort}`,
          // An instance sees all streams of its engine, and a router only one: the instance detects a stall sooner, and
          // its legs move elsewhere.
          `--stall_ms=${stallMs / 2}`,
          "--drain.grace_ms=10000",
          "--log.level=info",
          ...(role === "decode" ? [`--kv.advertise=${KV_PROXY_HOST}`] : []),
          ...engineFlags.map((flag) => `--engine.flag=${flag}`),
        ]);
        kvPort += KV_PORTS;
        instances.push({ process: started, engine: engineUnder(started), role, grpcAddress, rpcLink, kvLink });
      }
    }
    const routers = routerPorts.map(({ rest, grpc }, index): RouterMember => {
      const url = `http://${HOST}:${rest}`;
      const started = start(`router-${index + 1}`, "router", [
        `--rest.listen=${HOST}:${rest}`,
        `--grpc.listen=${HOST}:${grpc}`,
        `--stall_ms=${stallMs}`,
        "--drain.grace_ms=10000",
        ...(engineKind === "sim" ? PREFILL_LIMITS : []),
        ...(index === 0 ? [] : instances.map(({ grpcAddress }) => `--instances=${grpcAddress}`)),
      ]);
      return { process: started, url, control: routerClient(url, token) };
    });
    return {
      routers,
      instances,
      /** Resolves when both routers give legs to every instance. */
      async ready(limitMs = READY_LIMIT_MS): Promise<void> {
        for (const router of routers) {
          let seen: readonly Instance[] = [];
          let eligible = 0;
          const complete = await becomesTrue(limitMs, 50, async () => {
            seen = (await instancesSeen(router)) ?? [];
            eligible = seen.filter((instance) => instance.eligible).length;
            return eligible === instances.length;
          });
          if (complete) continue;
          const why = seen.map(({ info, reason }) => `${info?.grpcAddress} ${reason}`).join("; ");
          throw new Error(
            `${router.process.name} sees ${eligible} of ${instances.length} instances (${why}); logs are in ${folder}`,
          );
        }
      },
      [Symbol.asyncDispose]: close,
    };
  } catch (error) {
    await close();
    throw error;
  }
}

function link(host: string, port: number, targetPort: number): ProxyLink {
  return { listen: { host, port }, target: { host: HOST, port: targetPort } };
}
