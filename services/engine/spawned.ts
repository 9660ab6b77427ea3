// An engine of our own: started under a guardian, on ports that nobody has used.
import { setTimeout as sleep } from "node:timers/promises";
import { StartError } from "../common/config.ts";
import type { Log } from "../common/log.ts";
import type { EngineKind, EngineSource, StartedEngine } from "./engine.ts";
import { spawnGuarded, type EngineExit, type GuardedCommand, type GuardedProcess } from "./guardian.ts";
import { createEngineHttp, type EngineHttp } from "./http.ts";
import { ENGINE_HOST, type LaunchPorts } from "./launch.ts";
import { killLeftovers, recordEngine } from "./leftovers.ts";
import { usefulLines } from "./output-tail.ts";
import { freePort, freePortFrom } from "./ports.ts";
import { checkReady, WrongEngine, type ReadinessCheck } from "./readiness.ts";
import type { EngineFacts } from "./engine.ts";

/** Starts that may fail because another process took the port that was found free a moment ago. */
const PORT_TRIES = 4;

export interface SpawnedOptions {
  readonly kind: EngineKind;
  readonly launch: (ports: LaunchPorts) => GuardedCommand;
  readonly kvHost: string;
  /** First KV port to try. Every later start uses a higher one: partners may hold connections to the old. */
  readonly kvPort: number;
  /** Whether its partners dial the address of its KV side channel. */
  readonly publishesKvAddress: boolean;
  /** Host under which they dial it, where that is not `kvHost`. */
  readonly advertisedKvHost?: string | undefined;
  readonly model: string;
  readonly servesUnpaired: boolean;
  /** From the spawn until it works. */
  readonly startTimeoutMs: number;
  readonly recordsFolder: string;
  readonly log: Log;
}

export function spawnedEngine(o: SpawnedOptions): EngineSource {
  let nextKvPort = o.kvPort;
  let swept = false;

  async function startOnce(signal: AbortSignal): Promise<StartedEngine> {
    const ports: LaunchPorts = {
      httpPort: await freePort(ENGINE_HOST),
      kvHost: o.kvHost,
      kvPort: await freePortFrom(o.kvHost, nextKvPort),
    };
    nextKvPort = ports.kvPort + 1;
    const guarded = await spawnGuarded({
      ...o.launch(ports),
      onLine: (line) => o.log.debug("engine says", { line }),
    });
    const forget = await recordEngine(o.recordsFolder, guarded.pid, guarded.group, o.log);
    void guarded.exited.then(forget);
    const http = createEngineHttp({ url: `http://${ENGINE_HOST}:${ports.httpPort}` });
    try {
      const facts = await untilReady(http, guarded, signal);
      return {
        http,
        kvAddress: o.publishesKvAddress ? `${o.advertisedKvHost ?? ports.kvHost}:${ports.kvPort}` : "",
        facts,
        ended: guarded.exited.then((exit) => failed(`the engine ${describe(exit)}`, guarded)),
        kill: guarded.kill,
        stop: guarded.stop,
      };
    } catch (error) {
      http.close(error as Error);
      guarded.kill();
      await guarded.exited;
      throw error;
    }
  }

  async function untilReady(http: EngineHttp, guarded: GuardedProcess, signal: AbortSignal): Promise<EngineFacts> {
    let exit: EngineExit | undefined;
    void guarded.exited.then((how) => (exit = how));
    const check: ReadinessCheck = {
      kind: o.kind,
      model: o.model,
      servesUnpaired: o.servesUnpaired,
      timeoutMs: 5_000,
      completionTimeoutMs: 120_000,
    };
    const deadlineMs = performance.now() + o.startTimeoutMs;
    for (let waitMs = 25; ; waitMs = Math.min(250, waitMs * 1.3)) {
      let last: unknown;
      try {
        return await checkReady(http, check);
      } catch (error) {
        last = error;
      }
      signal.throwIfAborted();
      if (exit !== undefined) throw failed(`the engine ${describe(exit)} before it was ready`, guarded);
      if (last instanceof WrongEngine) throw failed(`the engine started, but ${last.message}`, guarded);
      if (performance.now() > deadlineMs) {
        throw failed(`the engine was not ready within ${o.startTimeoutMs} ms (${(last as Error).message})`, guarded);
      }
      await Promise.race([sleep(waitMs, undefined, { signal }).catch(() => {}), guarded.exited]);
    }
  }

  return {
    ours: true,
    async start(signal) {
      if (!swept) {
        swept = true;
        await killLeftovers(o.recordsFolder, o.log);
      }
      for (let tries = 1; ; tries++) {
        try {
          return await startOnce(signal);
        } catch (error) {
          const portTaken = /EADDRINUSE|address already in use/i.test(error instanceof Error ? error.message : "");
          if (!portTaken || tries === PORT_TRIES || signal.aborted) throw error;
          o.log.info("a port was taken before the engine bound it; starting it again on others");
        }
      }
    },
  };
}

function describe(exit: EngineExit): string {
  if (exit.signal !== undefined) return `was ended by signal ${exit.signal}`;
  return exit.code === undefined ? "is gone" : `exited with code ${exit.code}`;
}

function failed(what: string, guarded: GuardedProcess): StartError {
  const lines = usefulLines(guarded.lastLines());
  return new StartError(lines.length === 0 ? `${what}; it wrote nothing` : `${what}. Its last words:\n  ${lines.join("\n  ")}`);
}
