// An engine of our own: started under a guardian, on ports that were never used before.
import { join } from "node:path";
import { splitAddress } from "../common/address.ts";
import { type Clock, pause, systemClock } from "../common/clock.ts";
import { StartError } from "../common/config.ts";
import type { Log } from "../common/log.ts";
import { freePort } from "../common/ports.ts";
import type { EngineKind, EngineSource, StartedEngine } from "./engine.ts";
import { spawnGuarded, type GuardedExit, type GuardedProcess } from "../common/guardian.ts";
import { createEngineHttp, type EngineHttp } from "./http.ts";
import { ENGINE_HOST } from "./engine-host.ts";
import type { Launch, LaunchPorts } from "./engine.ts";
import { killLeftovers, recordEngine } from "./leftovers.ts";
import { usefulLines } from "../common/output-tail.ts";
import { claimPortsFrom } from "./ports.ts";
import { checkReady, WrongEngine, type ReadinessCheck } from "./readiness.ts";
import { startTurn, type StartTurn } from "./start-turn.ts";
import { usedPorts } from "./used-ports.ts";
import type { EngineFacts } from "./engine.ts";

/** Starts that may fail because another process took the port that was found free a moment ago. */
const PORT_TRIES = 4;

export interface SpawnedOptions {
  readonly kind: EngineKind;
  readonly launch: (ports: LaunchPorts) => Launch | Promise<Launch>;
  readonly kvHost: string;
  /** First KV port to try. Every later start uses a higher one: partners may hold connections to the old. */
  readonly kvPort: number;
  /** KV ports in a row: one a rank. Default 1. */
  readonly kvPortSpan?: number;
  /** Whether a KV port must be another one also when the wrapper starts again: its partners never forget one. */
  readonly kvPortOnce?: boolean;
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
  /** Called with the engine's phase, each time that it changes, until the engine works. */
  readonly onPhase?: (phase: string) => void;
  /** Never shown, should the engine write it. */
  readonly secrets?: readonly string[];
  readonly clock?: Clock;
}

export function spawnedEngine(o: SpawnedOptions): EngineSource {
  const { clock = systemClock } = o;
  const span = o.kvPortSpan ?? 1;
  const used = o.kvPortOnce === true ? usedPorts(join(o.recordsFolder, "..", "kv-ports"), o.log) : undefined;
  let nextKvPort = o.kvPort;
  let swept = false;

  async function startOnce(signal: AbortSignal): Promise<StartedEngine> {
    const claimed = await claimPortsFrom(o.kvHost, nextKvPort, span, used);
    nextKvPort = claimed.first + span;
    let turn: StartTurn | undefined;
    try {
      const ports: LaunchPorts = { httpPort: await freePort(ENGINE_HOST), kvHost: o.kvHost, kvPort: claimed.first };
      const launch = await o.launch(ports);
      const phases = createPhases(o, clock);
      const onWait = (): void => phases.begin("waiting for another engine to start on its device");
      turn = await startTurn(launch.devices ?? [], signal, onWait, clock);
      const started = await startIn(launch, ports, phases, signal);
      void started.ended.then(claimed.release);
      return started;
    } catch (error) {
      claimed.release();
      throw error;
    } finally {
      turn?.end();
    }
  }

  async function startIn(
    launch: Launch,
    ports: LaunchPorts,
    phases: Phases,
    signal: AbortSignal,
  ): Promise<StartedEngine> {
    if (launch.firstPhase !== undefined) phases.begin(launch.firstPhase);
    let broken: string | undefined;
    let end = (): void => {};
    const guarded = await spawnGuarded({
      ...launch,
      hide: o.secrets ?? [],
      onLine(line) {
        o.log.debug("engine says", { line });
        broken ??= launch.brokenBy?.(line);
        if (broken !== undefined) end();
        const phase = launch.phaseOf?.(line);
        if (phase !== undefined) phases.begin(phase);
      },
    });
    end = guarded.kill;
    if (broken !== undefined) end();
    const forget = recordEngine(o.recordsFolder, guarded.pid, guarded.group, o.log);
    void guarded.exited.then(forget);
    const failed = (what: string): StartError => failure(what, (launch.reasonOf ?? usefulLines)(guarded.lastLines()));
    const http = createEngineHttp({ url: `http://${ENGINE_HOST}:${ports.httpPort}`, clock });
    try {
      const facts = { ...(await untilReady(http, guarded, failed, signal)), ...launch.learned?.() };
      const kvAddress = await kvAddressOf(launch, ports);
      phases.end();
      return {
        http,
        kvAddress,
        facts,
        ended: guarded.exited.then((exit) =>
          broken === undefined
            ? failed(`the engine ${describe(exit)}`)
            : new StartError(`the engine was killed: ${broken}`),
        ),
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

  /** The KV address that partners dial: the engine's own report, if it makes one. */
  async function kvAddressOf(launch: Launch, { kvHost, kvPort }: LaunchPorts): Promise<string> {
    if (!o.publishesKvAddress) return "";
    const given = `${kvHost}:${kvPort}`;
    const reported = await launch.toldKvAddress?.();
    if (reported === undefined && launch.toldKvAddress !== undefined)
      o.log.warn("the engine did not ping; using the KV address that it was given", { kvAddress: given });
    if (reported !== undefined && reported !== given)
      o.log.warn("the engine reports a different KV address than it was given; using the reported one", {
        given,
        reported,
      });
    if (o.advertisedKvHost !== undefined) return `${o.advertisedKvHost}:${splitAddress(reported ?? given).port}`;
    return reported ?? given;
  }

  async function untilReady(
    http: EngineHttp,
    guarded: GuardedProcess,
    failed: (what: string) => StartError,
    signal: AbortSignal,
  ): Promise<EngineFacts> {
    let exit: GuardedExit | undefined;
    void guarded.exited.then((how) => (exit = how));
    const check: ReadinessCheck = {
      kind: o.kind,
      model: o.model,
      servesUnpaired: o.servesUnpaired,
      timeoutMs: 5_000,
      completionTimeoutMs: 120_000,
    };
    const deadlineMs = clock.nowMs() + o.startTimeoutMs;
    for (let waitMs = 25; ; waitMs = Math.min(250, waitMs * 1.3)) {
      let last: unknown;
      try {
        return await checkReady(http, check);
      } catch (error) {
        last = error;
      }
      signal.throwIfAborted();
      if (exit !== undefined) throw failed(`the engine ${describe(exit)} before it was ready`);
      if (last instanceof WrongEngine) throw failed(`the engine started, but ${last.message}`);
      if (clock.nowMs() > deadlineMs) {
        throw failed(`the engine was not ready within ${o.startTimeoutMs} ms (${(last as Error).message})`);
      }
      await Promise.race([pause(clock, waitMs, signal), guarded.exited]);
    }
  }

  return {
    ours: true,
    async start(signal) {
      if (!swept) {
        swept = true;
        killLeftovers(o.recordsFolder, o.log);
      }
      for (let tries = 1; ; tries++) {
        try {
          return await startOnce(signal);
        } catch (error) {
          const portTaken = /EADDRINUSE|address already in use/i.test(error instanceof Error ? error.message : "");
          if (!portTaken || tries === PORT_TRIES || signal.aborted) throw error;
          o.log.info("a port was taken before the engine bound it; restarting the engine on other ports");
        }
      }
    },
  };
}

interface Phases {
  begin(name: string): void;
  /** The engine works. */
  end(): void;
}

/** Reports each phase as it begins and, once the engine works, how long each took, in one line. */
function createPhases(o: SpawnedOptions, clock: Clock): Phases {
  const startMs = clock.nowMs();
  const taken: string[] = [];
  let current: { readonly name: string; readonly sinceMs: number } | undefined;
  const close = (): void => {
    // "loading weights (3 of 8 files)" and what follows it are one.
    const name = current?.name.replace(/ \(.*\)$/, "");
    const seconds = current === undefined ? 0 : (clock.nowMs() - current.sinceMs) / 1000;
    if (name !== undefined && seconds >= 0.1) taken.push(`${name} ${seconds.toFixed(1)} s`);
  };
  return {
    begin(name) {
      close();
      current = { name, sinceMs: clock.nowMs() };
      o.onPhase?.(name);
    },
    end() {
      if (current === undefined) return;
      close();
      o.log.info("engine loaded", {
        seconds: Number(((clock.nowMs() - startMs) / 1000).toFixed(1)),
        phases: taken.join(", "),
      });
    },
  };
}

function describe(exit: GuardedExit): string {
  if (exit.signal !== undefined) return `was ended by signal ${exit.signal}`;
  return exit.code === undefined ? "is gone" : `exited with code ${exit.code}`;
}

function failure(what: string, lines: readonly string[]): StartError {
  return new StartError(
    lines.length === 0 ? `${what}; it wrote no output` : `${what}. Its last output:\n  ${lines.join("\n  ")}`,
  );
}
