// A steady number of streams, alternating between the routers, from different kinds of clients: most read to the end,
// some leave at a random moment, and some pause reading for a while.
import { Agent } from "node:http";
import { setTimeout as sleep } from "node:timers/promises";
import { seededRandom } from "../loadgen/arrivals.ts";
import { timedRequest, type Ask, type TimedAnswer } from "../common/timed-request.ts";

/** One request of the load. */
export interface RequestRecord extends TimedAnswer {
  readonly number: number;
  readonly router: string;
  /** Index of the request body. */
  readonly ask: number;
}

export interface LoadOptions {
  readonly routers: readonly { readonly name: string; readonly url: string }[];
  readonly asks: readonly Ask[];
  readonly streams: number;
  readonly seed: number;
  readonly hangMs: number;
  /** Shares of requests whose client leaves, and whose client pauses. */
  readonly leaveShare: number;
  readonly holdShare: number;
}

export interface Load {
  readonly records: readonly RequestRecord[];
  readonly running: number;
  /** Starts no more requests; resolves when the last one has ended. */
  stop(): Promise<void>;
}

/** Pause after a failed request, because a client that retries without a pause only loads the machine. */
const PAUSE_MS = 50;

export function startLoad(o: LoadOptions): Load {
  const agents = o.routers.map(() => new Agent({ keepAlive: true, maxSockets: Infinity }));
  const records: RequestRecord[] = [];
  let stopping = false;
  let next = 0;
  let running = 0;

  async function lane(index: number): Promise<void> {
    const random = seededRandom(o.seed * 7_919 + index);
    let turn = index;
    // Spreads the starts, so that the streams don't run in step.
    await sleep(random() * 500);
    while (!stopping) {
      const number = next++;
      const router = o.routers[turn++ % o.routers.length]!;
      const ask = Math.floor(random() * o.asks.length);
      const [leaves, holds, amount] = [random() < o.leaveShare, random() < o.holdShare, random()];
      running++;
      const answer = await timedRequest(o.asks[ask]!, {
        url: router.url,
        agent: agents[o.routers.indexOf(router)]!,
        hangMs: o.hangMs,
        ...(leaves ? { leaveMs: amount * 2_500 } : {}),
        ...(holds ? { holdMs: 300 + amount * 2_000 } : {}),
      });
      running--;
      records.push({ number, router: router.name, ask, ...answer });
      if (answer.ending !== "completed") await sleep(PAUSE_MS);
    }
  }
  const lanes = Array.from({ length: o.streams }, (_, index) => lane(index));
  return {
    records,
    get running() {
      return running;
    },
    async stop() {
      stopping = true;
      await Promise.all(lanes);
      for (const agent of agents) agent.destroy();
    },
  };
}
