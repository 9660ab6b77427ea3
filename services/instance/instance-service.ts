// InstanceService: the identity of this instance, its load, and whether it may get new work.
import { equals } from "@bufbuild/protobuf";
import {
  InstanceService,
  LoadSchema,
  type Finding,
  type Info,
  type Load,
  type WatchLoadRequest,
} from "#gen/tandem/instance/v1/instance_pb.js";
import { type Clock, pause } from "../common/clock.ts";
import { ServiceError } from "../common/errors.ts";
import { anySignal } from "../common/lifecycle.ts";
import type { Log } from "../common/log.ts";
import { defineService, type RpcService } from "../rpc/service.ts";
import type { RestartLease } from "./restart-lease.ts";
import type { InstanceStatus } from "./status.ts";

/** The promises of instance.proto, in milliseconds. */
const PUSH_GAP_MS = 200;
const HEARTBEAT_MS = 1_000;
/** Routers that may watch at once. */
const WATCH_LIMIT = 64;

export interface InstanceServiceOptions {
  readonly status: InstanceStatus;
  readonly restarts: Pick<RestartLease, "watch">;
  readonly info: () => Info;
  readonly findings: () => readonly Finding[];
  readonly log: Log;
  readonly clock: Clock;
}

export function instanceService({ status, restarts, info, findings, log, clock }: InstanceServiceOptions): RpcService {
  let watchers = 0;

  async function* watch(
    requests: AsyncIterable<WatchLoadRequest>,
    signal: AbortSignal,
  ): AsyncGenerator<{ load: Load }> {
    if (watchers >= WATCH_LIMIT) {
      throw new ServiceError(
        "instance_busy",
        `${WATCH_LIMIT} callers watch this instance already, which is its limit.`,
      );
    }
    watchers++;
    const lease = restarts.watch();
    let sentMs = 0;
    let asked = false;
    let nap = new AbortController();
    const wake = (): void => nap.abort();
    const sinceSentMs = (): number => clock.nowMs() - sentMs;
    /** Each message but the first asks for a report at once. */
    const listen = async (): Promise<void> => {
      let count = 0;
      for await (const { restartGranted } of requests) {
        lease.heard(restartGranted);
        asked = count++ > 0;
        if (asked) wake();
      }
    };
    const changed = (): void => {
      if (sinceSentMs() >= PUSH_GAP_MS) wake();
    };
    status.on("change", changed);
    signal.addEventListener("abort", wake);
    listen().catch(() => {
      // The call broke, which its signal reports as well.
    });
    try {
      while (!signal.aborted) {
        asked = false;
        sentMs = clock.nowMs();
        const load = status.load();
        yield { load };
        const isDue = (): boolean =>
          signal.aborted ||
          asked ||
          sinceSentMs() >= HEARTBEAT_MS ||
          (sinceSentMs() >= PUSH_GAP_MS && !equals(LoadSchema, load, status.load()));
        while (!isDue()) {
          nap = new AbortController();
          await pause(clock, (sinceSentMs() < PUSH_GAP_MS ? PUSH_GAP_MS : HEARTBEAT_MS) - sinceSentMs(), nap.signal);
        }
      }
    } finally {
      signal.removeEventListener("abort", wake);
      status.off("change", changed);
      lease.left();
      watchers--;
    }
  }

  const mustNotStop = (): void => {
    if (status.stopping)
      throw new ServiceError("failed_precondition", "The instance is stopping and will not serve again.");
  };

  return defineService(
    InstanceService,
    {
      getInfo: async () => ({ info: info(), load: status.load() }),
      watchLoad: (requests, { signal, closing }) => watch(requests, anySignal(signal, closing)),
      async drain({ reason }) {
        mustNotStop();
        log.info("draining", { reason });
        status.set({ drained: reason || "drained" });
        return { remaining: status.remaining };
      },
      async undrain() {
        mustNotStop();
        log.info("taking legs again");
        status.set({ drained: "" });
        return {};
      },
      diagnose: async () => ({ findings: [...findings()] }),
    },
    { access: "token" },
  );
}
