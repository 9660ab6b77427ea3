// The Consul of `tandem up --consul`: an agent that runs already, or one in dev mode that lives as long as `up`.
import { homedir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { StartError } from "../../../services/common/config.ts";
import { spawnGuarded, type GuardedProcess } from "../../../services/common/guardian.ts";
import { findOnPath, isProgram } from "../../../services/common/programs.ts";
import { getText } from "../../common/get-text.ts";

export interface ConsulAgent {
  /** URL of the web UI. */
  readonly uiUrl: string;
  /** The agent if this process started it. */
  readonly own?: GuardedProcess;
  /** Resolves when the agent has a leader. Rejects with a StartError when our own agent ends before that. */
  readonly ready: Promise<void>;
}

type Env = Readonly<Record<string, string | undefined>>;

const USUAL_ADDRESS = "127.0.0.1:8500";
const LOOK_MS = 300;

/** The address of a running agent, if one answers at CONSUL_HTTP_ADDR or on Consul's usual port. */
export async function runningConsul(env: Env): Promise<string | undefined> {
  const address = addressOf(env);
  if (/^(https|unix):/.test(address) || /^(1|true)$/i.test(env["CONSUL_HTTP_SSL"] ?? "")) return undefined;
  return (await leaderAt(address)) === undefined ? undefined : address;
}

/** @throws StartError when no agent runs and none can be started */
export async function useConsul(env: Env): Promise<ConsulAgent> {
  const address = addressOf(env);
  const given = (env["CONSUL_HTTP_ADDR"] ?? "") !== "";
  // An agent behind TLS or a socket file is only reachable with the settings for it, which the processes that we start
  // have.
  if (/^(https|unix):/.test(address) || (await leaderAt(address)) !== undefined)
    return { uiUrl: uiOf(address), ready: Promise.resolve() };
  if (given)
    throw new StartError(
      `--consul: no Consul agent answers at CONSUL_HTTP_ADDR=${address}. Start it, or unset the variable to have one started.`,
    );
  const program = findProgram(env);
  if (program === undefined) {
    throw new StartError(
      `--consul: no Consul agent answers at ${USUAL_ADDRESS}, and \`consul\` is not on the PATH to start one. ` +
        "Get it from https://developer.hashicorp.com/consul/install, or give its path as CONSUL=/path/to/consul.",
    );
  }
  return start(program);
}

async function start(program: string): Promise<ConsulAgent> {
  const own = await spawnGuarded({ command: program, args: DEV_FLAGS, keepLines: 5 });
  let over = false;
  const ended = own.exited.then(() => (over = true));
  async function untilLeader(): Promise<void> {
    while (((await leaderAt(USUAL_ADDRESS)) ?? "") === "") {
      if (over) throw new StartError(`Consul could not start:\n    ${own.lastLines().join("\n    ")}`);
      await Promise.race([sleep(50), ended]);
    }
  }
  return { uiUrl: uiOf(USUAL_ADDRESS), own, ready: untilLeader() };
}

const DEV_FLAGS = [
  ..."agent -dev -node tandem -bind 127.0.0.1 -client 127.0.0.1 -log-level warn".split(" "),
  ..."-dns-port -1 -grpc-port -1 -grpc-tls-port -1".split(" "),
  // Each instance holds one or two connections, and all connections come from one address.
  "-hcl",
  "limits { http_max_conns_per_client = 2000 }",
];

function addressOf(env: Env): string {
  const given = env["CONSUL_HTTP_ADDR"] ?? "";
  return given === "" ? USUAL_ADDRESS : given;
}

function uiOf(address: string): string {
  if (address.startsWith("unix:")) return "";
  return `${/^https?:/.test(address) ? address : `http://${address}`}/ui/`;
}

/** Finds Consul on the PATH, or where Tandem's tests keep their copy. */
function findProgram(env: Env): string | undefined {
  const named = env["CONSUL"] ?? "";
  if (named !== "" && isProgram(named)) return named;
  const cached = join(env["XDG_CACHE_HOME"] ?? join(homedir(), ".cache"), "tandem/bin/consul");
  return findOnPath("consul", env) ?? (isProgram(cached) ? cached : undefined);
}

/** The leader by /v1/status/leader: "" while there is none; undefined if no Consul answers. */
async function leaderAt(address: string): Promise<string | undefined> {
  const url = `${address.startsWith("http://") ? address : `http://${address}`}/v1/status/leader`;
  const answer = await getText(url, AbortSignal.timeout(LOOK_MS)).catch(() => undefined);
  return answer?.status === 200 ? /^"([^"]*)"\s*$/.exec(answer.text)?.[1] : undefined;
}
