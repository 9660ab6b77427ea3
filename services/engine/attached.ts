// An engine that somebody else started and looks after.
import { type Clock, pause, systemClock } from "../common/clock.ts";
import { StartError } from "../common/config.ts";
import type { Log } from "../common/log.ts";
import type { EngineKind, EngineSource } from "./engine.ts";
import { createEngineHttp } from "./http.ts";
import { checkReady, WrongEngine } from "./readiness.ts";

export interface AttachedOptions {
  readonly url: string;
  readonly apiKey: string;
  /** Undefined: found out. */
  readonly kind: EngineKind | undefined;
  readonly model: string;
  readonly servesUnpaired: boolean;
  /** host:port of its KV side channel, where the connector needs to know it. */
  readonly kvAddress: string;
  readonly startTimeoutMs: number;
  readonly log: Log;
  readonly clock?: Clock;
}

export function attachedEngine(o: AttachedOptions): EngineSource {
  const { clock = systemClock } = o;
  return {
    ours: false,
    async start(signal) {
      const deadlineMs = clock.nowMs() + o.startTimeoutMs;
      for (let waitMs = 100, logged = false; ; waitMs = Math.min(1_000, waitMs * 2)) {
        const http = createEngineHttp({ url: o.url, apiKey: o.apiKey, clock });
        try {
          const facts = await checkReady(http, { ...o, timeoutMs: 5_000, completionTimeoutMs: 120_000 });
          return {
            http,
            kvAddress: o.kvAddress,
            facts,
            ended: new Promise(() => {}),
            kill() {},
            stop: async () => http.close(new Error("detached")),
          };
        } catch (error) {
          http.close(error as Error);
          signal.throwIfAborted();
          const message = (error as Error).message;
          if (error instanceof WrongEngine) throw new StartError(`The engine at ${o.url} can't be used: ${message}.`);
          if (clock.nowMs() > deadlineMs) throw new StartError(`The engine at ${o.url} does not work: ${message}.`);
          if (!logged) o.log.info("waiting for the engine", { url: o.url, because: message });
          logged = true;
        }
        await pause(clock, waitMs, signal);
        signal.throwIfAborted();
      }
    },
  };
}
