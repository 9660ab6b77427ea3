// A steady number of streams, alternating between the routers, from different kinds of clients: most read to the end,
// some leave at a random moment, and some pause reading for a while.
import { Agent } from "node:http";
import { setTimeout as sleep } from "node:timers/promises";
import { timedRequest, type Ask, type TimedAnswer } from "../common/timed-request.ts";
import { seededRandom } from "../loadgen/arrivals.ts";
import { POISONED } from "./asks.ts";
import type { RouterMember } from "./cluster.ts";

/** One request of the load. */
export interface RequestRecord extends TimedAnswer {
  readonly number: number;
  readonly router: string;
  /** Index of the request body. */
  readonly ask: number;
}

/** Shares of requests whose client leaves, and whose client pauses. */
const LEAVE_SHARE = 0.05;
const HOLD_SHARE = 0.03;
const POISON_SHARE = 0.01;
/** Pause after a failed request, because a client that retries without a pause only loads the machine. */
const PAUSE_MS = 50;

export function startLoad(
  routers: readonly RouterMember[],
  asks: readonly Ask[],
  { streams, hangMs }: { readonly streams: number; readonly hangMs: number },
  seed: number,
) {
  const agent = new Agent({ keepAlive: true, maxSockets: Infinity });
  const records: RequestRecord[] = [];
  let stopping = false;
  let next = 0;

  async function lane(index: number): Promise<void> {
    const random = seededRandom(seed * 7_919 + index);
    let turn = index;
    // Spreads the starts, so that the streams don't run in step.
    await sleep(random() * 500);
    while (!stopping) {
      const number = next++;
      const { url, process } = routers[turn++ % routers.length]!;
      const sound = Math.floor(random() * (asks.length - POISONED));
      const ask = random() < POISON_SHARE ? asks.length - POISONED : sound;
      const [leaves, holds, amount] = [random() < LEAVE_SHARE, random() < HOLD_SHARE, random()];
      const answer = await timedRequest(asks[ask]!, {
        url,
        agent,
        hangMs,
        ...(leaves ? { leaveMs: amount * 2_500 } : {}),
        ...(holds ? { holdMs: 300 + amount * 2_000 } : {}),
      });
      records.push({ number, router: process.name, ask, ...answer });
      if (answer.ending !== "completed") await sleep(PAUSE_MS);
    }
  }
  const lanes = Array.from({ length: streams }, (_, index) => lane(index));
  return {
    records: records as readonly RequestRecord[],
    /** Starts no more requests; resolves when the last one has ended. */
    async stop(): Promise<void> {
      stopping = true;
      await Promise.all(lanes);
      agent.destroy();
    },
  };
}
