// Typed calls over a channel: protobuf-es messages, promises and async iterables. Not for the token path.
import type {
  DescMessage,
  DescMethod,
  DescMethodBiDiStreaming,
  DescService,
  MessageInitShape,
  MessageShape,
} from "@bufbuild/protobuf";
import { ServiceError } from "../common/errors.ts";
import type { HeartbeatOptions } from "./heartbeat.ts";
import { Inbox } from "./inbox.ts";
import { type Answers, type Requests, decode, encode, methodPath, streamsIn, streamsOut } from "./service.ts";
import type { OpenCall, ThinCall } from "./thin-call.ts";

export interface RpcCallOptions {
  /** Cancels the call, which then throws `cancelled`. */
  readonly signal?: AbortSignal | undefined;
  readonly timeoutMs?: number | undefined;
}

type Stream<T> = AsyncIterable<T> | Iterable<T>;

type ClientMethod<M extends DescMethod, I = MessageInitShape<M["input"]>> = (
  request: Requests<M, I, Stream<I>>,
  options?: RpcCallOptions,
) => Answers<M, MessageShape<M["output"]>>;

/** Methods by `localName`. All throw ServiceError. A streaming call starts at the first `next`; a break cancels it. */
export type RpcClient<D extends DescService> = { readonly [K in keyof D["method"]]: ClientMethod<D["method"][K]> };

export function typedClient<D extends DescService>(open: OpenCall, descriptor: D): RpcClient<D> {
  const methods = descriptor.methods.map((method) => {
    const call = (request: object, options: RpcCallOptions = {}): unknown => {
      const requests = streamsIn(method) ? (request as Stream<object>) : [request];
      const answers = answersOf(open, method, requests, options);
      return streamsOut(method) ? answers : only(answers);
    };
    return [method.localName, call];
  });
  return Object.fromEntries(methods) as RpcClient<D>;
}

/** Any method as a stream of answers. A unary method is a stream of one answer. */
async function* answersOf(
  open: OpenCall,
  method: DescMethod,
  requests: Stream<object>,
  { signal, timeoutMs }: RpcCallOptions,
): AsyncGenerator<unknown> {
  if (signal?.aborted === true) throw new ServiceError("cancelled", "The call was cancelled.");
  let over = false;
  let wake = (): void => {};
  /** The error that the requests threw. */
  let thrown: { readonly error: unknown } | undefined;
  const inbox = new Inbox((bytes) => decodeAnswer(method.output, bytes), {
    pause: () => call.pause(),
    resume: () => call.resume(),
  });
  const call: ThinCall = open(
    pathOf(method),
    {
      onMessage: (bytes) => inbox.push(bytes),
      onEnd(error) {
        over = true;
        wake();
        if (error === undefined) inbox.end();
        else inbox.fail(error);
      },
      onDrain: () => wake(),
    },
    { timeoutMs },
  );
  async function send(): Promise<void> {
    for await (const request of requests) {
      if (over) return;
      if (!call.write(encode(method.input, request as Record<string, unknown>)))
        await new Promise<void>((resolve) => (wake = resolve));
    }
    call.halfClose();
  }
  send().catch((error: unknown) => {
    thrown = { error };
    call.cancel();
  });
  const cancel = (): void => call.cancel();
  signal?.addEventListener("abort", cancel);
  try {
    yield* inbox;
  } catch (error) {
    throw thrown === undefined ? error : thrown.error;
  } finally {
    signal?.removeEventListener("abort", cancel);
    call.cancel();
  }
}

async function only(answers: AsyncGenerator<unknown>): Promise<unknown> {
  const first = await answers.next();
  const second = first.done === true ? first : await answers.next();
  if (first.done !== true && second.done === true) return first.value;
  await answers.return(undefined);
  throw new ServiceError("internal", "The peer did not answer with exactly one message.");
}

/** HeartbeatOptions, typed. */
export interface TypedHeartbeat<I extends DescMessage, O extends DescMessage> {
  /** A method whose server answers each message. */
  readonly method: DescMethodBiDiStreaming<I, O>;
  message(): MessageInitShape<I>;
  onMessage?(answer: MessageShape<O>): void;
  onRefused?(error: ServiceError | undefined): void;
}

export function untypedHeartbeat<I extends DescMessage, O extends DescMessage>(
  o: TypedHeartbeat<I, O>,
): HeartbeatOptions {
  return {
    path: pathOf(o.method),
    message: () => encode(o.method.input, o.message()),
    onMessage: (bytes) => o.onMessage?.(decodeAnswer(o.method.output, bytes)),
    onRefused: (error) => o.onRefused?.(error),
  };
}

const pathOf = (method: DescMethod): string => methodPath(method.parent, method);

const decodeAnswer = <D extends DescMessage>(schema: D, bytes: Buffer): MessageShape<D> =>
  decode(schema, bytes, "answer", "internal");
