// InstanceService: who this instance is, how busy it is, and whether it may get new work.
import { equals } from "@bufbuild/protobuf";
import { setTimeout as sleep } from "node:timers/promises";
import {
  FindingLevel,
  InstanceService,
  LoadSchema,
  type Info,
  type Load,
} from "#gen/tandem/instance/v1/instance_pb.js";
import { ServiceError } from "../common/errors.ts";
import { anySignal } from "../common/lifecycle.ts";
import type { Log } from "../common/log.ts";
import { defineService, type RpcService } from "../rpc/service.ts";
import type { Finding } from "../engine/findings.ts";
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
}

export function instanceService(o: InstanceServiceOptions): RpcService {
  const { board, watchLimit = WATCH_LIMIT } = o;
  let watchers = 0;

  async function* watch(signal: AbortSignal): AsyncGenerator<{ load: Load }> {
    if (watchers >= watchLimit) {
      throw new ServiceError("instance_busy", `${watchLimit} callers watch this instance already, which is its limit.`);
    }
    watchers++;
    let wake: (() => void) | undefined;
    const forget = board.onChange(() => wake?.());
    try {
      while (!signal.aborted) {
        const load = board.load();
        yield { load };
        await sleep(PUSH_GAP_MS, undefined, { signal }).catch(() => {});
        if (signal.aborted || !equals(LoadSchema, load, board.load())) continue;
        // Nothing new: until something is, or the heartbeat is due.
        await new Promise<void>((resolve) => {
          const timer = setTimeout(done, HEARTBEAT_MS - PUSH_GAP_MS);
          function done(): void {
            clearTimeout(timer);
            signal.removeEventListener("abort", done);
            wake = undefined;
            resolve();
          }
          wake = done;
          signal.addEventListener("abort", done, { once: true });
        });
      }
    } finally {
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
      watchLoad: (_request, { signal, closing }) => watch(anySignal(signal, closing)),
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
      diagnose: async () => ({ findings: o.findings().map((one) => ({ ...one, level: LEVELS[one.level] })) }),
    },
    { access: "token" },
  );
}

const LEVELS = {
  ok: FindingLevel.OK,
  unknown: FindingLevel.UNKNOWN,
  warning: FindingLevel.WARNING,
  error: FindingLevel.ERROR,
} as const satisfies Record<Finding["level"], FindingLevel>;
