// The messages between a leg and an instance, independent of their transport. thin-link.ts uses a gRPC call for each
// leg. This file mentions no call, stream or encoding, so that another transport, such as one stream for all legs of an
// instance, needs no change in the runner.
import type { ServiceError } from "../../common/errors.ts";
import type { LegPath } from "../../kv/connector.ts";
import type { AnswerEnd } from "../request/request.ts";
import type { Ticket } from "./protocol.ts";

export interface InstanceLink {
  /** Asks a decode instance for a slot. `listener` is not called before this returns. */
  reserve(reservation: Reservation, listener: DecodeListener): RemoteDecode;
  /** Has a prefill instance compute a prompt. `listener` is not called before this returns. */
  prefill(order: PrefillOrder, listener: PrefillListener): RemotePrefill;
}

interface LegWords {
  /** Id of this attempt in both engines. */
  readonly legId: string;
  readonly path: LegPath;
  /** The client's body, byte for byte. */
  readonly body: Buffer;
  /** Index into the body's list of prompts; undefined if it has no list. */
  readonly promptIndex: number | undefined;
  /** KV addresses of both engines, if the connector pairs by them. Otherwise empty. */
  readonly prefillKvAddress: string;
  readonly decodeKvAddress: string;
  /** The leg's timeout for the instance; undefined if it has none. */
  readonly timeoutMs: number | undefined;
}

export interface Reservation extends LegWords {
  /** The address that the instance asks for prefill's outcome if the router is lost. Empty without prefill. */
  readonly prefillGrpcAddress: string;
  /** Which instance that is. Empty without prefill. */
  readonly prefillInstanceId: string;
  /** The router's own request. */
  readonly probe: boolean;
  /** Values that the client sees in place of the engine's own. */
  readonly identity: {
    readonly id: string;
    /** Unix seconds. */
    readonly created: number;
    readonly choiceIndex: number;
    readonly sampleIndex: number;
  };
}

export type PrefillOrder = LegWords;

/** A leg on its decode instance. Messages to an ended leg are dropped. */
export interface RemoteDecode {
  start(ticket: Ticket): void;
  /** The last message, to a reservation or a started answer. The instance ends the leg, and may report until then. */
  abandon(reason: string, nothingSent: boolean): void;
  /** Breaks the leg off. The listener gets nothing more, not even messages that were on their way. */
  cut(): void;
  /** Holds the instance back. A few events that are on their way still arrive. */
  pause(): void;
  resume(): void;
}

export interface DecodeListener {
  /**
   * The slot is held.
   * @param reportsTokens Tokens are reported as they come, as events or otherwise. False: nothing comes before the whole answer.
   */
  onReserved(reportsTokens: boolean): void;
  /** The engine has gone on with an answer that will come whole. */
  onTokens(): void;
  /** Whole SSE events or the whole body; never empty. A view of the network's memory: copy to keep. */
  onEvents(events: Buffer): void;
  /** The whole answer has arrived, and nothing follows. */
  onCompleted(end: AnswerEnd): void;
  /** The leg ended without a whole answer, and nothing follows. Undefined: it ended in order, like an abandoned leg. */
  onEnded(error: ServiceError | undefined): void;
}

export interface RemotePrefill {
  /** The listener gets nothing more. Whether the engine stops depends on its connector. */
  cancel(): void;
}

export interface PrefillAnswer {
  readonly ticket: Ticket;
  readonly promptTokens: number;
  /** Bytes of KV that moved or will move; undefined if the engine doesn't report them. */
  readonly kvBytes: bigint | undefined;
  /** Log probability of the token that prefill wrote; undefined if the body asked for none. */
  readonly firstLogprob: number | undefined;
}

/** Gets exactly one of the two calls. */
export interface PrefillListener {
  onDone(answer: PrefillAnswer): void;
  onFailed(error: ServiceError): void;
}
