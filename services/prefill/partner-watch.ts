// P2P NCCL sends KV to the decode engine in the id, and waits for that engine without any limit. If a decode engine
// dies while prefill sends to it, prefill answers no request any more (seen on vLLM 0.23), with /health at 200. The KV
// port of the dead engine is closed, and a restarted engine takes another port. So a port that refuses connections
// reveals the death within a second or two. Whether the death has wedged this engine, its counters show: until they
// stall, its legs to other decode engines go on.
import { once } from "node:events";
import { connect } from "node:net";
import { splitAddress } from "../common/address.ts";
import { type Clock, settlesWithin, systemClock, type Timer } from "../common/clock.ts";

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
  /** A leg to a KV address begins. Returns a function that ends it. */
  legBegan(address: string): () => void;
  /** Whether legs run to an engine that has died. */
  readonly anyGone: boolean;
}

export function watchPartners({
  lost,
  clock = systemClock,
  isClosed = (address) => refuses(address, clock),
}: PartnerWatchOptions): PartnerWatch {
  /** The oldest leg to each partner comes first. */
  const partners = new Map<string, { readonly legs: Set<{ readonly sinceMs: number }>; closedCount: number }>();
  let timer: Timer | undefined;

  async function look(): Promise<void> {
    const oldMs = clock.nowMs() - AGE_MS;
    await Promise.all(
      [...partners].map(async ([address, partner]) => {
        const [oldest] = partner.legs;
        if (oldest === undefined || oldest.sinceMs > oldMs) return;
        if (!(await isClosed(address))) partner.closedCount = 0;
        else if (partner.closedCount < CLOSED_LIMIT && ++partner.closedCount === CLOSED_LIMIT && partner.legs.size > 0)
          lost(address);
      }),
    );
    timer = undefined;
    arm();
  }

  function arm(): void {
    if (partners.size > 0) timer ??= clock.setTimer(LOOK_EVERY_MS, () => void look());
  }

  function legBegan(address: string): () => void {
    const partner = partners.get(address) ?? { legs: new Set(), closedCount: 0 };
    const leg = { sinceMs: clock.nowMs() };
    partners.set(address, partner);
    partner.legs.add(leg);
    arm();
    return () => {
      partner.legs.delete(leg);
      if (partner.legs.size === 0 && partners.get(address) === partner) partners.delete(address);
      if (partners.size > 0) return;
      timer?.cancel();
      timer = undefined;
    };
  }

  return {
    legBegan,
    get anyGone() {
      return [...partners.values()].some(({ closedCount }) => closedCount === CLOSED_LIMIT);
    },
  };
}

async function refuses(address: string, clock: Clock): Promise<boolean> {
  const socket = connect(splitAddress(address));
  try {
    const connected = once(socket, "connect");
    if (await settlesWithin(clock, connected, CONNECT_TIMEOUT_MS)) await connected;
    return false;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "ECONNREFUSED";
  } finally {
    socket.destroy();
  }
}
