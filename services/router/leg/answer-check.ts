// What the router believes of a decode instance's answer: that its events are whole, that it ends where it says, that it
// carries the client's id and nothing internal, and that it is not endless. An instance that breaks this is at fault,
// and nothing of the message is passed on.
// On the token path: 25 ns per event. A message is read closely if it is the first one, or doesn't look like it.
import { ServiceError } from "../../common/errors.ts";
import type { RelayRequest } from "../request/request.ts";

const LF = 10;
const OPEN_BRACKET = 0x5b;
const DATA = "data: ";
const DONE = "[DONE]";
/** Text can't match them, because quotes inside strings are escaped. */
const INTERNAL_VALUE = /"(?:kv|ec)_transfer_params"\s*:\s*[^\sn]/;
const ID = /^(?:data: )?\{"id"\s*:\s*"([^"]*)"/;
/** Bytes of the id at its end that are compared in each event: ids of one process differ there. */
const TAIL = 4;
/** Of a body that is searched for its id: engines write it first. */
const HEAD_BYTES = 4_096;

/** Generous: a token with twenty log probabilities takes 4 KB. */
const BYTES_PER_TOKEN = 16 * 1024;
/** With `echo` and `prompt_logprobs` the answer repeats the prompt. A token of it has at least one byte. */
const BYTES_PER_BODY_BYTE = 4 * 1024;
const BASE_BYTES = 1024 * 1024;

export class AnswerCheck {
  readonly #request: RelayRequest;
  readonly #limitBytes: number;
  #bytes = 0;
  /** Where the events of this leg carry the end of the id; 0: unknown. */
  #tailAt = 0;
  readonly #tail: Buffer;

  /** @param maxModelLen Limits an answer without max_tokens. 0: unknown. */
  constructor(request: RelayRequest, maxModelLen: number) {
    this.#request = request;
    this.#tail = Buffer.from(request.id.slice(-TAIL));
    const tokens = request.maxTokens ?? (maxModelLen > 0 ? maxModelLen : Infinity);
    this.#limitBytes = BASE_BYTES + tokens * BYTES_PER_TOKEN + request.body.length * BYTES_PER_BODY_BYTE;
  }

  /** Returns the fault of the instance if `events` can't be passed on. */
  faultOf(events: Buffer): ServiceError | undefined {
    this.#bytes += events.length;
    if (this.#bytes > this.#limitBytes) return fault("more than its request can ask for");
    if (!this.#request.stream) return this.#readClosely(events, events.subarray(0, HEAD_BYTES));
    let isPlain = this.#tailAt > 0;
    for (let start = 0; start < events.length; ) {
      let at = events.indexOf(LF, start);
      while (at >= 0 && events[at + 1] !== LF) at = events.indexOf(LF, at + 1);
      if (at < 0) return fault("half an event");
      if (events[start + DATA.length] === OPEN_BRACKET && events.toString("latin1", start + DATA.length, at) === DONE)
        return fault("the end of a stream that goes on");
      isPlain &&= this.#hasTail(events, start + this.#tailAt);
      start = at + 2;
    }
    return isPlain ? undefined : this.#readClosely(events, events);
  }

  #hasTail(events: Buffer, at: number): boolean {
    const tail = this.#tail;
    return (
      events[at] === tail[0] && events[at + 1] === tail[1] && events[at + 2] === tail[2] && events[at + 3] === tail[3]
    );
  }

  #readClosely(all: Buffer, head: Buffer): ServiceError | undefined {
    const { id, stream } = this.#request;
    if (INTERNAL_VALUE.test(all.toString("latin1"))) return fault("internal parameters");
    // Other engines may write the id elsewhere, or none.
    for (const event of stream ? head.toString("latin1").split("\n\n") : [head.toString("latin1")]) {
      const found = ID.exec(event);
      if (found === null) continue;
      if (found[1] !== id) return fault("an id that is not the client's");
      if (stream && id.length >= TAIL) this.#tailAt = event.indexOf(id) + id.length - TAIL;
    }
    return undefined;
  }
}

function fault(what: string): ServiceError {
  return new ServiceError("engine_failed", `The decode instance sent ${what}.`);
}
