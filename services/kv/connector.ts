// A KV connector, as Tandem sees it: a table of traits, and pure functions that build the requests to the engines.
// The router reads the traits and mints ids; the instance builds the requests. Nothing here does I/O.
import type { Member } from "../common/json-body.ts";

export type ConnectorName = "p2p-zmq" | "p2p-nccl" | "nixl";

/** Paths of the engine's API that can be split into two legs. */
export type LegPath = "/v1/completions" | "/v1/chat/completions";

export interface Traits {
  readonly name: ConnectorName;
  /**
   * The decode instance is picked, and its slot reserved, before prefill runs, because its address is part of the id.
   */
  readonly decodeFirst: boolean;
  /** The engine-side request id carries both KV addresses. */
  readonly pairedId: boolean;
  /** An engine obeys a request to abort a prefill, and sends no KV. */
  readonly prefillCancellable: boolean;
  /**
   * How transferred KV of an abandoned request is freed. `drain`: by a decode leg of one token whose output is dropped.
   * `release`: by a call that drops the KV. `lease`: the KV expires.
   */
  readonly abandoned: "drain" | "release" | "lease";
  /** Engines also serve unpaired requests. If false, such a request is refused, or kills the engine. */
  readonly servesUnpaired: boolean;
  /**
   * How long the first KV transfer between two engines may take, in milliseconds, because it sets up their connection.
   * It is a first transfer again after each start of either engine. 0: no longer than any other.
   */
  readonly firstTransferMs: number;
  /** A prefill engine whose decode engine dies during a transfer waits forever, and serves no further request. */
  readonly wedgedByPartner: boolean;
}

/** One choice of one prompt, on its way through both engines. */
export interface LegSpec {
  /** 32 hex digits, fresh for every attempt. */
  readonly legId: string;
  readonly path: LegPath;
  /** The client's body: one valid JSON object in UTF-8 without duplicate keys. */
  readonly body: Buffer;
  /** The members of `body`, scanned once a leg. */
  readonly members: readonly Member[];
  /** host:port of the prefill engine's KV side channel. Empty where the connector doesn't pair by id. */
  readonly prefillKvAddress: string;
  /** host:port of the decode engine's KV side channel. Empty where the connector doesn't pair by id. */
  readonly decodeKvAddress: string;
  /** Which prompt of the body's list this leg is for. Absent if `prompt` is not a list. */
  readonly promptIndex?: number | undefined;
  /** Which of the prompt's n choices this leg is. */
  readonly sampleIndex: number;
  /** The engine is asked for a stream, though the client is not: the instance joins the answer. */
  readonly joined?: boolean;
}

/** One POST to an engine. */
export interface EngineRequest {
  readonly path: string;
  readonly headers: Readonly<Record<string, string>>;
  readonly body: Buffer;
}

export interface Connector {
  readonly traits: Traits;
  /** The one-token copy that computes the prompt's KV. Never streams: a streamed answer carries no ticket. */
  prefillRequest(context: LegSpec): EngineRequest;
  /**
   * The part of the prefill engine's answer that the decode leg needs: opaque JSON, or "" for nothing.
   * @param answer Parsed body of the prefill engine's 200 answer.
   * @throws ServiceError `kv_transfer_failed` if the engine answered but kept no KV.
   */
  ticket(answer: unknown): string;
  /**
   * Which prefill engine a decode engine fetches the KV from: another text after each start of that engine. Undefined:
   * the KV is there before the decode leg starts.
   */
  fetchedFrom(ticket: string): string | undefined;
  /** The request that continues from the KV. A streaming one always asks for the usage chunk. */
  decodeRequest(context: LegSpec, ticket: string): EngineRequest;
  /** The request of a leg without prefill. Undefined if engines serve no unpaired requests. */
  unpairedRequest(context: LegSpec): EngineRequest | undefined;
  /** The request that frees the KV of an abandoned leg. Undefined if the KV expires by itself. */
  settleRequest(context: LegSpec, ticket: string): EngineRequest | undefined;
}
