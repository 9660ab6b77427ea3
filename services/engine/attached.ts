// An engine that was started outside Tandem, and is not stopped by it.
import { type Clock, systemClock } from "../common/clock.ts";
import { StartError } from "../common/config.ts";
import type { Log } from "../common/log.ts";
import type { EngineSource } from "./engine.ts";
import { EngineHttp } from "./http.ts";
import { untilReady, WrongEngine, type ReadinessCheck } from "./readiness.ts";

export interface AttachedOptions extends ReadinessCheck {
  readonly url: string;
  readonly apiKey: string;
  /** host:port of its KV side channel, where the connector needs to know it. */
  readonly kvAddress: string;
  readonly log: Log;
  readonly clock?: Clock;
}

export function attachedEngine(o: AttachedOptions): EngineSource {
  const { url, kvAddress, clock = systemClock } = o;
  return {
    ours: false,
    async start(signal) {
      const http = new EngineHttp({ url, apiKey: o.apiKey, clock });
      let logged = false;
      try {
        const facts = await untilReady(http, o, clock, signal, ({ message }) => {
          if (!logged) o.log.info("waiting for the engine", { url, because: message });
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
