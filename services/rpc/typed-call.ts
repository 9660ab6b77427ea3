// Typed methods over a RawCall: protobuf-es messages in, promises and async iterables out. Not for the token path.
import { type DescMessage, type DescMethod, type Message, create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { ServiceError, asServiceError } from "../common/errors.ts";
import { Inbox } from "./inbox.ts";
import type { AnyMethod, CallContext, RawCall } from "./service.ts";

export interface TypedCallOptions {
  readonly closing: AbortSignal;
  /** Called with everything thrown that is not a ServiceError. */
  onBug(thrown: unknown): void;
}

export function serveTyped(method: DescMethod, impl: AnyMethod, call: RawCall, options: TypedCallOptions): void {
  const state = new CallState(call, options.closing);
  const requests = new Inbox((bytes) => decode(method.input, bytes), call);
  call.onMessage = (message) => requests.push(message);
  call.onHalfClose = () => requests.end();
  call.onDrain = () => state.wake();
  call.onCancel = () => {
    const error = state.cancel();
    requests.fail(error);
  };
  void answer().catch((thrown: unknown) => {
    if (state.cancelled) return; // The caller is gone, and the abandoned handler threw on its way out.
    const error = asServiceError(thrown);
    if (error.code === "internal") options.onBug(thrown);
    call.fail(error);
  });

  async function answer(): Promise<void> {
    const streamsIn = method.methodKind === "client_streaming" || method.methodKind === "bidi_streaming";
    const streamsOut = method.methodKind === "server_streaming" || method.methodKind === "bidi_streaming";
    const result = impl(streamsIn ? requests : await onlyOf(requests), state);
    if (!streamsOut) {
      call.write(encode(method.output, await (result as Promise<Message>)));
      return call.end();
    }
    for await (const message of result as AsyncIterable<Message>) {
      if (state.cancelled) return;
      if (!call.write(encode(method.output, message))) await state.drained();
      if (state.cancelled) return;
    }
    call.end();
  }
}

class CallState implements CallContext {
  readonly deadlineMs: number | undefined;
  readonly closing: AbortSignal;
  cancelled = false;
  readonly #call: RawCall;
  #controller: AbortController | undefined;
  #reason: ServiceError | undefined;
  #wake: (() => void) | undefined;

  constructor(call: RawCall, closing: AbortSignal) {
    this.#call = call;
    this.deadlineMs = call.deadlineMs;
    this.closing = closing;
  }

  // Made on demand: most unary methods never use it.
  get signal(): AbortSignal {
    this.#controller ??= new AbortController();
    if (this.cancelled) this.#controller.abort(this.#reason);
    return this.#controller.signal;
  }

  header(name: string): string | undefined {
    return this.#call.header(name);
  }

  cancel(): ServiceError {
    const late = this.deadlineMs !== undefined && Date.now() >= this.deadlineMs;
    this.#reason = late
      ? new ServiceError("deadline_exceeded", "The call did not end in time.")
      : new ServiceError("cancelled", "The caller cancelled or disconnected.");
    this.cancelled = true;
    this.wake();
    this.#controller?.abort(this.#reason);
    return this.#reason;
  }

  wake(): void {
    this.#wake?.();
  }

  /** Resolves when the caller reads again, or is gone. */
  drained(): Promise<void> {
    if (this.cancelled) return Promise.resolve();
    return new Promise((resolve) => {
      this.#wake = resolve;
    });
  }
}

/** The single request of a method. */
async function onlyOf(requests: Inbox<Message>): Promise<Message> {
  const first = await requests.next();
  if (first.done === true) throw new ServiceError("invalid_request", "The call carries no request message.");
  const second = await requests.next();
  if (second.done !== true)
    throw new ServiceError("invalid_request", "The call carries more than one request message.");
  return first.value;
}

function decode(schema: DescMessage, bytes: Buffer): Message {
  try {
    return fromBinary(schema, bytes);
  } catch (cause) {
    throw new ServiceError("invalid_request", `The request is not a valid ${schema.typeName}.`, { cause });
  }
}

function encode(schema: DescMessage, message: Message): Buffer {
  const bytes = toBinary(schema, create(schema, message));
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
