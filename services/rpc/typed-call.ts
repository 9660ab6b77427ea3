// Typed methods over a RawCall: protobuf-es messages in, promises and async iterables out. Not for the token path.
import type { DescMethod, Message } from "@bufbuild/protobuf";
import type { Clock } from "../common/clock.ts";
import { ServiceError, asServiceError } from "../common/errors.ts";
import { Inbox } from "./inbox.ts";
import { type AnyMethod, type CallContext, type RawCall, decode, encode, streamsIn, streamsOut } from "./service.ts";

export interface TypedCallOptions {
  readonly clock: Clock;
  readonly closing: AbortSignal;
  /** Called with everything thrown that is not a ServiceError. */
  onBug(thrown: unknown): void;
}

export function serveTyped(method: DescMethod, impl: AnyMethod, call: RawCall, options: TypedCallOptions): void {
  const context = new TypedContext(call, options);
  let wake = (): void => {};
  const requests = new Inbox<Message>((bytes) => decode(method.input, bytes, "request", "invalid_request"), call);
  call.onMessage = (message) => requests.push(message);
  call.onHalfClose = () => requests.end();
  call.onDrain = () => wake();
  call.onCancel = () => {
    requests.fail(context.cancel());
    wake();
  };
  void answer().catch((thrown: unknown) => {
    if (context.cancelled !== undefined) return; // The caller is gone, and the abandoned handler threw on its way out.
    const error = asServiceError(thrown);
    if (error.code === "internal") options.onBug(thrown);
    call.fail(error);
  });

  async function answer(): Promise<void> {
    const result = impl(streamsIn(method) ? requests : await onlyOf(requests), context);
    if (!streamsOut(method)) {
      call.write(encode(method.output, await (result as Promise<Message>)));
      return call.end();
    }
    for await (const message of result as AsyncIterable<Message>) {
      if (context.cancelled !== undefined) return;
      // Until the caller reads again, or is gone.
      if (!call.write(encode(method.output, message)) && context.cancelled === undefined)
        await new Promise<void>((resolve) => (wake = resolve));
      if (context.cancelled !== undefined) return;
    }
    call.end();
  }
}

class TypedContext implements CallContext {
  readonly deadlineMs: number | undefined;
  readonly closing: AbortSignal;
  /** Set once the caller has cancelled or gone, or ran out of time. */
  cancelled: ServiceError | undefined;
  readonly #call: RawCall;
  readonly #clock: Clock;
  #controller: AbortController | undefined;

  constructor(call: RawCall, { clock, closing }: TypedCallOptions) {
    this.#call = call;
    this.#clock = clock;
    this.deadlineMs = call.deadlineMs;
    this.closing = closing;
  }

  // Made on demand: most unary methods never use it.
  get signal(): AbortSignal {
    this.#controller ??= new AbortController();
    if (this.cancelled !== undefined) this.#controller.abort(this.cancelled);
    return this.#controller.signal;
  }

  header(name: string): string | undefined {
    return this.#call.header(name);
  }

  cancel(): ServiceError {
    const late = this.deadlineMs !== undefined && this.#clock.nowMs() >= this.deadlineMs;
    this.cancelled = late
      ? new ServiceError("deadline_exceeded", "The call did not end in time.")
      : new ServiceError("cancelled", "The caller cancelled or disconnected.");
    this.#controller?.abort(this.cancelled);
    return this.cancelled;
  }
}

async function onlyOf(requests: Inbox<Message>): Promise<Message> {
  const first = await requests.next();
  if (first.done === true) throw new ServiceError("invalid_request", "The call carries no request message.");
  const second = await requests.next();
  if (second.done !== true)
    throw new ServiceError("invalid_request", "The call carries more than one request message.");
  return first.value;
}
