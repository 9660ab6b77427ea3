// An instance as a process: settings, signals, and the one line that says it is ready.
import { settingLines } from "../common/config.ts";
import { DRAINS, anySignal, mustEndWithin, onceAborted, stopWithParent, untilSignal } from "../common/lifecycle.ts";
import { createLog } from "../common/log.ts";
import { watchOpenFiles } from "../common/open-files.ts";
import { startWatchdog } from "../common/watchdog.ts";
import type { InstanceConfig, InstanceRole } from "./config.ts";
import type { RunningInstance, StartOptions } from "./instance.ts";

/** Resolves when the instance has stopped. */
export async function runInstance<C extends InstanceConfig>(
  role: InstanceRole,
  config: C,
  start: (config: C, o: StartOptions) => Promise<RunningInstance>,
): Promise<void> {
  const log = createLog({ name: role, level: config.process.logLevel });
  startWatchdog(`${role} instance`, config.process.memoryLimitMib);
  using _files = watchOpenFiles({ log });
  const signalled = untilSignal("SIGINT", "SIGTERM", "SIGHUP");
  const stop = anySignal(signalled, stopWithParent());
  log.info("settings", { settings: settingLines(config.settings.all) });
  let instance: RunningInstance;
  try {
    instance = await start(config, { stop, log });
  } catch (error) {
    if (stop.aborted) return;
    throw error;
  }
  const { model, engine, engineVersion, kvAddress, connector, slotLimit } = instance.info();
  const kv = kvAddress === "" ? connector : `${connector} at ${kvAddress}`;
  process.stdout.write(
    `${role} ready on ${instance.address}: ${model} on ${engine} ${engineVersion}, KV by ${kv}, ${slotLimit} slots\n`,
  );
  await onceAborted(stop);
  log.info("stopping", { because: String(stop.reason) });
  // The signals in DRAINS ask for a drain; any other signal means to stop at once.
  const graceMs = DRAINS.has(stop.reason) ? config.process.drainGraceMs : 0;
  mustEndWithin(graceMs, (found) => log.error("the instance did not stop in time; it exits", found));
  await instance.close(graceMs);
  log.info("stopped");
}
