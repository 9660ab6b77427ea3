// `tandem up`: the whole system on one machine, as child processes of this one. This process holds no request and
// imports next to nothing: it starts the others, says how they do, starts again what dies, and ends them together.
import { randomBytes } from "node:crypto";
import { resolve } from "node:path";
import { splitAddress } from "../../../services/common/address.ts";
import { loadConfig, StartError } from "../../../services/common/config.ts";
import { anySignal, onceAborted, stopWithParent, untilSignal } from "../../../services/common/lifecycle.ts";
import { TANDEM_VERSION } from "../../../services/common/version.ts";
import { identityOf } from "../../../services/common/process-identity.ts";
import { stateDirOf } from "../../../services/common/state-dir.ts";
import type { Death } from "../../common/child.ts";
import { liveRuns, removeRun, removeStaleRuns, runFilePath, writeRun, type Run } from "../run-file.ts";
import { banner, quoted } from "./banner.ts";
import { runningConsul, useConsul } from "./consul-agent.ts";
import { checkUpConfig, engineKind, DEFAULT_NAME, isAttached, nameOf, upConfig, type UpConfig } from "./config.ts";
import { startFleet } from "./fleet.ts";
import { makeLogFolder } from "./log-folder.ts";
import { listenPorts } from "./listen-ports.ts";
import { dialable, planChildren } from "./plan.ts";
import { createReadiness } from "./readiness.ts";
import { createTerminal } from "./terminal.ts";
import { watchInstances } from "./watch-instances.ts";

/** After so long without being ready, `up` says what is missing, and goes on waiting: a model may take minutes to load. */
const READY_LIMIT_MS = 60_000;

export async function runUp(argv: readonly string[]): Promise<void> {
  const config = loadConfig(upConfig, { argv, env: process.env });
  checkUpConfig(config);
  const stop = anySignal(untilSignal("SIGINT", "SIGTERM", "SIGHUP"), stopWithParent());
  const stateDir = resolve(stateDirOf(config.process));
  const ports = await listenPorts(config.restListen, config.grpcListen, stateDir);
  const name = nameOf(config, splitAddress(ports.rest).port);
  const restUrl = `http://${dialable(ports.rest)}`;
  const grpcAddress = dialable(ports.grpc);
  const runFile = runFilePath(stateDir, splitAddress(ports.rest).port);
  removeStaleRuns(stateDir);
  const namesake = liveRuns(stateDir).find((run) => run.name === name);
  if (namesake !== undefined)
    throw new StartError(
      `A deployment named ${name} runs here already, at ${namesake.restUrl} (pid ${namesake.pid}). Give this one another name with --name.`,
    );
  const logDir = makeLogFolder(stateDir, splitAddress(ports.rest).port);
  const token = config.access.token === "" ? randomBytes(24).toString("base64url") : config.access.token;
  const terminal = createTerminal();
  const specs = planChildren({
    config,
    restListen: ports.rest,
    grpcListen: ports.grpc,
    token,
    name,
    stateDir,
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
            ? `pings at ${config.attach.discover ?? ""}`
            : `gRPC ${instance?.info?.grpcAddress ?? ""}`;
      terminal.say(
        `  ${child.name.padEnd(10)} ready${child.restarts > 0 ? " again" : ""}  ${seconds.toFixed(2)} s  ${where}`,
      );
      recordRun();
    },
    allReady() {
      const shownToken = shownSecret(config, "token", token);
      const models = fleet.children.map((child) => readiness.instanceOf(child)?.info?.model ?? "");
      terminal.print(
        banner({
          restUrl,
          grpcAddress,
          model: models.find((model) => model !== "") ?? "",
          tokenText: shownToken.text,
          tokenFile: shownToken.hidden ? runFile : undefined,
          apiKeyText:
            config.access.apiKey === "" ? undefined : shownSecret(config, "api_key", config.access.apiKey).text,
          target: targetFlags(config, stateDir, name),
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
    logLimitBytes: config.process.logsLimitMib * 1024 * 1024,
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
      name,
      pid: process.pid,
      pidStart: identityOf(process.pid)?.startedAt ?? "",
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
      await fleet.drain(config.process.drainGraceMs);
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
  if (config.attach.discover !== undefined)
    return `router; vLLM engines that ping ${config.attach.discover} are adopted`;
  const engines = isAttached(config)
    ? "attached vLLM servers"
    : kind === "vllm"
      ? `vLLM, ${config.model}`
      : kind === "sim"
        ? "simulated engines (no model: answers are canned prose)"
        : `embedded engines, ${config.model ?? "tandem-tiny (a small model that knows Tandem's documentation and little else)"}`;
  return `router, ${count("prefill")} prefill, ${count("decode")} decode; ${engines}`;
}

/** Its last words, as far as they are not on the terminal already. */
function tail(death: Death): string {
  return death.unprinted.map((line) => `\n    ${line}`).join("");
}

/**
 * How to write a secret in a shell. One that came from a variable is that variable; any other is shown as it is on a
 * terminal alone, since elsewhere it would stay in a log.
 */
function shownSecret(config: UpConfig, key: "token" | "api_key", value: string): { text: string; hidden: boolean } {
  const origin = originOf(config, key);
  if (origin.startsWith("env ")) return { text: `$${origin.slice("env ".length)}`, hidden: false };
  if (process.stdout.isTTY) return { text: value, hidden: false };
  return { text: `$TANDEM_${key.toUpperCase()}`, hidden: true };
}

/** What the commands that the banner names must be given to find this deployment. */
function targetFlags(config: UpConfig, stateDir: string, name: string): string {
  const elsewhere = originOf(config, "state.dir").startsWith("flag ");
  return `${elsewhere ? ` --state.dir ${quoted(stateDir)}` : ""}${name === DEFAULT_NAME ? "" : ` --name ${name}`}`;
}

function originOf(config: UpConfig, key: string): string {
  return config.settings.all.find((setting) => setting.key === key)?.origin ?? "";
}
