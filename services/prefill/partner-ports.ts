// Whether the decode engines to which a prefill engine sends KV are there. A connection to each one's KV port is held,
// so that a leg to an engine that has died is not begun: with P2P NCCL it would wedge this prefill engine for good.
import { connect } from "node:net";
import { splitAddress } from "../common/address.ts";
import { type Clock, settlesWithin } from "../common/clock.ts";
import { HeldConnection } from "../engine/held-connection.ts";

/** For the first connection. An address that only stays silent is not closed. */
const DIAL_TIMEOUT_MS = 1_000;
/** Partners without a leg for this long are not watched. */
const UNUSED_MS = 600_000;
const LIMIT = 1_024;

export class PartnerPorts {
  readonly #clock: Clock;
  /** By address, the least recently used first. */
  readonly #held = new Map<string, { readonly port: HeldConnection; usedMs: number }>();

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** Whether nothing listens at the address. */
  async isClosed(address: string): Promise<boolean> {
    const usedMs = this.#clock.nowMs();
    const { port } = this.#held.get(address) ?? { port: this.#hold(address) };
    this.#held.delete(address);
    this.#held.set(address, { port, usedMs });
    this.#forget(usedMs - UNUSED_MS);
    await settlesWithin(this.#clock, port.known, DIAL_TIMEOUT_MS);
    return port.isClosed;
  }

  [Symbol.dispose](): void {
    for (const { port } of this.#held.values()) port[Symbol.dispose]();
    this.#held.clear();
  }

  #hold(address: string): HeldConnection {
    return new HeldConnection({
      dial: () => connect(splitAddress(address)),
      // The next leg looks again.
      closed: () => void this.#held.delete(address),
      clock: this.#clock,
    });
  }

  #forget(beforeMs: number): void {
    for (const [address, { port, usedMs }] of this.#held) {
      if (this.#held.size <= LIMIT && usedMs >= beforeMs) break;
      port[Symbol.dispose]();
      this.#held.delete(address);
    }
  }
}
