// A steady number of streams, alternating between the routers, from different kinds of clients: most read to the end,
// some leave at a random moment, and some pause reading for a while.
import { Agent } from "node:http";
import { setTimeout as sleep } from "node:timers/promises";
import { timedRequest, type Ask, type TimedAnswer } from "../common/timed-request.ts";
import { seededRandom } from "../loadgen/arrivals.ts";
import type { RouterMember } from "./cluster.ts";

/** One request of the load. */
export interface RequestRecord extends TimedAnswer {
  readonly number: number;
  readonly router: string;
  /** Index of the request body. */
  readonly ask: number;
}

export interface LoadOptions {
  readonly routers: readonly RouterMember[];
  readonly asks: readonly Ask[];
  readonly streams: number;
  readonly seed: number;
  readonly hangMs: number;
}

export interface Load {
  readonly records: readonly RequestRecord[];
  /** Starts no more requests; resolves when the last one has ended. */
  stop(): Promise<void>;
}

/** Shares of requests whose client leaves, and whose client pauses. */
const LEAVE_SHARE = 0.05;
const HOLD_SHARE = 0.03;
/** Pause after a failed request, because a client that retries without a pause only loads the machine. */
const PAUSE_MS = 50;

export function startLoad(o: LoadOptions): Load {
  const agent = new Agent({ keepAlive: true, maxSockets: Infinity });
  const records: RequestRecord[] = [];
  let stopping = false;
  let next = 0;

  async function lane(index: number): Promise<void> {
    const random = seededRandom(o.seed * 7_919 + index);
    let turn = index;
    // Spreads the starts, so that the streams don't run in step.
    await sleep(random() * 500);
    while (!stopping) {
      const number = next++;
      const { url, process } = o.routers[turn++ % o.routers.length]!;
      const ask = Math.floor(random() * o.asks.length);
      const [leaves, holds, amount] = [random() < LEAVE_SHARE, random() < HOLD_SHARE, random()];
      const answer = await timedRequest(o.asks[ask]!, {
        url,
        agent,
        hangMs: o.hangMs,
        ...(leaves ? { leaveMs: amount * 2_500 } : {}),
        ...(holds ? { holdMs: 300 + amount * 2_000 } : {}),
      });
      records.push({ number, router: process.name, ask, ...answer });
      if (answer.ending !== "completed") await sleep(PAUSE_MS);
    }
  }
  const lanes = Array.from({ length: o.streams }, (_, index) => lane(index));
  return {
    records,
    async stop() {
      stopping = true;
      await Promise.all(lanes);
      agent.destroy();
    },
  };
}
