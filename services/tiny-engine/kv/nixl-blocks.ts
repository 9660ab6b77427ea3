// The prefill side of nixl: which block ids hold whose KV, and for how long. As in vLLM a block keeps
// its content after it was freed, until another request needs the block: a late read usually works.
import type { Clock } from "../../common/clock.ts";
import type { KvSpace, RepeatableKv } from "./connector.ts";

interface Owner {
  readonly requestId: string;
  readonly tokens: readonly number[];
  readonly blockIds: readonly number[];
  readonly sinceMs: number;
  endLease: () => void;
}

export class NixlBlocks {
  readonly #model: RepeatableKv;
  readonly #space: KvSpace;
  readonly #clock: Clock;
  readonly #leaseMs: number;
  /** First in, first out, so a freed block is reused as late as possible. */
  readonly #free: number[];
  readonly #content = new Map<number, { readonly owner: Owner; readonly index: number }>();
  readonly #leased = new Map<string, Owner>();
  /** Blocks are made when they are read; all blocks of one request are read together. */
  #made: { readonly owner: Owner; readonly blocks: readonly Buffer[] } | null = null;
  expiredLeases = 0;
  lateNotifications = 0;

  constructor(model: RepeatableKv, space: KvSpace, clock: Clock, leaseMs: number, blockCount: number) {
    this.#model = model;
    this.#space = space;
    this.#clock = clock;
    this.#leaseMs = leaseMs;
    this.#free = Array.from({ length: blockCount }, (_, index) => index + 1);
  }

  /** Null: no block is free, because all are under lease. */
  lease(requestId: string, tokens: readonly number[]): readonly number[] | null {
    const count = Math.ceil(tokens.length / this.#model.blockSize);
    if (count > this.#free.length) return null;
    const owner: Owner = {
      requestId,
      tokens,
      blockIds: this.#free.splice(0, count),
      sinceMs: this.#clock.nowMs(),
      endLease: () => {},
    };
    owner.blockIds.forEach((id, index) => this.#content.set(id, { owner, index }));
    this.#leased.set(requestId, owner);
    this.#space.holdTokens(tokens.length);
    const timer = this.#clock.setTimer(this.#leaseMs, () => {
      this.expiredLeases++;
      this.#release(owner);
    });
    owner.endLease = () => timer.cancel();
    return owner.blockIds;
  }

  /** The decode engine has read them. */
  done(requestId: string): void {
    const owner = this.#leased.get(requestId);
    if (owner === undefined) this.lateNotifications++;
    else this.#release(owner);
  }

  drop(requestId: string): boolean {
    const owner = this.#leased.get(requestId);
    if (owner !== undefined) this.#release(owner);
    return owner !== undefined;
  }

  /** Forgets the content while the lease goes on: KV that was offered and lost. */
  lose(requestId: string): void {
    for (const id of this.#leased.get(requestId)?.blockIds ?? []) this.#content.delete(id);
  }

  /** A block that holds nothing reads as null. */
  read(blockId: number): Buffer | null {
    const place = this.#content.get(blockId);
    if (place === undefined) return null;
    if (this.#made?.owner !== place.owner)
      this.#made = { owner: place.owner, blocks: [...this.#model.blocksOf(place.owner.tokens)] };
    return this.#made.blocks[place.index] ?? null;
  }

  held(): { id: string; tokens: number; bytes: number; stage: string; age_ms: number }[] {
    const nowMs = this.#clock.nowMs();
    return [...this.#leased.values()].map(({ requestId, tokens, sinceMs }) => ({
      id: requestId,
      tokens: tokens.length,
      bytes: tokens.length * this.#model.bytesPerToken,
      stage: "ready",
      age_ms: Math.round(nowMs - sinceMs),
    }));
  }

  close(): void {
    for (const owner of [...this.#leased.values()]) this.#release(owner);
  }

  #release(owner: Owner): void {
    owner.endLease();
    this.#leased.delete(owner.requestId);
    this.#free.push(...owner.blockIds);
    this.#space.releaseTokens(owner.tokens.length);
  }
}
