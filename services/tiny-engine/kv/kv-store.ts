// KV that was pushed to this decode engine and is not claimed yet. Every entry has a lease from the
// moment its slot is reserved, so a prefill that dies half-way or a request that never arrives leaves
// nothing behind after the lease.
import type { Clock } from "../../common/clock.ts";
import type { Block, KvHeader, Refusal } from "./wire.ts";

export interface HeldKv {
  readonly id: string;
  readonly tokens: number;
  readonly bytes: number;
  readonly stage: "filling" | "ready";
  readonly age_ms: number;
}

interface Entry {
  readonly header: KvHeader;
  readonly blocks: (Buffer | undefined)[];
  readonly sinceMs: number;
  ready: boolean;
  damaged: boolean;
  endLease: () => void;
}

export interface KvStoreOptions {
  readonly modelHash: () => string;
  readonly blockSize: number;
  readonly bytesPerToken: number;
  readonly layout: string;
  /** Longest sequence in tokens. */ /** Of a sequence. */ readonly maxLength: number;
  readonly leaseMs: number;
  readonly clock: Clock;
  /** Keeps a slot for `tokens` tokens; false if there is none. */
  readonly holdSlot: (tokens: number) => boolean;
  readonly releaseSlot: (tokens: number) => void;
}

export class KvStore {
  readonly #options: KvStoreOptions;
  readonly #entries = new Map<string, Entry>();
  leasesExpired = 0;
  receivedBytes = 0;

  constructor(options: KvStoreOptions) {
    this.#options = options;
  }

  reserve(id: string, header: KvHeader): Refusal | null {
    const { modelHash, blockSize, bytesPerToken, layout, maxLength, holdSlot } = this.#options;
    if (header.model_hash !== modelHash()) {
      return {
        reason: "wrong_model",
        message: `the KV was made by model ${header.model_hash}, this engine runs ${modelHash()}`,
      };
    }
    if (header.block_size !== blockSize || header.bytes_per_token !== bytesPerToken) {
      const theirs = `blocks of ${header.block_size} tokens and ${header.bytes_per_token} bytes a token`;
      return { reason: "wrong_shape", message: `the KV has ${theirs}, this engine ${blockSize} and ${bytesPerToken}` };
    }
    if (header.layout !== layout) {
      return { reason: "wrong_shape", message: `the KV is laid out as ${header.layout}, this engine's as ${layout}` };
    }
    if (!Number.isSafeInteger(header.token_count) || header.token_count < 1) {
      return { reason: "bad_message", message: "token_count must be a positive integer" };
    }
    if (header.token_count > maxLength) {
      return {
        reason: "wrong_shape",
        message: `the KV has ${header.token_count} tokens, this engine takes ${maxLength}`,
      };
    }
    if (this.#entries.has(id)) return { reason: "duplicate_id", message: `KV under id ${id} is already held` };
    if (!holdSlot(header.token_count)) return { reason: "no_slots", message: "no KV slot is free" };
    const entry: Entry = {
      header,
      ready: false,
      damaged: false,
      sinceMs: this.#options.clock.nowMs(),
      endLease: () => {},
      blocks: new Array<Buffer | undefined>(Math.ceil(header.token_count / blockSize)).fill(undefined),
    };
    this.#entries.set(id, entry);
    this.#startLease(id, entry);
    return null;
  }

  /** Blocks of an id that is not held are dropped: their lease ended or they were released. */
  fill(id: string, blocks: readonly Block[]): void {
    const entry = this.#entries.get(id);
    if (entry === undefined || entry.ready) return;
    const { blockSize, bytesPerToken } = this.#options;
    for (const { index, payload, intact } of blocks) {
      const rows = Math.min(blockSize, entry.header.token_count - index * blockSize);
      if (index >= entry.blocks.length || payload.length !== rows * bytesPerToken || !intact) entry.damaged = true;
      else entry.blocks[index] = payload;
      this.receivedBytes += payload.length;
    }
    // A long prompt may take longer than a lease; each block that arrives renews the lease.
    this.#startLease(id, entry);
  }

  /** Null: complete. A refusal frees the slot and the blocks. */
  commit(id: string): Refusal | null {
    const entry = this.#entries.get(id);
    if (entry === undefined) return { reason: "unknown_id", message: `no KV is held under id ${id}` };
    if (entry.damaged) {
      this.release(id);
      return { reason: "bad_checksum", message: "a block arrived damaged" };
    }
    const missing = entry.blocks.filter((block) => block === undefined).length;
    if (missing > 0) {
      this.release(id);
      return { reason: "missing_blocks", message: `${missing} of ${entry.blocks.length} blocks did not arrive` };
    }
    entry.ready = true;
    this.#startLease(id, entry);
    return null;
  }

  /** Takes complete KV out, with its slot. Null: no complete KV is held under this id. */
  claim(id: string): { header: KvHeader; blocks: readonly Buffer[] } | null {
    const entry = this.#entries.get(id);
    if (entry === undefined || !entry.ready) return null;
    entry.endLease();
    this.#entries.delete(id);
    return { header: entry.header, blocks: entry.blocks.filter((block) => block !== undefined) };
  }

  /** Frees KV that will not be claimed. True if there was any. */
  release(id: string): boolean {
    const entry = this.#entries.get(id);
    if (entry === undefined) return false;
    entry.endLease();
    this.#entries.delete(id);
    this.#options.releaseSlot(entry.header.token_count);
    return true;
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

  #startLease(id: string, entry: Entry): void {
    entry.endLease();
    const timer = this.#options.clock.setTimer(this.#options.leaseMs, () => {
      this.leasesExpired++;
      this.release(id);
    });
    entry.endLease = () => timer.cancel();
  }
}
