// No pair of vLLM engines takes traffic before a canary came through it and was right: what is wrong between two of them
// shows as garbage with HTTP 200, or as an engine that stands still. It warms the pair up as well. An engine that was
// started again is another one, and its pairs are looked at anew. Tandem's own engines refuse what doesn't fit by
// themselves, and are not checked.
import type { Info } from "#gen/tandem/instance/v1/instance_pb.js";
import type { Clock, Timer } from "../../common/clock.ts";
import type { Log } from "../../common/log.ts";
import { backoffMs } from "../../common/lifecycle.ts";
import { canaryFault, type CanaryResult } from "./pair-canary.ts";
import { pairable } from "../pool/compat.ts";
import type { Member } from "../pool/member.ts";
import { pairKey } from "../pool/pairs.ts";
import type { Pool } from "../pool/pool.ts";

const AGAIN = { minMs: 1_000, maxMs: 30_000 };
/** At once; the others wait. A big fleet has many pairs, and canaries are work like any other. */
const OPEN_LIMIT = 4;

export function needsCheck(prefill: Info, decode: Info): boolean {
  return (
    prefill.engine === "vllm" &&
    decode.engine === "vllm" &&
    prefill.connector !== "p2p-zmq" &&
    pairable(prefill, decode)
  );
}

export interface PairCheckerOptions {
  readonly pool: Pick<Pool, "snapshot" | "onChange" | "pairChecked">;
  readonly send: (prefill: Member, decode: Member) => Promise<CanaryResult>;
  readonly clock: Clock;
  readonly log: Log;
}

interface Pair {
  state: "due" | "running" | "waiting" | "good";
  attempts: number;
  timer?: Timer | undefined;
}

export function startPairChecker({ pool, send, clock, log }: PairCheckerOptions): { stop(): void } {
  const known = new Map<string, Pair>();
  let open = 0;
  let stopped = false;

  function look(): void {
    if (stopped) return;
    const { prefill, decode } = pool.snapshot;
    if (known.size === 0 && !prefill.some(({ info }) => info.engine === "vllm")) return;
    const present = new Set<string>();
    for (const one of prefill) {
      for (const other of decode) {
        if (one.condition !== "serving" || other.condition !== "serving" || !needsCheck(one.info, other.info)) continue;
        const key = pairKey(one.info.instanceId, other.info.instanceId);
        present.add(key);
        const pair = known.get(key) ?? { state: "due" as const, attempts: 0 };
        known.set(key, pair);
        if (pair.state === "due" && open < OPEN_LIMIT) void check(key, pair, one, other);
      }
    }
    // One of them is out: whatever comes back may be another engine.
    for (const [key, pair] of known) {
      if (present.has(key)) continue;
      pair.timer?.cancel();
      known.delete(key);
      pool.pairChecked(key, undefined);
    }
  }

  async function check(key: string, pair: Pair, prefill: Member, decode: Member): Promise<void> {
    open++;
    pair.state = "running";
    const names = { prefill: prefill.info.instanceId, decode: decode.info.instanceId };
    const result = await send(prefill, decode).catch(
      (error: unknown): CanaryResult => ({ kind: "failed", message: (error as Error).message }),
    );
    open--;
    if (stopped) return;
    // Forgotten meanwhile: the verdict is about engines that are gone.
    if (known.get(key) === pair) {
      const fault = canaryFault(result);
      if (fault === undefined) {
        pair.state = "good";
        log.info("pair is checked and takes requests", { ...names, ...result });
        pool.pairChecked(key, "");
      } else {
        pair.state = "waiting";
        log.warn("pair is not used", { ...names, why: fault });
        pool.pairChecked(key, fault);
        pair.timer = clock.setTimer(backoffMs(pair.attempts++, AGAIN), () => {
          pair.state = "due";
          look();
        });
      }
    }
    look();
  }

  const off = pool.onChange(look);
  look();
  return {
    stop() {
      stopped = true;
      off();
      for (const { timer } of known.values()) timer?.cancel();
    },
  };
}
