// InstanceService: the identity of this instance, its load, and whether it may get new work.
import { equals } from "@bufbuild/protobuf";
import {
  InstanceService,
  LoadSchema,
  type Finding,
  type Info,
  type Load,
} from "#gen/tandem/instance/v1/instance_pb.js";
import { type Clock, systemClock } from "../common/clock.ts";
import { ServiceError } from "../common/errors.ts";
import { anySignal } from "../common/lifecycle.ts";
import type { Log } from "../common/log.ts";
import { defineService, type RpcService } from "../rpc/service.ts";
import type { Board } from "./board.ts";

/** The promises of instance.proto, in milliseconds. */
const PUSH_GAP_MS = 200;
const HEARTBEAT_MS = 1_000;
/** Routers that may watch at once. */
const WATCH_LIMIT = 64;

export interface InstanceServiceOptions {
  readonly board: Board;
  readonly info: () => Info;
  readonly findings: () => readonly Finding[];
  /** Default 64. */
  readonly watchLimit?: number;
  readonly log: Log;
  readonly clock?: Clock;
}

export function instanceService(o: InstanceServiceOptions): RpcService {
  const { board, watchLimit = WATCH_LIMIT, clock = systemClock } = o;
  let watchers = 0;

  async function* watch(requests: AsyncIterable<unknown>, signal: AbortSignal): AsyncGenerator<{ load: Load }> {
    if (watchers >= watchLimit) {
      throw new ServiceError("instance_busy", `${watchLimit} callers watch this instance already, which is its limit.`);
    }
    watchers++;
    let sentMs = 0;
    let asked = false;
    let wake = (): void => {};
    const sinceSentMs = (): number => clock.nowMs() - sentMs;
    const forget = board.onChange(() => {
      if (sinceSentMs() >= PUSH_GAP_MS) wake();
    });
    const onAbort = (): void => wake();
    signal.addEventListener("abort", onAbort);
    void eachAfterFirst(requests, () => {
      asked = true;
      wake();
    });
    try {
      while (!signal.aborted) {
        asked = false;
        sentMs = clock.nowMs();
        const load = board.load();
        yield { load };
        const isDue = (): boolean =>
          signal.aborted ||
          asked ||
          sinceSentMs() >= HEARTBEAT_MS ||
          (sinceSentMs() >= PUSH_GAP_MS && !equals(LoadSchema, load, board.load()));
        while (!isDue()) {
          const untilMs = sinceSentMs() < PUSH_GAP_MS ? PUSH_GAP_MS : HEARTBEAT_MS;
          await new Promise<void>((resolve) => {
            const timer = clock.setTimer(untilMs - sinceSentMs(), resolve);
            wake = () => {
              timer.cancel();
              resolve();
            };
          });
        }
      }
    } finally {
      signal.removeEventListener("abort", onAbort);
      forget();
      watchers--;
    }
  }

  const mustNotStop = (): void => {
    if (board.stopping)
      throw new ServiceError("failed_precondition", "The instance is stopping and will not serve again.");
  };

  return defineService(
    InstanceService,
    {
      getInfo: async () => ({ info: o.info(), load: board.load() }),
      watchLoad: (requests, { signal, closing }) => watch(requests, anySignal(signal, closing)),
      async drain({ reason }) {
        mustNotStop();
        o.log.info("draining", { reason });
        board.setDraining(reason === "" ? "drained" : reason);
        return { remaining: board.remaining };
      },
      async undrain() {
        mustNotStop();
        o.log.info("taking legs again");
        board.setDraining(undefined);
        return {};
      },
      diagnose: async () => ({ findings: [...o.findings()] }),
    },
    { access: "token" },
  );
}

/** Calls `fn` for each message but the first, until the stream ends. */
async function eachAfterFirst(messages: AsyncIterable<unknown>, fn: () => void): Promise<void> {
  let count = 0;
  try {
    for await (const _ of messages) if (count++ > 0) fn();
  } catch {
    // The call broke, which its signal reports as well.
  }
}
