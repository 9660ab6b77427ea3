// What a leg says to an instance and hears from it, whatever carries the words: thin-link.ts has a gRPC call for each leg.
// No call, no stream and no encoding is named here, so that another carrier, such as one stream for all legs of an
// instance, needs no change of the runner.
import type { ServiceError } from "../../common/errors.ts";
import type { LegPath } from "../../kv/connector.ts";
import type { AnswerEnd } from "../request/request.ts";
import type { Ticket } from "./protocol.ts";

export interface InstanceLink {
  /** Asks a decode instance for a slot. `listener` hears nothing before this has returned. */
  reserve(reservation: Reservation, listener: DecodeListener): RemoteDecode;
  /** Has a prefill instance compute a prompt. `listener` hears nothing before this has returned. */
  prefill(order: PrefillOrder, listener: PrefillListener): RemotePrefill;
}

interface LegWords {
  /** Id of this attempt in both engines. */
  readonly legId: string;
  readonly path: LegPath;
  /** The client's, byte for byte. */
  readonly body: Buffer;
  /** Which prompt of the body's list; undefined where it has none. */
  readonly promptIndex: number | undefined;
  /** KV addresses of both engines, where the connector pairs by them. Empty otherwise. */
  readonly prefillKvAddress: string;
  readonly decodeKvAddress: string;
  /** What the instance shall take for the deadline of the leg; undefined: it has none. */
  readonly timeoutMs: number | undefined;
}

export interface Reservation extends LegWords {
  /** Whom the instance asks for prefill's outcome when the router is lost. Empty where there is no prefill. */
  readonly prefillGrpcAddress: string;
  /** What the client sees in place of the engine's own. */
  readonly face: {
    readonly id: string;
    readonly createdUnixS: number;
    readonly choiceIndex: number;
    readonly sampleIndex: number;
  };
}

export type PrefillOrder = LegWords;

/** A leg on its decode instance. Words to one that has ended are lost. */
export interface RemoteDecode {
  start(ticket: Ticket): void;
  /** The last word, to a reservation or a started answer: the instance ends the leg, and is listened to until then. */
  abandon(reason: string, nothingSent: boolean): void;
  /** Breaks off. Nothing more is heard, not even what was on its way. */
  cut(): void;
  /** Holds the instance back. A few events that are on their way still come. */
  pause(): void;
  resume(): void;
}

export interface DecodeListener {
  /** The slot is held. */
  onReserved(): void;
  /** Whole SSE events or the whole body; never empty. A view of the network's memory: copy to keep. */
  onEvents(events: Buffer): void;
  /** The whole answer was heard, and nothing follows. */
  onCompleted(end: AnswerEnd): void;
  /** It ended without a whole answer, and nothing follows. Undefined: in order, as an abandoned leg does. */
  onEnded(error: ServiceError | undefined): void;
}

export interface RemotePrefill {
  /** Nothing more is heard of it. Whether the engine stops depends on its connector. */
  cancel(): void;
}

export interface PrefillAnswer {
  readonly ticket: Ticket;
  readonly promptTokens: number;
  /** Bytes of KV that moved or will; undefined where the engine doesn't say. */
  readonly kvBytes: bigint | undefined;
  /** Log probability of the token that prefill wrote; undefined where the body asked for none. */
  readonly firstLogprob: number | undefined;
}

/** Hears exactly one of the two. */
export interface PrefillListener {
  onDone(answer: PrefillAnswer): void;
  onFailed(error: ServiceError): void;
}
