// Links to an instance over its thin channel, with a bidirectional call for each decode leg and a unary call for each
// prefill leg.
import { fromBinary } from "@bufbuild/protobuf";
import { DecodeService, type End, EndSchema, FinishReason } from "#gen/tandem/decode/v1/decode_pb.js";
import { PrefillResponseSchema, PrefillService } from "#gen/tandem/prefill/v1/prefill_pb.js";
import { asServiceError, ServiceError } from "../../common/errors.ts";
import type { Log } from "../../common/log.ts";
import type { RpcChannel } from "../../rpc/channel.ts";
import { methodPath } from "../../rpc/service.ts";
import type { ThinCall } from "../../rpc/thin-call.ts";
import type { AnswerEnd } from "../request/request.ts";
import type {
  DecodeListener,
  InstanceLink,
  PrefillListener,
  PrefillOrder,
  RemoteDecode,
  RemotePrefill,
  Reservation,
} from "./instance-link.ts";
import type { Ticket } from "./protocol.ts";
import { abandonMessage, DecodeFrame, prefillMessage, reserveMessage, startMessage } from "./wire.ts";

const DECODE_PATH = methodPath(DecodeService, DecodeService.method.decode);
const PREFILL_PATH = methodPath(PrefillService, PrefillService.method.prefill);
/** Each message is used before the next one is read, so one frame serves all legs. */
const frame = new DecodeFrame();

export function thinLink(channel: RpcChannel, log: Log): InstanceLink {
  return {
    reserve: (reservation, listener) => new DecodeCall(channel, reservation, listener),
    prefill: (order, listener) => callPrefill(channel, order, listener, log),
  };
}

class DecodeCall implements RemoteDecode {
  readonly #call: ThinCall;
  readonly #listener: DecodeListener;
  #over = false;

  constructor(channel: RpcChannel, reservation: Reservation, listener: DecodeListener) {
    const { body, timeoutMs, ...fields } = reservation;
    this.#listener = listener;
    this.#call = channel.open(
      DECODE_PATH,
      { onMessage: (message) => this.#onMessage(message), onEnd: (error) => this.#onEnd(error) },
      { timeoutMs },
    );
    this.#call.write(reserveMessage(fields, body));
  }

  start(ticket: Ticket): void {
    // Not half-closed, because the leg may still have to be abandoned.
    this.#call.write(startMessage(ticket));
  }

  abandon(reason: string, nothingSent: boolean): void {
    this.#call.write(abandonMessage(reason, nothingSent));
    this.#readOut();
  }

  cut(): void {
    this.#over = true;
    this.#call.cancel();
  }

  pause(): void {
    this.#call.pause();
  }

  resume(): void {
    this.#call.resume();
  }

  /** Half-closes, and reads the rest: a call that is held back would never see its end. */
  #readOut(): void {
    this.#call.halfClose();
    this.#call.resume();
  }

  // The token path.
  #onMessage(message: Buffer): void {
    if (this.#over) return;
    frame.read(message);
    const { events, tokens, reserved, end } = frame;
    if (reserved) this.#listener.onReserved(frame.reportsTokens);
    if (events.length > 0 && !this.#over) this.#listener.onEvents(events);
    else if (tokens > 0 && !this.#over) this.#listener.onTokens();
    if (end === undefined || this.#over) return;
    const answerEnd = readEnd(end);
    this.#over = true;
    this.#readOut();
    this.#listener.onCompleted(answerEnd);
  }

  #onEnd(error: ServiceError | undefined): void {
    if (this.#over) return;
    this.#over = true;
    this.#listener.onEnded(error);
  }
}

/** @throws ServiceError `engine_failed` if the end can't be read, as for a whole message */
function readEnd(bytes: Buffer): AnswerEnd {
  let end: End;
  try {
    end = fromBinary(EndSchema, bytes);
  } catch (cause) {
    throw new ServiceError("engine_failed", "The decode instance sent an end that can't be read.", { cause });
  }
  const { finishReason, promptTokens, completionTokens, cachedTokens } = end;
  return { finishReason: wordOf(finishReason), promptTokens, completionTokens, cachedTokens };
}

/** OpenAI's word is the name of the value. Values of later versions count as `stop`, as decode.proto says. */
function wordOf(reason: FinishReason): string {
  if (reason === FinishReason.UNSPECIFIED) return "stop";
  return FinishReason[reason]?.toLowerCase() ?? "stop";
}

function callPrefill(channel: RpcChannel, order: PrefillOrder, listener: PrefillListener, log: Log): RemotePrefill {
  const { legId, path, body, promptIndex, prefillKvAddress, decodeKvAddress, timeoutMs } = order;
  const fields = { legId, path, promptIndex, prefillKvAddress, decodeKvAddress };
  let over = false;
  let cancel = (): void => {};
  channel
    .unary(PREFILL_PATH, prefillMessage(fields, body), {
      timeoutMs,
      onCancelable: (fn) => void (cancel = fn),
    })
    .then((bytes) => fromBinary(PrefillResponseSchema, bytes))
    .then(
      ({ ticket: text, cachedTokens, promptTokens, kvBytes, firstLogprob }) => {
        if (!over) listener.onDone({ ticket: { text, cachedTokens }, promptTokens, kvBytes, firstLogprob });
      },
      (thrown: unknown) => {
        if (!over) listener.onFailed(asServiceError(thrown));
      },
    )
    .catch((error: unknown) => log.error("a prefill leg's handler failed", { legId, error }));
  return {
    cancel() {
      over = true;
      cancel();
    },
  };
}
