// The deployment under test: two routers, prefill and decode instances with engines of their own, and a proxy on
// every link between them. Processes are started as a user starts them, and restarted when they end, as by an
// orchestrator. Instances register at the first router; the second has a static list of them.
import { randomBytes } from "node:crypto";
import { writeFileSync } from "node:fs";
import { extname, join } from "node:path";
import type { Instance } from "#gen/tandem/router/v1/router_pb.js";
import { freePort } from "../../services/common/ports.ts";
import { routerClient, type RouterClient } from "../client/rpc.ts";
import { createChildLog } from "../common/child-log.ts";
import { endWithin, startChild, TANDEM, type Child, type ChildSpec } from "../common/child.ts";
import { becomesTrue } from "./becomes-true.ts";
import type { ChaosConfig } from "./config.ts";
import { engineUnder, type EngineProcess } from "./engine.ts";
import { engineCommand, engineFlags, hasKvLink, MODEL, STAND_IN, type Fleet } from "./fleets.ts";
import { startProxy, type Proxy, type ProxyLink } from "./proxy.ts";

const HOST = "127.0.0.1";
/** Partners dial KV ports on this host, engines listen on 127.0.0.1, and the proxy is in between. */
const KV_PROXY_HOST = "127.0.0.2";
/** KV ports that one decode instance may use up: each start of its engine takes a fresh one. */
const KV_PORTS = 64;
const READY_LIMIT_MS = 60_000;
const RESTART_PAUSE_MS = 200;
const CLOCK_JUMP = new URL(`clock-jump${extname(import.meta.url)}`, import.meta.url).href;
const STOP_LIMIT_MS = 4_000;
/** More than any run writes, because the logs must show why a promise was broken. */
const LOG_LIMIT_BYTES = 4 * 1024 ** 3;
export interface RouterMember {
  readonly process: Child;
  readonly url: string;
  readonly grpcAddress: string;
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
  /** Only for decode, because prefill dials, and only where the address is ours to give. */
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
export async function startCluster(config: ChaosConfig, fleet: Fleet, folder: string) {
  const token = randomBytes(16).toString("hex");
  const env = {
    ...process.env,
    TANDEM_LOG_FORMAT: "json",
    TANDEM_TOKEN: token,
    TANDEM_STATE_DIR: folder,
    TMPDIR: folder,
    // Wrappers of engines jump in time when told to (clock-jump.ts).
    NODE_OPTIONS: `${process.env["NODE_OPTIONS"] ?? ""} --import=${CLOCK_JUMP}`.trim(),
  };
  const closing: (() => Promise<void>)[] = [];
  const children: Child[] = [];
  // Tandem's own processes end with this one; others don't.
  const killAll = (): void => children.forEach((child) => child.signal("SIGKILL"));
  process.once("exit", killAll);
  const close = async (): Promise<void> => {
    await Promise.all(closing.splice(0).map((end) => end()));
    process.off("exit", killAll);
  };
  const start = (
    name: string,
    role: Child["role"],
    argv: readonly string[],
    o: Pick<Partial<ChildSpec>, "env" | "command"> & { readonly started?: (child: Child) => void } = {},
  ): Child => {
    const log = createChildLog({ file: join(folder, `${name}.log`), limitBytes: LOG_LIMIT_BYTES });
    const spec = { ...o, name, role, argv, env: { ...env, ...o.env }, pauseMaxMs: RESTART_PAUSE_MS };
    const child: Child = startChild(
      spec,
      (stream, isError) => {
        // Called while the process is being started.
        setImmediate(() => o.started?.(child));
        log.read(stream, isError);
      },
      () => true,
    );
    children.push(child);
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
  const flags = [...engineFlags(fleet, config.decodeMs), ...config.engineFlags];

  /** An engine that runs by itself, restarted as by its operator, or as by the instance's restart command. */
  async function ownEngine(name: string, role: "prefill" | "decode", kvPort: number) {
    const httpPort = await freePort();
    const at = { tandem: TANDEM, httpPort, kvHost: HOST, kvPort };
    const { argv, env: own } = engineCommand(fleet, role, at, flags);
    const pidFile = join(folder, `${name}-engine.pid`);
    const child = start(`${name}-engine`, role, argv, {
      env: own,
      started: ({ pid }) => writeFileSync(pidFile, String(pid)),
    });
    const url = `http://${HOST}:${httpPort}`;
    const engine = (): EngineProcess | undefined => (child.pid === undefined ? undefined : { pid: child.pid, url });
    const kill = `process.kill(Number(process.getBuiltinModule("fs").readFileSync(${JSON.stringify(pidFile)})), "SIGKILL")`;
    const kvAddress = `${hasKvLink(fleet) && role === "decode" ? KV_PROXY_HOST : HOST}:${kvPort}`;
    return {
      engine,
      flags: [
        `--engine.attach=${url}`,
        ...(hasKvLink(fleet) ? [`--engine.kv_address=${kvAddress}`] : []),
        `--engine.restart_command=${process.execPath} -e '${kill}'`,
      ],
    };
  }

  function launchFlags(role: "prefill" | "decode", kvPort: number): string[] {
    return [
      `--engine.kind=${fleet.engine === "stand-in" ? "vllm" : fleet.engine}`,
      ...(fleet.engine === "embedded" ? [`--served_name=${MODEL}`] : [`--model=${MODEL}`]),
      ...(fleet.engine === "stand-in" ? [`--vllm.command=${[process.execPath, ...STAND_IN].join(" ")}`] : []),
      `--kv.listen=${HOST}:${kvPort}`,
      ...(role === "decode" && hasKvLink(fleet) ? [`--kv.advertise=${KV_PROXY_HOST}`] : []),
      ...flags.map((flag) => `--engine.flag=${flag}`),
    ];
  }

  /** An agent in dev mode: it has no disk, and forgets everything when it is killed. */
  async function startConsul(command: string): Promise<{ readonly process: Child; readonly flags: readonly string[] }> {
    const [http, ...ports] = await Promise.all(["http", "serf-lan", "serf-wan", "server"].map(() => freePort()));
    const [lan, wan, server] = ports.map(String);
    const process = start(
      "consul-1",
      "consul",
      [
        ...["agent", "-dev", "-node=chaos", `-bind=${HOST}`, `-client=${HOST}`, `-http-port=${http}`],
        ...[`-serf-lan-port=${lan}`, `-serf-wan-port=${wan}`, `-server-port=${server}`],
        ...["-grpc-port=-1", "-grpc-tls-port=-1", "-dns-port=-1"],
      ],
      { command },
    );
    return { process, flags: ["--registry.kind=consul", `--consul.address=${HOST}:${http}`] };
  }

  try {
    const consul = config.consul === undefined ? undefined : await startConsul(config.consul);
    const routerPorts: { rest: number; grpc: number }[] = [];
    while (routerPorts.length < config.routers) routerPorts.push({ rest: await freePort(), grpc: await freePort() });
    const instances: InstanceMember[] = [];
    // Distinct from other runs on this machine, and below the ports that `freePort` returns.
    let kvPort = 10_000 + (process.pid % 97) * 100;
    for (const role of ["prefill", "decode"] as const) {
      for (let index = 1; index <= config[role]; index++) {
        const name = `${role}-${index}`;
        const [listen, advertised] = [await freePort(), await freePort()];
        const grpcAddress = `${HOST}:${advertised}`;
        const rpcLink = await proxy([link(HOST, advertised, listen)]);
        const kvPorts = Array.from({ length: KV_PORTS }, (_, offset) => kvPort + offset);
        const isDialled = role === "decode" && hasKvLink(fleet);
        const kvLink = isDialled ? await proxy(kvPorts.map((port) => link(KV_PROXY_HOST, port, port))) : undefined;
        const own = fleet.attached ? await ownEngine(name, role, kvPort) : undefined;
        const started = start(name, role, [
          ...TANDEM,
          role,
          `--grpc.listen=${HOST}:${listen}`,
          `--grpc.advertise=${grpcAddress}`,
          ...(consul?.flags ?? [`--registry.address=${HOST}:${routerPorts[0]!.grpc}`]),
          `--connector=${fleet.connector}`,
          ...(own?.flags ?? launchFlags(role, kvPort)),
          ...config.instanceFlags,
        ]);
        kvPort += KV_PORTS;
        const engine = own?.engine ?? engineUnder(started);
        instances.push({ process: started, engine, role, grpcAddress, rpcLink, kvLink });
      }
    }
    const routers = routerPorts.map(({ rest, grpc }, index): RouterMember => {
      const url = `http://${HOST}:${rest}`;
      const grpcAddress = `${HOST}:${grpc}`;
      const started = start(`router-${index + 1}`, "router", [
        ...TANDEM,
        "router",
        `--rest.listen=${HOST}:${rest}`,
        `--grpc.listen=${grpcAddress}`,
        ...(consul?.flags ?? (index === 0 ? [] : instances.map((one) => `--instances=${one.grpcAddress}`))),
        ...config.routerFlags,
      ]);
      return { process: started, url, grpcAddress, control: routerClient(url, token) };
    });
    return {
      routers,
      instances,
      consul: consul?.process,
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
