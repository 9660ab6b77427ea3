// A Consul of the tests' own: an agent in dev mode on free loopback ports, or a cluster of servers.
import { spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { consul } from "./tools.ts";
import { eventually, freePort } from "./waits.ts";

/** An agent takes a second or two to elect itself, and more where others use the machine. */
const START_MS = 30_000;

export interface ConsulPorts {
  readonly http: number;
  readonly serfLan: number;
  readonly serfWan: number;
  readonly server: number;
}

export interface TestConsul {
  /** host:port of the HTTP API. */
  readonly address: string;
  readonly ports: ConsulPorts;
  readonly pid: number;
  /** What Consul answers to a GET, as JSON; undefined for 404. */
  get(path: string, token?: string): Promise<any>;
  put(path: string, body?: unknown, token?: string): Promise<any>;
  /** Ends it: SIGKILL. */
  kill(): Promise<void>;
  output(): string;
  [Symbol.asyncDispose](): Promise<void>;
}

export interface ConsulStart {
  readonly ports?: ConsulPorts;
  /** More flags of `consul agent`. Without `-dev`, also `-data-dir` and so on. */
  readonly flags?: readonly string[];
  /** Contents of a configuration file. */
  readonly config?: object;
  readonly dev?: boolean;
  readonly node?: string;
  /** False: don't wait until it has a leader. */
  readonly ready?: boolean;
}

export async function freeConsulPorts(): Promise<ConsulPorts> {
  return { http: await freePort(), serfLan: await freePort(), serfWan: await freePort(), server: await freePort() };
}

/** @throws Error when there is no Consul: ask `consul()` of tools.ts before */
export async function startConsul(o: ConsulStart = {}): Promise<TestConsul> {
  const found = await consul();
  if ("missing" in found) throw new Error(found.missing);
  const ports = o.ports ?? (await freeConsulPorts());
  const folder = mkdtempSync(join(tmpdir(), "tandem-consul-"));
  const configFile = join(folder, "config.json");
  writeFileSync(configFile, JSON.stringify({ limits: { http_max_conns_per_client: 5_000 }, ...o.config }));
  // Ends with us, even when a test run is killed: its standard input is a pipe that we hold.
  const livesWithParent =
    'exec 3<&0; "$@" </dev/null & child=$!; { cat <&3 >/dev/null; kill -9 "$child"; } 2>/dev/null & echo "pid $child"; wait "$child"';
  const child: ChildProcess = spawn(
    "/bin/sh",
    [
      "-c",
      livesWithParent,
      "sh",
      found.path,
      "agent",
      ...(o.dev === false ? ["-data-dir", folder] : ["-dev"]),
      "-node",
      o.node ?? "test",
      "-bind",
      "127.0.0.1",
      "-client",
      "127.0.0.1",
      "-http-port",
      String(ports.http),
      "-serf-lan-port",
      String(ports.serfLan),
      "-serf-wan-port",
      String(ports.serfWan),
      "-server-port",
      String(ports.server),
      "-dns-port",
      "-1",
      "-grpc-port",
      "-1",
      "-grpc-tls-port",
      "-1",
      "-log-level",
      "warn",
      "-config-file",
      configFile,
      ...(o.flags ?? []),
    ],
    { stdio: ["pipe", "pipe", "pipe"], detached: true },
  );
  let output = "";
  let pid = 0;
  child.stdout!.once("data", (text: Buffer) => (pid = Number(/pid (\d+)/.exec(text.toString())![1])));
  for (const stream of [child.stdout!, child.stderr!])
    stream.on("data", (text: Buffer) => (output = (output + text.toString()).slice(-20_000)));
  const address = `127.0.0.1:${ports.http}`;
  const call = async (method: string, path: string, body: unknown, token: string): Promise<any> => {
    const answer = await fetch(`http://${address}${path}`, {
      method,
      headers: token === "" ? {} : { "x-consul-token": token },
      ...(body === undefined ? {} : { body: typeof body === "string" ? body : JSON.stringify(body) }),
    });
    const text = await answer.text();
    if (answer.status === 404) return undefined;
    if (!answer.ok) throw new Error(`${method} ${path}: ${answer.status} ${text}`);
    return text === "" ? undefined : JSON.parse(text);
  };
  const running: TestConsul = {
    address,
    ports,
    get pid() {
      return pid;
    },
    get: (path, token = "") => call("GET", path, undefined, token),
    put: (path, body, token = "") => call("PUT", path, body, token),
    async kill() {
      if (child.exitCode === null && child.signalCode === null) {
        const gone = once(child, "exit");
        process.kill(-child.pid!, "SIGKILL");
        await gone;
      }
      rmSync(folder, { recursive: true, force: true });
    },
    output: () => output,
    [Symbol.asyncDispose]: () => running.kill(),
  };
  try {
    await eventually(
      "Consul has a leader",
      async () => {
        if (child.exitCode !== null) throw new Error(`consul ended: ${output}`);
        return (
          o.ready === false ||
          (await fetch(`http://${address}/v1/status/leader`).then((answer) => answer.text())) !== '""'
        );
      },
      START_MS,
    );
  } catch (error) {
    await running.kill();
    throw new Error(`Consul did not start:\n${output}`, { cause: error });
  }
  return running;
}
