// An engine of our own: started under a guardian, on ports that were never used before.
import { join } from "node:path";
import { splitAddress } from "../common/address.ts";
import { type Clock, systemClock } from "../common/clock.ts";
import { StartError } from "../common/config.ts";
import { spawnGuarded, type GuardedExit } from "../common/guardian.ts";
import { anySignal } from "../common/lifecycle.ts";
import type { Log } from "../common/log.ts";
import { usefulLines } from "../common/output-tail.ts";
import { claimPorts, startTurn, type Release } from "./claims.ts";
import type { EngineSource, Launch, ListenAddresses, StartedEngine } from "./engine.ts";
import { EngineHttp } from "./http.ts";
import { killLeftovers, recordEngine } from "./leftovers.ts";
import { untilReady, WrongEngine, type ReadinessCheck } from "./readiness.ts";
import { makeSocketFolder, removeSocketFolder } from "./socket-folder.ts";

/** Starts that may fail because another process took the port that was found free a moment ago. */
const PORT_TRIES = 4;

export interface SpawnedOptions extends ReadinessCheck {
  readonly launch: (addresses: ListenAddresses) => Launch | Promise<Launch>;
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
  readonly recordsFolder: string;
  readonly log: Log;
  /** Called with the engine's phase, each time that it changes, until the engine works. */
  readonly onPhase?: (phase: string) => void;
  /** Never shown, should the engine write it. */
  readonly secrets?: readonly string[];
  readonly clock?: Clock;
}

export function spawnedEngine(o: SpawnedOptions): EngineSource {
  const { kvHost, kvPortSpan: span = 1, recordsFolder, log, clock = systemClock } = o;
  const usedFolder = o.kvPortOnce === true ? join(recordsFolder, "..", "kv-ports") : undefined;
  let nextKvPort = o.kvPort;
  let swept = false;

  async function startOnce(signal: AbortSignal): Promise<StartedEngine> {
    const claimed = await claimPorts({ host: kvHost, from: nextKvPort, span, usedFolder, log });
    nextKvPort = claimed.first + span;
    let endTurn: Release | undefined;
    let folder: string | undefined;
    const cleanUp = (): void => {
      claimed.release();
      if (folder !== undefined) removeSocketFolder(folder);
    };
    try {
      const made = makeSocketFolder();
      folder = made.folder;
      const addresses: ListenAddresses = { socketPath: made.socketPath, kvHost, kvPort: claimed.first };
      const launch = await o.launch(addresses);
      const phases = createPhases(o, clock);
      const onWait = (): void => phases.begin("waiting for another engine to start on its device");
      endTurn = await startTurn(launch.devices ?? [], signal, onWait, clock);
      const started = await startIn(launch, addresses, phases, signal);
      void started.ended.then(cleanUp);
      return started;
    } catch (error) {
      cleanUp();
      throw error;
    } finally {
      endTurn?.();
    }
  }

  async function startIn(
    launch: Launch,
    addresses: ListenAddresses,
    phases: Phases,
    signal: AbortSignal,
  ): Promise<StartedEngine> {
    if (launch.firstPhase !== undefined) phases.begin(launch.firstPhase);
    let broken: string | undefined;
    let kill = (): void => {};
    const guarded = await spawnGuarded({
      ...launch,
      // The secrets of its wrapper are of no use to it.
      env: { TANDEM_TOKEN: undefined, TANDEM_API_KEY: undefined, ...launch.env },
      hide: o.secrets ?? [],
      onLine(line) {
        log.debug("engine says", { line });
        broken ??= launch.brokenBy?.(line);
        if (broken !== undefined) kill();
        const phase = launch.phaseOf?.(line);
        if (phase !== undefined) phases.begin(phase);
      },
    });
    kill = guarded.kill;
    if (broken !== undefined) kill();
    const { pid, group, exited, lastLines, stop } = guarded;
    void exited.then(recordEngine(recordsFolder, { pid, group, socketPath: addresses.socketPath }, log));
    const failed = (what: string): StartError => failure(what, (launch.reasonOf ?? usefulLines)(lastLines()));
    const http = new EngineHttp({ url: `unix:${addresses.socketPath}`, clock });
    const gone = new AbortController();
    void exited.then((exit) => gone.abort(exit));
    try {
      const ready = await untilReady(http, o, clock, anySignal(signal, gone.signal));
      const ownKvAddress = await ownKvAddressOf(launch, addresses);
      phases.end();
      const ended = exited.then((exit) =>
        broken === undefined
          ? failed(`the engine ${describe(exit)}`)
          : new StartError(`the engine was killed: ${broken}`),
      );
      const kvAddress = publishedOf(ownKvAddress);
      return { http, kvAddress, ownKvAddress, facts: { ...ready, ...launch.learned?.() }, ended, stop };
    } catch (error) {
      const hadGone = gone.signal.aborted;
      http.close(error as Error);
      kill();
      const exit = await exited;
      signal.throwIfAborted();
      if (hadGone) throw failed(`the engine ${describe(exit)} before it was ready`);
      const { message } = error as Error;
      throw failed(
        error instanceof WrongEngine
          ? `the engine started, but ${message}`
          : `the engine was not ready within ${o.startTimeoutMs} ms (${message})`,
      );
    }
  }

  /** The engine's own report, if it makes one. */
  async function ownKvAddressOf(launch: Launch, { kvPort }: ListenAddresses): Promise<string> {
    const given = `${kvHost}:${kvPort}`;
    if (!o.publishesKvAddress) return given;
    const reported = launch.toldKvAddress === undefined ? given : await launch.toldKvAddress();
    if (reported === undefined)
      log.warn("the engine did not ping; using the KV address that it was given", { kvAddress: given });
    else if (reported !== given)
      log.warn("the engine reports another KV address than it was given; using the reported one", { given, reported });
    return reported ?? given;
  }

  /** The KV address that partners dial. */
  function publishedOf(own: string): string {
    if (!o.publishesKvAddress) return "";
    return o.advertisedKvHost === undefined ? own : `${o.advertisedKvHost}:${splitAddress(own).port}`;
  }

  return {
    ours: true,
    async start(signal) {
      if (!swept) killLeftovers(recordsFolder, log);
      swept = true;
      for (let tries = 1; ; tries++) {
        try {
          return await startOnce(signal);
        } catch (error) {
          const portTaken = /EADDRINUSE|address already in use/i.test(error instanceof Error ? error.message : "");
          if (!portTaken || tries === PORT_TRIES || signal.aborted) throw error;
          log.info("a port was taken before the engine bound it; restarting the engine on other ports");
        }
      }
    },
  };
}

type Phases = ReturnType<typeof createPhases>;

/** Reports each phase as it begins and, once the engine works, how long each took, in one line. */
function createPhases({ onPhase, log }: SpawnedOptions, clock: Clock): { begin(name: string): void; end(): void } {
  const startMs = clock.nowMs();
  const tookMs = new Map<string, number>();
  let current: string | undefined;
  let sinceMs = startMs;
  const change = (name?: string): void => {
    const nowMs = clock.nowMs();
    if (current !== undefined) tookMs.set(current, (tookMs.get(current) ?? 0) + nowMs - sinceMs);
    // "loading weights (3 of 8 files)" and what follows it are one.
    current = name?.replace(/ \(.*\)$/, "");
    sinceMs = nowMs;
  };
  return {
    begin(name) {
      change(name);
      onPhase?.(name);
    },
    end() {
      if (current === undefined) return;
      change();
      const long = [...tookMs].filter(([, ms]) => ms >= 100);
      log.info("engine loaded", {
        seconds: Number(((sinceMs - startMs) / 1000).toFixed(1)),
        phases: long.map(([name, ms]) => `${name} ${(ms / 1000).toFixed(1)} s`).join(", "),
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
