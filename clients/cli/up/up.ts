// `tandem up`: the whole system on one machine, as child processes of this one. This process holds no request and
// imports next to nothing: it starts the others, says how they do, starts again what dies, and ends them together.
import { randomBytes } from "node:crypto";
import { extname } from "node:path";
import { fileURLToPath } from "node:url";
import { splitAddress } from "../../../services/common/address.ts";
import { loadConfig, settingsOf, StartError } from "../../../services/common/config.ts";
import { anySignal, onceAborted, stopWithParent, untilSignal } from "../../../services/common/lifecycle.ts";
import { restAsFlags } from "../../../services/common/words-after-dashes.ts";
import { TANDEM_VERSION } from "../../../services/common/version.ts";
import {
  defaultStateDir,
  processStart,
  removeRun,
  removeStaleRuns,
  runFilePath,
  writeRun,
  type Run,
} from "../run-file.ts";
import { banner } from "./banner.ts";
import type { Child, Death } from "./child.ts";
import { runningConsul, useConsul } from "./consul-agent.ts";
import { checkUpConfig, engineKind, isAttached, upConfig, type UpConfig } from "./config.ts";
import { startFleet, type Fleet } from "./fleet.ts";
import { makeLogFolder } from "./log-folder.ts";
import { listenPorts } from "./listen-ports.ts";
import { dialable, planChildren } from "./plan.ts";
import { createReadiness } from "./readiness.ts";
import { createTerminal } from "./terminal.ts";
import { watchInstances } from "./watch-instances.ts";

/** After so long without being ready, `up` says what is missing, and goes on waiting: a model may take minutes to load. */
const READY_LIMIT_MS = 60_000;

export async function runUp(argv: readonly string[]): Promise<void> {
  const config = loadConfig(upConfig, { argv: restAsFlags(argv, "engine.flag"), env: process.env });
  checkUpConfig(config);
  const stop = anySignal(untilSignal("SIGINT", "SIGTERM", "SIGHUP"), stopWithParent());
  const stateDir = config["state.dir"] ?? defaultStateDir();
  const ports = await listenPorts(config["rest.listen"], config["grpc.listen"], stateDir);
  const restUrl = `http://${dialable(ports.rest)}`;
  const grpcAddress = dialable(ports.grpc);
  const logDir = makeLogFolder(stateDir, splitAddress(ports.rest).port);
  const runFile = runFilePath(stateDir, splitAddress(ports.rest).port);
  removeStaleRuns(stateDir);
  const token = config.token === "" ? randomBytes(24).toString("base64url") : config.token;
  const terminal = createTerminal();
  const specs = planChildren({
    config,
    restListen: ports.rest,
    grpcListen: ports.grpc,
    token,
    self: [...process.execArgv, fileURLToPath(new URL(`../main${extname(import.meta.url)}`, import.meta.url))],
    env: process.env,
  });
  const consul = config.consul ? await useConsul(process.env) : undefined;
  terminal.say(`Tandem ${TANDEM_VERSION}: ${summary(config, specs)}`);

  let fail: (error: Error) => void = () => {};
  const failed = new Promise<never>((_, reject) => {
    fail = reject;
  });
  failed.catch(() => {}); // It may fail while nobody waits any more.
  consul?.ready.then(
    () => terminal.say(`  consul     ${consul.ours ? "ready" : "runs already"}  ${consul.uiUrl}`),
    (error: Error) => fail(error),
  );

  const readiness = createReadiness(() => fleet.children, {
    ready(child, instance) {
      const seconds = (performance.now() - child.startedMs) / 1000;
      const where =
        child.role === "router"
          ? restUrl
          : child.role === "discover"
            ? `pings at ${config.discover ?? ""}`
            : `gRPC ${instance?.info?.grpcAddress ?? ""}`;
      terminal.say(
        `  ${child.name.padEnd(10)} ready${child.restarts > 0 ? " again" : ""}  ${seconds.toFixed(2)} s  ${where}`,
      );
      recordRun();
    },
    allReady() {
      const model = specs.length < 2 ? "" : modelOf(fleet, (child) => readiness.instanceOf(child)?.info?.model);
      terminal.print(
        banner({
          restUrl,
          grpcAddress,
          model,
          tokenText: textOf(config, "token", token),
          apiKeyText: apiKeyText(config),
          logDir,
          consulUi: consul?.uiUrl,
          readyS: performance.now() / 1000,
        }),
      );
      if (consul === undefined) void mentionConsul(terminal);
    },
  });

  const fleet = startFleet({
    specs,
    logDir,
    verbose: config.verbose,
    colour: terminal.colour,
    print(name, line) {
      // Once all end together, each warns that the others are gone. The log files have that, should anybody want it.
      if (!stop.aborted || config.verbose) terminal.relay(name, line);
    },
    events: {
      died(child, death, restartInMs) {
        if (!readiness.wasReady(child)) {
          fail(new StartError(`${child.name} could not start (${death.how}).${tail(death)}`));
          return false;
        }
        const aliveS = (death.aliveMs / 1000).toFixed(1);
        // Whoever was killed by another had nothing to say of it: its last lines are those of its start.
        const words = death.how.startsWith("SIG") ? "" : tail(death);
        terminal.warn(
          `${child.name} died (${death.how}) after ${aliveS} s; it starts again in ${restartInMs / 1000} s.${words}`,
        );
        return true;
      },
    },
  });
  // Whatever ends this process early (a second signal, a bug), the others go with it. After SIGKILL their pipes do it.
  process.once("exit", () => {
    fleet.kill();
    consul?.kill();
    removeRun(runFile);
  });
  const recordRun = (): void => {
    const run: Run = {
      pid: process.pid,
      ...startOf(process.pid),
      startedUnixMs: Math.round(performance.timeOrigin),
      restUrl,
      grpcAddress,
      token,
      logDir,
      processes: fleet.children
        .filter((child) => child.pid !== undefined)
        .map((child) => ({ name: child.name, role: child.role, pid: child.pid! })),
    };
    try {
      writeRun(runFile, run);
    } catch (error) {
      // Serving goes on; only other commands don't find it.
      terminal.warn(
        `${runFile} can't be written, so \`tandem status\` won't find this run: ${(error as Error).message}`,
      );
    }
  };
  recordRun();

  const watching = new AbortController();
  void watchInstances({
    url: restUrl,
    token,
    onInstances: (instances) => readiness.seen(instances),
    stop: watching.signal,
  });
  const late = setInterval(() => {
    if (!readiness.allReady) terminal.warn(`Not ready yet:\n  ${readiness.missing().join("\n  ")}`);
  }, READY_LIMIT_MS);

  try {
    await Promise.race([onceAborted(stop), failed]);
    if (stop.reason === "SIGTERM") {
      terminal.say("Stopping: running answers finish first. A second signal ends them.");
      watching.abort();
      await fleet.drain(config["drain.grace_ms"]);
    }
  } finally {
    watching.abort();
    clearInterval(late);
    await fleet.stop();
    await consul?.stop();
    await fleet.closeLogs();
    removeRun(runFile);
  }
  // Nothing is left to do; standard input (TANDEM_PARENT_PIPE) must not hold the process.
  process.exit(0);
}

async function mentionConsul(terminal: ReturnType<typeof createTerminal>): Promise<void> {
  const address = await runningConsul(process.env);
  if (address !== undefined)
    terminal.say(`A Consul agent answers at ${address}. To register there: tandem up --consul`);
}

function summary(config: UpConfig, specs: readonly { readonly role: string }[]): string {
  const count = (role: string): number => specs.filter((spec) => spec.role === role).length;
  const kind = engineKind(config);
  if (config.discover !== undefined) return `router; vLLM engines that ping ${config.discover} are adopted`;
  const engines = isAttached(config)
    ? "attached vLLM servers"
    : kind === "vllm"
      ? `vLLM, ${config.model}`
      : kind === "sim"
        ? "simulated engines (no model: answers are canned prose)"
        : `embedded engines, ${config.model ?? "tandem-tiny (a small model that knows Tandem's documentation and little else)"}`;
  return `router, ${count("prefill")} prefill, ${count("decode")} decode; ${engines}`;
}

function modelOf(fleet: Fleet, model: (child: Child) => string | undefined): string {
  for (const child of fleet.children) {
    const name = model(child);
    if (name !== undefined) return name;
  }
  return "";
}

/** Its last words, as far as they are not on the terminal already. */
function tail(death: Death): string {
  return death.unprinted.map((line) => `\n    ${line}`).join("");
}

/** A secret that came from a variable is shown as that variable; a random one must be shown to be of use. */
function textOf(config: UpConfig, key: "token" | "api_key", value: string): string {
  const origin = settingsOf(config).find((setting) => setting.key === key)?.origin ?? "";
  return origin.startsWith("env ") ? `$${origin.slice("env ".length)}` : value;
}

function apiKeyText(config: UpConfig): string | undefined {
  return config.api_key === "" ? undefined : textOf(config, "api_key", config.api_key);
}

function startOf(pid: number): { pidStart?: string } {
  const pidStart = processStart(pid);
  return pidStart === undefined ? {} : { pidStart };
}
