// The prefill side of nixl: which block ids hold whose KV, and for how long. As in vLLM a block keeps
// its content after it was freed, until another request needs the block: a late read usually works.
import type { Timer } from "../../common/clock.ts";
import type { EngineMetrics } from "../metrics.ts";
import type { ConnectorOptions, HeldKv, RepeatableKv } from "./connector.ts";

interface Owner {
  readonly requestId: string;
  readonly tokens: readonly number[];
  readonly blockIds: readonly number[];
  readonly sinceMs: number;
  readonly lease: Timer;
}

export interface NixlBlocksOptions extends ConnectorOptions {
  readonly model: RepeatableKv;
  readonly metrics: EngineMetrics;
}

export class NixlBlocks {
  readonly #options: NixlBlocksOptions;
  /** First in, first out, so a freed block is reused as late as possible. */
  readonly #free: number[];
  readonly #content = new Map<number, { readonly owner: Owner; readonly index: number }>();
  readonly #leased = new Map<string, Owner>();
  /** Blocks are made when they are read; all blocks of one request are read together. */
  #made: { readonly owner: Owner; readonly blocks: readonly Buffer[] } | null = null;

  constructor(options: NixlBlocksOptions) {
    this.#options = options;
    this.#free = Array.from({ length: options.model.blockCount }, (_, index) => index + 1);
  }

  /** Null: no block is free, because all are under lease. */
  lease(requestId: string, tokens: readonly number[]): readonly number[] | null {
    const { model, space, clock, leaseMs, metrics } = this.#options;
    const count = Math.ceil(tokens.length / model.blockSize);
    if (count > this.#free.length) return null;
    const owner: Owner = {
      requestId,
      tokens,
      blockIds: this.#free.splice(0, count),
      sinceMs: clock.nowMs(),
      lease: clock.setTimer(leaseMs, () => {
        metrics.expiredLeases++;
        this.#release(owner);
      }),
    };
    owner.blockIds.forEach((id, index) => this.#content.set(id, { owner, index }));
    this.#leased.set(requestId, owner);
    space.holdTokens(tokens.length);
    return owner.blockIds;
  }

  /** The decode engine has read them. */
  done(requestId: string): void {
    const owner = this.#leased.get(requestId);
    if (owner === undefined) this.#options.metrics.notificationsAfterExpiry++;
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
    const slot = this.#content.get(blockId);
    if (slot === undefined) return null;
    if (this.#made?.owner !== slot.owner)
      this.#made = { owner: slot.owner, blocks: [...this.#options.model.blocksOf(slot.owner.tokens)] };
    return this.#made.blocks[slot.index] ?? null;
  }

  held(): HeldKv[] {
    const nowMs = this.#options.clock.nowMs();
    return [...this.#leased.values()].map(({ requestId, tokens, sinceMs }) => ({
      id: requestId,
      tokens: tokens.length,
      bytes: tokens.length * this.#options.model.bytesPerToken,
      stage: "ready",
      age_ms: Math.round(nowMs - sinceMs),
    }));
  }

  close(): void {
    for (const owner of [...this.#leased.values()]) this.#release(owner);
  }

  #release(owner: Owner): void {
    owner.lease.cancel();
    this.#leased.delete(owner.requestId);
    this.#free.push(...owner.blockIds);
    this.#options.space.releaseTokens(owner.tokens.length);
  }
}
