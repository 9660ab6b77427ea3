// The decode engines to which a prefill engine sends KV. P2P NCCL waits for them without any limit: if one dies while
// prefill sends to it, prefill answers no request any more (seen on vLLM 0.23), with /health at 200. A restarted engine
// takes another KV port, so a port that refuses connections reveals the death. A connection to each port is held:
//
// - A leg to an engine that has died is not begun.
// - If one dies while legs run to it, that is known at once. Whether the death has wedged this engine, its counters
//   show (engine/progress.ts): until they stall, its legs to other decode engines go on.
import { connect } from "node:net";
import { splitAddress } from "../common/address.ts";
import { type Clock, settlesWithin } from "../common/clock.ts";
import { HeldConnection } from "../engine/held-connection.ts";

/** For the first connection. An address that only stays silent is not closed. */
const DIAL_TIMEOUT_MS = 1_000;
/** Partners without a leg for this long are not watched. */
const UNUSED_MS = 600_000;
const LIMIT = 1_024;

interface Partner {
  readonly port: HeldConnection;
  usedMs: number;
  legs: number;
}

export interface PartnersOptions {
  /** An engine died to which legs run. Called once for each death. */
  lost(address: string): void;
  readonly clock: Clock;
}

export class Partners {
  readonly #o: PartnersOptions;
  /** By address, the least recently used first. */
  readonly #partners = new Map<string, Partner>();
  /** Those that died, while legs run to them. */
  readonly #gone = new Set<Partner>();

  constructor(o: PartnersOptions) {
    this.#o = o;
  }

  /** Whether nothing listens at the address. */
  async isClosed(address: string): Promise<boolean> {
    const { port } = this.#use(address);
    await settlesWithin(this.#o.clock, port.known, DIAL_TIMEOUT_MS);
    return port.isClosed;
  }

  /** A leg to the address begins. Returns a function that ends it. */
  legBegan(address: string): () => void {
    const partner = this.#use(address);
    partner.legs++;
    return () => {
      if (--partner.legs === 0) this.#gone.delete(partner);
    };
  }

  /** Whether legs run to an engine that has died. */
  get anyGone(): boolean {
    return this.#gone.size > 0;
  }

  [Symbol.dispose](): void {
    for (const { port } of this.#partners.values()) port[Symbol.dispose]();
    this.#partners.clear();
  }

  #use(address: string): Partner {
    const partner = this.#partners.get(address) ?? this.#hold(address);
    partner.usedMs = this.#o.clock.nowMs();
    this.#partners.delete(address);
    this.#partners.set(address, partner);
    this.#forget(partner.usedMs - UNUSED_MS);
    return partner;
  }

  #hold(address: string): Partner {
    const port = new HeldConnection({
      dial: () => connect(splitAddress(address)),
      closed: () => {
        // The next leg looks again.
        this.#partners.delete(address);
        if (partner.legs === 0) return;
        this.#gone.add(partner);
        this.#o.lost(address);
      },
      clock: this.#o.clock,
    });
    const partner: Partner = { port, usedMs: 0, legs: 0 };
    return partner;
  }

  #forget(beforeMs: number): void {
    for (const [address, { port, usedMs, legs }] of this.#partners) {
      if (this.#partners.size <= LIMIT && usedMs >= beforeMs) break;
      if (legs > 0) continue;
      port[Symbol.dispose]();
      this.#partners.delete(address);
    }
  }
}
