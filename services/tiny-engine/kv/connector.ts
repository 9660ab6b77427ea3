// The interface between an engine and its KV connector, in both directions.
// Neither side knows the other's internals, so a real model can use the same connectors.
import type { Clock } from "../../common/clock.ts";
import type { EngineFailure, SequenceRequest } from "../engine.ts";
import type { FaultBoard } from "../faults.ts";

/** How one sequence gets the KV of its prompt. */
export type Arrival =
  | Source
  | { readonly kind: "refuse"; readonly failure: EngineFailure }
  /** The engine core dies of it. */
  | { readonly kind: "kill" }
  /** The engine core waits for the KV forever, and all other sequences with it. */
  | { readonly kind: "wedge" };

export type Source =
  /** Computed here. */
  | { readonly kind: "compute" }
  /** Pushed here earlier. Its slot, which holds this many tokens, passes to the sequence. */
  | { readonly kind: "claim"; readonly blocks: readonly Buffer[]; readonly tokens: number }
  /** To be pulled from its prefill engine first. */
  | { readonly kind: "fetch"; readonly fetch: (signal: AbortSignal) => Promise<Fetched> };

export type Fetched =
  | { readonly kind: "blocks"; readonly blocks: readonly Buffer[] }
  | { readonly kind: "failed"; readonly failure: EngineFailure };

export interface Connector {
  arrive(request: SequenceRequest): Arrival;
  /** Begins to send a prompt's KV; the token is delivered once the transfer has settled. Null: nothing to send. */
  push(request: SequenceRequest, signal: AbortSignal): KvOutflow | null;
  /** Keeps the KV of a finished sequence for a decode engine, and says how to read it. Null: not requested. */
  offer(
    request: SequenceRequest,
    kvTokens: readonly number[],
    cachedTokens: number | null,
  ): Readonly<Record<string, unknown>> | null;
  /**
   * Drops KV held under an engine-level id, or under the request id inside one, and turns away KV that arrives under it
   * later. Returns how many were dropped.
   */
  release(id: string): number;
  /** Where other engines reach this one, as `host:port`. */
  readonly address: string;
  state(): ConnectorState;
  close(): void;
}

/** A prompt's KV on its way to a decode engine. */
export interface KvOutflow {
  /** The next blocks, in order. They are kept until the other side has granted a slot. */
  write(blocks: readonly Buffer[]): void;
  /** Marks the end: the last block was sent. */
  end(): void;
  /** Null: the KV arrived whole. A failure may be reported at any time, also before the end. Never rejects. */
  readonly settled: Promise<EngineFailure | null>;
}

export interface HeldKv {
  readonly id: string;
  readonly tokens: number;
  readonly bytes: number;
  readonly stage: "filling" | "ready";
  readonly age_ms: number;
}

/** KV of other engines' making by stage: arriving, complete and unclaimed, in a sequence that has not ended. */
export type KvStages = Readonly<Record<HeldKv["stage"] | "claimed", number>>;

export interface ConnectorState {
  readonly held: readonly HeldKv[];
  readonly leasesExpired: number;
  /** Transfers that arrived after their request had been settled, and were turned away. */
  readonly lateCount: number;
  readonly sentBytes: number;
  readonly receivedBytes: number;
}

/** What every connector is started with. */
export interface ConnectorOptions {
  readonly model: KvModel;
  /** `host:port`; the port may be 0. */
  readonly listen: string;
  /** Shared by all engines that exchange KV. Empty: none. */
  readonly key: string;
  readonly space: KvSpace;
  readonly faults: FaultBoard;
  readonly clock: Clock;
  /** How long unclaimed KV is kept. */
  readonly leaseMs: number;
}

/** The part of this engine's KV that a connector needs. */
export interface KvModel {
  readonly modelHash: string;
  /** In tokens. */
  readonly blockSize: number;
  /** Blocks of the whole cache. */
  readonly blockCount: number;
  readonly bytesPerToken: number;
  /** Layout of a block's bytes: equal for engines that understand each other's blocks. */
  readonly layout: string;
  /** Longest sequence in tokens. */
  readonly maxLength: number;
  promptHash(tokens: readonly number[]): string;
}

/** KV that can be made again on request. */
export interface RepeatableKv extends KvModel {
  blocksOf(tokens: readonly number[]): Iterable<Buffer>;
}

/** Accounting that connectors share with the scheduler. */
export interface KvSpace {
  /** Slot and tokens, for KV that will run here. False: there is none. */
  holdSlot(tokens: number): boolean;
  releaseSlot(tokens: number): void;
  /** Tokens alone, for KV that stays after its sequence. */
  holdTokens(tokens: number): void;
  releaseTokens(tokens: number): void;
}

export function kvFailure(status: number, message: string, param: string | null = null): EngineFailure {
  const type = status === 400 ? "BadRequestError" : status === 503 ? "ServiceUnavailableError" : "InternalServerError";
  return { status, type, message, param };
}
