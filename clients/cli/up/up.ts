// `tandem up`: the whole system on one machine, as child processes of this one. This process handles no requests and
// imports very little: it starts the others, reports their state, restarts those that die, and stops all of them
// together.
import { randomBytes } from "node:crypto";
import { resolve } from "node:path";
import { splitAddress } from "../../../services/common/address.ts";
import { loadConfig, StartError } from "../../../services/common/config.ts";
import { anySignal, onceAborted, stopWithParent, untilSignal } from "../../../services/common/lifecycle.ts";
import { TANDEM_VERSION } from "../../../services/common/version.ts";
import { identityOf } from "../../../services/common/process-identity.ts";
import { stateDirOf } from "../../../services/common/state-dir.ts";
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

/**
 * After this long without being ready, `up` reports what is missing and keeps waiting: a model may take minutes to
 * load.
 */
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
  failed.catch(() => {}); // It may reject when no caller awaits it any more.
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
      // While all processes stop together, each warns that the others are gone. The log files keep these warnings.
      if (!stop.aborted || config.verbose) terminal.relay(name, line);
    },
    died(child, { how, aliveMs, restartInMs }, unprinted) {
      const lines = unprinted.map((line) => `\n    ${line}`).join("");
      if (!readiness.wasReady(child)) {
        fail(new StartError(`${child.name} could not start (${how}).${lines}`));
        return false;
      }
      const when = `after ${(aliveMs / 1000).toFixed(1)} s; restarting it in ${restartInMs / 1000} s.`;
      // A process killed by a signal logged nothing about its death: its last lines are those of its start.
      terminal.warn(`${child.name} died (${how}) ${when}${how.startsWith("SIG") ? "" : lines}`);
      return true;
    },
  });
  // If this process ends early (a second signal, a bug), the others end with it. After SIGKILL, their broken pipes end
  // them.
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
      // Serving continues, but other commands don't find this run.
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
    removeRun(runFile);
  }
  // Nothing is left to do; an open standard input (TANDEM_PARENT_PIPE) must not keep the process alive.
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

/**
 * How to write a secret in a shell. A secret that came from a variable is shown as that variable. Any other is only
 * shown on a terminal, because elsewhere it would stay in a log.
 */
function shownSecret(config: UpConfig, key: "token" | "api_key", value: string): { text: string; hidden: boolean } {
  const origin = originOf(config, key);
  if (origin.startsWith("env ")) return { text: `$${origin.slice("env ".length)}`, hidden: false };
  if (process.stdout.isTTY) return { text: value, hidden: false };
  return { text: `$TANDEM_${key.toUpperCase()}`, hidden: true };
}

/** Flags by which the commands in the banner find this deployment. */
function targetFlags(config: UpConfig, stateDir: string, name: string): string {
  const elsewhere = originOf(config, "state.dir").startsWith("flag ");
  return `${elsewhere ? ` --state.dir ${quoted(stateDir)}` : ""}${name === DEFAULT_NAME ? "" : ` --name ${name}`}`;
}

function originOf(config: UpConfig, key: string): string {
  return config.settings.all.find((setting) => setting.key === key)?.origin ?? "";
}
