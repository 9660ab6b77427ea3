// An engine that was started outside Tandem, and is not stopped by it.
import { type Clock, systemClock } from "../common/clock.ts";
import { StartError } from "../common/config.ts";
import type { Log } from "../common/log.ts";
import type { EngineSource } from "./engine.ts";
import { EngineHttp, socketPathOf } from "./http.ts";
import { listenerPid } from "./listener-pid.ts";
import { untilReady, WrongEngine, type ReadinessCheck } from "./readiness.ts";
import { runRestartCommand } from "./restart-command.ts";

export interface AttachedOptions extends ReadinessCheck {
  readonly url: string;
  readonly apiKey: string;
  /** host:port of its KV side channel, where the connector needs to know it. */
  readonly kvAddress: string;
  /** Restarts it. Empty: an operator has to. */
  readonly restartCommand: string;
  readonly log: Log;
  readonly clock?: Clock;
}

export function attachedEngine(o: AttachedOptions): EngineSource {
  const { url, kvAddress, restartCommand: command, log, clock = systemClock } = o;
  return {
    ours: false,
    process() {
      const pid = listenerPid(socketPathOf(url) ?? Number(new URL(url).port));
      return `the engine at ${url}${pid === undefined ? "" : ` (process ${pid})`}`;
    },
    ...(command !== "" && {
      restart: (why: string, signal: AbortSignal) => runRestartCommand({ command, url, log, clock }, why, signal),
    }),
    async start(signal) {
      const http = new EngineHttp({ url, apiKey: o.apiKey, clock });
      let logged = false;
      try {
        const facts = await untilReady(http, o, clock, signal, ({ message }) => {
          if (!logged) log.info("waiting for the engine", { url, because: message });
          logged = true;
        });
        const stop = async (): Promise<void> => http.close(new Error("detached"));
        return { http, kvAddress, facts, ended: new Promise(() => {}), stop };
      } catch (error) {
        http.close(error as Error);
        signal.throwIfAborted();
        const fault = error instanceof WrongEngine ? "can't be used" : "does not work";
        throw new StartError(`The engine at ${url} ${fault}: ${(error as Error).message}.`);
      }
    },
  };
}
