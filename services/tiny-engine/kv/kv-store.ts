// KV that was pushed to this decode engine and is not claimed yet. Every entry has a lease from the
// moment its slot is reserved, so a prefill that dies half-way or a request that never arrives leaves
// nothing behind after the lease. An id that was settled stays settled: KV that a slow link delivers
// after its leg has ended is turned away, and never waits for a lease.
import type { Timer } from "../../common/clock.ts";
import type { ConnectorOptions, HeldKv } from "./connector.ts";
import { createSettledIds, requestIdsOf } from "./settled-ids.ts";
import type { Block, KvHeader, Refusal } from "./wire.ts";

interface Entry {
  readonly header: KvHeader;
  readonly blocks: (Buffer | undefined)[];
  readonly sinceMs: number;
  ready: boolean;
  damaged: boolean;
  lease: Timer;
}

export class KvStore {
  readonly #options: ConnectorOptions;
  readonly #entries = new Map<string, Entry>();
  readonly #settled: ReturnType<typeof createSettledIds>;
  /** Those of them that a call has released. */
  readonly #released: ReturnType<typeof createSettledIds>;
  leasesExpired = 0;
  receivedBytes = 0;
  /** Transfers that were turned away because their id was settled before they arrived. */
  lateCount = 0;

  constructor(options: ConnectorOptions) {
    this.#options = options;
    this.#settled = createSettledIds(options.clock);
    this.#released = createSettledIds(options.clock);
  }

  reserve(id: string, header: KvHeader): Refusal | null {
    const { modelHash, blockSize, bytesPerToken, layout, maxLength } = this.#options.model;
    const { token_count: tokens } = header;
    if (header.model_hash !== modelHash)
      return refuse("wrong_model", `the KV was made by model ${header.model_hash}, this engine runs ${modelHash}`);
    if (header.block_size !== blockSize || header.bytes_per_token !== bytesPerToken) {
      const theirs = `blocks of ${header.block_size} tokens and ${header.bytes_per_token} bytes a token`;
      return refuse("wrong_shape", `the KV has ${theirs}, this engine ${blockSize} and ${bytesPerToken}`);
    }
    if (header.layout !== layout)
      return refuse("wrong_shape", `the KV is laid out as ${header.layout}, this engine's as ${layout}`);
    if (!Number.isSafeInteger(tokens) || tokens < 1)
      return refuse("bad_message", "token_count must be a positive integer");
    if (tokens > maxLength) return refuse("wrong_shape", `the KV has ${tokens} tokens, this engine takes ${maxLength}`);
    if (this.#entries.has(id)) return refuse("duplicate_id", `KV under id ${id} is already held`);
    if (this.#settled.has(id)) {
      this.lateCount++;
      return refuse("settled", `the request of KV ${id} has ended here`);
    }
    if (!this.#options.space.holdSlot(tokens)) return refuse("no_slots", "no KV slot is free");
    this.#entries.set(id, {
      header,
      blocks: new Array<Buffer | undefined>(Math.ceil(tokens / blockSize)).fill(undefined),
      sinceMs: this.#options.clock.nowMs(),
      ready: false,
      damaged: false,
      lease: this.#startLease(id),
    });
    return null;
  }

  /** Blocks of an id that is not held are dropped: their lease ended or they were released. */
  fill(id: string, blocks: readonly Block[]): void {
    const entry = this.#entries.get(id);
    if (entry === undefined || entry.ready) return;
    const { blockSize, bytesPerToken } = this.#options.model;
    for (const { index, payload, intact } of blocks) {
      const rows = Math.min(blockSize, entry.header.token_count - index * blockSize);
      if (index >= entry.blocks.length || payload.length !== rows * bytesPerToken || !intact) entry.damaged = true;
      else entry.blocks[index] = payload;
      this.receivedBytes += payload.length;
    }
    // A long prompt may take longer than a lease; each block that arrives renews the lease.
    this.#renewLease(id, entry);
  }

  /** Null: complete. A refusal frees the slot and the blocks. */
  commit(id: string): Refusal | null {
    const entry = this.#entries.get(id);
    if (entry === undefined) return refuse("unknown_id", `no KV is held under id ${id}`);
    const missing = entry.blocks.filter((block) => block === undefined).length;
    if (entry.damaged || missing > 0) {
      this.release(id);
      return entry.damaged
        ? refuse("bad_checksum", "a block arrived damaged")
        : refuse("missing_blocks", `${missing} of ${entry.blocks.length} blocks did not arrive`);
    }
    entry.ready = true;
    this.#renewLease(id, entry);
    return null;
  }

  /**
   * Takes complete KV out, with its slot. Null: no complete KV is held under this id, and the request fails; KV that
   * arrives for it later has no use.
   */
  claim(id: string): { header: KvHeader; blocks: readonly Buffer[] } | null {
    const entry = this.#entries.get(id);
    if (entry?.ready !== true) {
      this.release(id);
      return null;
    }
    this.#remove(id, entry);
    return { header: entry.header, blocks: entry.blocks.filter((block) => block !== undefined) };
  }

  /** Frees KV that will not be claimed, now or when it arrives. True if there was any. */
  release(id: string): boolean {
    const entry = this.#entries.get(id);
    if (entry === undefined) {
      this.#settled.add(id);
      return false;
    }
    this.#remove(id, entry);
    this.#options.space.releaseSlot(entry.header.token_count);
    return true;
  }

  /** The same for all KV of a request, by its X-Request-Id. Returns how many were held. */
  releaseRequest(requestId: string): number {
    const held = [...this.#entries.keys()].filter((id) => requestIdsOf(id).includes(requestId));
    for (const id of held) this.release(id);
    this.#settled.add(requestId);
    this.#released.add(requestId);
    return held.length;
  }

  /**
   * A request that was aborted may arrive after the release of its KV, because they travel on two connections. Its caller
   * is gone.
   */
  wasReleased(id: string): boolean {
    return this.#released.has(id);
  }

  held(): HeldKv[] {
    const nowMs = this.#options.clock.nowMs();
    return [...this.#entries].map(([id, entry]) => ({
      id,
      tokens: entry.header.token_count,
      bytes: entry.blocks.reduce((sum, block) => sum + (block?.length ?? 0), 0),
      stage: entry.ready ? "ready" : "filling",
      age_ms: Math.round(nowMs - entry.sinceMs),
    }));
  }

  close(): void {
    for (const id of [...this.#entries.keys()]) this.release(id);
  }

  #remove(id: string, entry: Entry): void {
    entry.lease.cancel();
    this.#entries.delete(id);
    this.#settled.add(id);
  }

  #renewLease(id: string, entry: Entry): void {
    entry.lease.cancel();
    entry.lease = this.#startLease(id);
  }

  #startLease(id: string): Timer {
    return this.#options.clock.setTimer(this.#options.leaseMs, () => {
      this.leasesExpired++;
      this.release(id);
    });
  }
}

function refuse(reason: Refusal["reason"], message: string): Refusal {
  return { reason, message };
}
