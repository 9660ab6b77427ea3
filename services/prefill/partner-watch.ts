// P2P NCCL sends KV to the decode engine in the id, and waits for that engine without any limit. If a decode engine
// dies while prefill sends to it, prefill answers no request any more (seen on vLLM 0.23), with /health at 200. The KV
// port of the dead engine is closed, and a restarted engine takes another port. So a port that refuses connections
// reveals the death within a second or two, long before the engine's counters would.
import { connect } from "node:net";
import { splitAddress } from "../common/address.ts";
import { type Clock, systemClock, type Timer } from "../common/clock.ts";

const LOOK_EVERY_MS = 1_000;
/** A leg younger than this is not worth a look. */
const AGE_MS = 1_000;
const CONNECT_TIMEOUT_MS = 1_000;
/** Looks in a row that must find the port closed. */
const CLOSED_LIMIT = 2;

export interface PartnerWatchOptions {
  /** An address to which legs run no longer accepts connections. Called once for each death. */
  lost(address: string): void;
  /** Whether no process listens there. Default: tries a TCP connection; a port that only stays silent is not closed. */
  readonly isClosed?: (address: string) => Promise<boolean>;
  readonly clock?: Clock;
}

export interface PartnerWatch {
  /** A leg to this KV address began. Returns what ends it. */
  began(address: string): () => void;
}

export function watchPartners({
  lost,
  clock = systemClock,
  isClosed = (address) => refuses(address, clock),
}: PartnerWatchOptions): PartnerWatch {
  const legs = new Map<string, { since: Set<number>; closedCount: number }>();
  let timer: Timer | undefined;

  async function look(): Promise<void> {
    const nowMs = clock.nowMs();
    await Promise.all(
      [...legs].map(async ([address, partner]) => {
        const [oldest] = partner.since;
        if (oldest === undefined || nowMs - oldest < AGE_MS) return;
        if (!(await isClosed(address))) partner.closedCount = 0;
        else if (++partner.closedCount === CLOSED_LIMIT && partner.since.size > 0) lost(address);
      }),
    );
    timer = undefined;
    arm();
  }

  function arm(): void {
    if (timer !== undefined || legs.size === 0) return;
    timer = clock.setTimer(LOOK_EVERY_MS, () => void look());
  }

  return {
    began(address) {
      let partner = legs.get(address);
      if (partner === undefined) legs.set(address, (partner = { since: new Set(), closedCount: 0 }));
      // Two legs of one millisecond get distinct times.
      let sinceMs = clock.nowMs();
      while (partner.since.has(sinceMs)) sinceMs += 1e-3;
      partner.since.add(sinceMs);
      arm();
      return () => {
        partner.since.delete(sinceMs);
        if (partner.since.size === 0 && legs.get(address) === partner) legs.delete(address);
        if (legs.size > 0) return;
        timer?.cancel();
        timer = undefined;
      };
    },
  };
}

function refuses(address: string, clock: Clock): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(splitAddress(address));
    const done = (closed: boolean): void => {
      timer.cancel();
      socket.destroy();
      resolve(closed);
    };
    const timer = clock.setTimer(CONNECT_TIMEOUT_MS, () => done(false));
    socket.once("connect", () => done(false));
    socket.once("error", (error: NodeJS.ErrnoException) => done(error.code === "ECONNREFUSED"));
  });
}
