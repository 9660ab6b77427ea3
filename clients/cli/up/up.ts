// `tandem up`: the whole system on one machine, as child processes of this one. This process handles no requests and
// imports very little: it starts the others, reports their state, restarts those that die, and stops all of them
// together.
import { randomBytes } from "node:crypto";
import { join, resolve } from "node:path";
import { splitAddress } from "../../../services/common/address.ts";
import { loadConfig, StartError } from "../../../services/common/config.ts";
import {
  anySignal,
  mustEndWithin,
  onceAborted,
  stopWithParent,
  untilSignal,
} from "../../../services/common/lifecycle.ts";
import { identityOf } from "../../../services/common/process-identity.ts";
import { stateDirOf } from "../../../services/common/state-dir.ts";
import type { TlsSettings } from "../../../services/rpc/tls-settings.ts";
import { TANDEM_VERSION } from "../../../services/common/version.ts";
import type { ChildLogOptions } from "../../common/child-log.ts";
import type { ChildSpec } from "../../common/child.ts";
import { liveRuns, removeRun, removeStaleRuns, runFilePath, writeRun, type Run } from "../run-file.ts";
import { banner } from "./banner.ts";
import { checkUpConfig, engineKind, isAttached, nameOf, upConfig, type UpConfig } from "./config.ts";
import { runningConsul, useConsul } from "./consul-agent.ts";
import { startFleet } from "./fleet.ts";
import { listenPorts } from "./listen-ports.ts";
import { makeLogFolder } from "./log-folder.ts";
import { dialable, planChildren } from "./plan.ts";
import { createReadiness } from "./readiness.ts";
import { createTerminal } from "./terminal.ts";
import { watchInstances } from "./watch-instances.ts";

/**
 * After this long without being ready, `up` reports what is missing and keeps waiting: a model may take minutes to
 * load.
 */
const READY_LIMIT_MS = 60_000;
const CONSUL_STOP_MS = 1_000;

export async function runUp(argv: readonly string[]): Promise<void> {
  const config = loadConfig(upConfig, { argv, env: process.env });
  checkUpConfig(config);
  const stop = anySignal(untilSignal("SIGINT", "SIGTERM", "SIGHUP"), stopWithParent());
  const stateDir = resolve(stateDirOf(config.process));
  const ports = await listenPorts(config.restListen, config.grpcListen, stateDir);
  const { port } = splitAddress(ports.rest);
  const name = nameOf(config, port);
  removeStaleRuns(stateDir);
  const namesake = liveRuns(stateDir).find((one) => one.name === name);
  if (namesake !== undefined)
    throw new StartError(
      `A deployment named ${name} runs here already, at ${namesake.restUrl} (pid ${namesake.pid}). Give this one another name with --name.`,
    );
  const runFile = runFilePath(stateDir, port);
  const run: Omit<Run, "processes"> = {
    name,
    pid: process.pid,
    pidStart: identityOf(process.pid)?.startedAt ?? "",
    startedUnixMs: Math.round(performance.timeOrigin),
    restUrl: `${config.tls.cert !== "" && config.tls.rest ? "https" : "http"}://${dialable(ports.rest)}`,
    grpcAddress: dialable(ports.grpc),
    ...(config.tls.cert === "" ? {} : { tls: absolute(config.tls) }),
    token: config.access.token === "" ? randomBytes(24).toString("base64url") : config.access.token,
    logDir: makeLogFolder(stateDir, port),
  };
  const terminal = createTerminal();
  const specs = planChildren({ config, ports, token: run.token, name, stateDir, env: process.env });
  const consul = config.consul ? await useConsul(process.env) : undefined;
  terminal.say(`Tandem ${TANDEM_VERSION}: ${summary(config, specs)}`);

  const failed = new AbortController();
  consul?.ready.then(
    () => terminal.say(`  consul     ${consul.own === undefined ? "runs already" : "ready"}  ${consul.uiUrl}`),
    (error: Error) => failed.abort(error),
  );

  const readiness = createReadiness(() => fleet.children, {
    ready(child, instance) {
      const seconds = ((performance.now() - child.startedMs) / 1000).toFixed(2);
      const where =
        child.role === "router"
          ? run.restUrl
          : child.role === "discover"
            ? `pings at ${config.attach.discover ?? ""}`
            : `gRPC ${instance?.info?.grpcAddress ?? ""}`;
      terminal.say(`  ${child.name.padEnd(10)} ready${child.restarts > 0 ? " again" : ""}  ${seconds} s  ${where}`);
      recordRun();
    },
    allReady(instances) {
      const model = instances.map(({ info }) => info?.model ?? "").find((one) => one !== "") ?? "";
      terminal.say(banner({ config, run, runFile, stateDir, model, consulUi: consul?.uiUrl }));
      if (consul === undefined)
        void runningConsul(process.env).then((address) => {
          if (address === undefined) return;
          terminal.say(`A Consul agent answers at ${address}. To register there: tandem up --consul`);
        });
    },
  });

  const logOf = ({ name: from }: ChildSpec): ChildLogOptions => ({
    file: join(run.logDir, `${from}.log`),
    limitBytes: (config.process.logsLimitMib * 1024 * 1024) / specs.length,
    verbose: config.verbose,
    colour: terminal.colour,
    print(line) {
      // While all processes stop together, each warns that the others are gone. The log files keep these warnings.
      if (!stop.aborted || config.verbose) terminal.relay(from, line);
    },
  });
  const fleet = startFleet(specs, logOf, (child, { how, aliveMs, restartInMs }, unprinted) => {
    // A supervisor such as systemd signals all processes of the run at once.
    if (stop.aborted) return false;
    const lines = unprinted.map((line) => `\n    ${line}`).join("");
    if (!readiness.wasReady(child)) {
      failed.abort(new StartError(`${child.name} could not start (${how}).${lines}`));
      return false;
    }
    const when = `after ${(aliveMs / 1000).toFixed(1)} s; restarting it in ${restartInMs / 1000} s.`;
    // A process killed by a signal logged nothing about its death: its last lines are those of its start.
    terminal.warn(`${child.name} died (${how}) ${when}${how.startsWith("SIG") ? "" : lines}`);
    return true;
  });
  // If this process ends early (a second signal, a bug), the others end with it. After SIGKILL, their broken pipes end
  // them.
  process.once("exit", () => {
    fleet.kill();
    consul?.own?.kill();
    removeRun(runFile);
  });
  const recordRun = (): void => {
    const running = fleet.children.filter((child) => child.pid !== undefined);
    try {
      writeRun(runFile, { ...run, processes: running.map(({ name, role, pid }) => ({ name, role, pid: pid! })) });
    } catch (error) {
      // Serving continues, but other commands don't find this run.
      terminal.warn(
        `${runFile} can't be written, so \`tandem status\` won't find this run: ${(error as Error).message}`,
      );
    }
  };
  recordRun();

  const watching = new AbortController();
  void watchInstances(run, watching.signal, readiness.seen);
  const late = setInterval(() => {
    const missing = readiness.missing();
    if (missing.length > 0) terminal.warn(`Not ready yet:\n  ${missing.join("\n  ")}`);
  }, READY_LIMIT_MS);

  try {
    await Promise.race([onceAborted(stop), onceAborted(failed.signal)]);
    failed.signal.throwIfAborted();
    const drains = stop.reason === "SIGTERM";
    mustEndWithin(drains ? config.process.drainGraceMs : 0, ({ open }) =>
      terminal.warn(`Not everything stopped in time; what is left is killed. Open: ${JSON.stringify(open)}.`),
    );
    if (drains) {
      terminal.say("Stopping: running answers finish first. A second signal ends them.");
      watching.abort();
      await fleet.drain(config.process.drainGraceMs);
    }
  } finally {
    watching.abort();
    clearInterval(late);
    await fleet.stop();
    await consul?.own?.stop(CONSUL_STOP_MS);
    removeRun(runFile);
  }
  // Nothing is left to do; an open standard input (TANDEM_PARENT_PIPE) must not keep the process alive.
  process.exit(0);
}

/** Other commands run in other folders. */
function absolute({ cert, key, ca, peerIds }: TlsSettings): TlsSettings {
  return { cert: resolve(cert), key: resolve(key), ca: resolve(ca), peerIds };
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
