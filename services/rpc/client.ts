// Calls off the token path: typed, with promises and async iterables, over @grpc/grpc-js.
import {
  type CallOptions as GrpcCallOptions,
  Client,
  type ClientDuplexStream,
  Metadata,
  type ServiceError as GrpcError,
  credentials,
} from "@grpc/grpc-js";
import {
  type DescMessage,
  type DescMethod,
  type DescMethodBiDiStreaming,
  type DescMethodClientStreaming,
  type DescMethodServerStreaming,
  type DescMethodUnary,
  type DescService,
  type MessageInitShape,
  type MessageShape,
  create,
  fromBinary,
  toBinary,
} from "@bufbuild/protobuf";
import { ServiceError } from "../common/errors.ts";
import { DETAILS_HEADER, fromStatus } from "./errors-wire.ts";
import { methodPath } from "./service.ts";

export interface RpcCallOptions {
  /** Cancels the call, which then throws `cancelled`. */
  readonly signal?: AbortSignal | undefined;
  readonly timeoutMs?: number | undefined;
  readonly headers?: Readonly<Record<string, string>>;
}

type ClientMethod<M> =
  M extends DescMethodUnary<infer I extends DescMessage, infer O extends DescMessage>
    ? (request: MessageInitShape<I>, options?: RpcCallOptions) => Promise<MessageShape<O>>
    : M extends DescMethodServerStreaming<infer I extends DescMessage, infer O extends DescMessage>
      ? (request: MessageInitShape<I>, options?: RpcCallOptions) => AsyncIterable<MessageShape<O>>
      : M extends DescMethodClientStreaming<infer I extends DescMessage, infer O extends DescMessage>
        ? (requests: AsyncIterable<MessageInitShape<I>>, options?: RpcCallOptions) => Promise<MessageShape<O>>
        : M extends DescMethodBiDiStreaming<infer I extends DescMessage, infer O extends DescMessage>
          ? (requests: AsyncIterable<MessageInitShape<I>>, options?: RpcCallOptions) => AsyncIterable<MessageShape<O>>
          : never;

/** Methods by `localName`. All throw ServiceError. A stream's call begins with its first `next`, and a break cancels it. */
export type RpcClient<D extends DescService> = { readonly [K in keyof D["method"]]: ClientMethod<D["method"][K]> };

export interface RpcChannel {
  /** host:port. */
  readonly address: string;
  client<D extends DescService>(descriptor: D): RpcClient<D>;
  /** Cancels what runs. May be called twice. */
  [Symbol.asyncDispose](): Promise<void>;
}

/** Connects at the first call, and again after a loss with a pause of 50 ms to 1 s; calls fail at once in between. */
export function dialRpc(address: string, { token }: { token?: string | undefined } = {}): RpcChannel {
  const client = new Client(address, credentials.createInsecure(), {
    "grpc.max_receive_message_length": 64 * 1024 * 1024,
    "grpc.max_send_message_length": 64 * 1024 * 1024,
    "grpc-node.flow_control_window": 1024 * 1024,
    // Retries are the caller's, who knows which calls may be repeated.
    "grpc.enable_retries": 0,
    "grpc.enable_http_proxy": 0,
    "grpc.service_config_disable_resolution": 1,
    "grpc.enable_channelz": 0,
    // A connection of its own, so that closing this channel closes it.
    "grpc.use_local_subchannel_pool": 1,
    "grpc.initial_reconnect_backoff_ms": 50,
    "grpc.max_reconnect_backoff_ms": 1000,
    // Side effect, see shutDown in server.ts: after GOAWAY a running call ends at the next PING, as lost.
    "grpc.keepalive_time_ms": 1000,
    "grpc.keepalive_timeout_ms": 1500,
  });
  const running = new Set<{ cancel(): void }>();

  function begin(options: RpcCallOptions): { metadata: Metadata; callOptions: GrpcCallOptions } {
    const metadata = new Metadata();
    for (const [name, value] of Object.entries(options.headers ?? {})) metadata.set(name, value);
    if (token) metadata.set("authorization", `Bearer ${token}`);
    return {
      metadata,
      callOptions: options.timeoutMs === undefined ? {} : { deadline: Date.now() + options.timeoutMs },
    };
  }

  /** Any method as a stream of answers. Unary ones are streams of one. */
  async function* stream(
    path: string,
    method: DescMethod,
    requests: AsyncIterable<object> | Iterable<object>,
    options: RpcCallOptions,
  ): AsyncGenerator<unknown> {
    if (options.signal?.aborted === true) throw new ServiceError("cancelled", "The call was cancelled.");
    const { metadata, callOptions } = begin(options);
    const call = client.makeBidiStreamRequest<Buffer, Buffer>(path, asIs, asIs, metadata, callOptions);
    let answered = false;
    let sendProblem: unknown;
    call.on("error", () => {}); // The loop below throws it; after the loop nobody would listen.
    call.on("metadata", () => (answered = true));
    const cancel = (): void => call.cancel();
    options.signal?.addEventListener("abort", cancel);
    running.add(call);
    let over = false;
    const sending = send(call, method.input, requests, () => over).catch((thrown: unknown) => {
      if (over) return;
      sendProblem = thrown;
      call.cancel();
    });
    try {
      for await (const bytes of call) yield decode(method.output, bytes as Buffer);
    } catch (thrown) {
      if (sendProblem !== undefined) throw sendProblem;
      throw asOurs(thrown, answered);
    } finally {
      over = true;
      running.delete(call);
      options.signal?.removeEventListener("abort", cancel);
      call.cancel();
      void sending;
    }
  }

  async function single(answers: AsyncGenerator<unknown>): Promise<unknown> {
    const first = await answers.next();
    const second = first.done === true ? first : await answers.next();
    if (first.done === true || second.done !== true) {
      await answers.return(undefined);
      throw new ServiceError("internal", "The peer did not answer with exactly one message.");
    }
    return first.value;
  }

  return {
    address,
    client<D extends DescService>(descriptor: D): RpcClient<D> {
      const methods = descriptor.methods.map((method) => {
        const path = methodPath(descriptor, method);
        const streamsIn = method.methodKind === "client_streaming" || method.methodKind === "bidi_streaming";
        const streamsOut = method.methodKind === "server_streaming" || method.methodKind === "bidi_streaming";
        const call = (request: object, options: RpcCallOptions = {}): unknown => {
          const answers = stream(path, method, streamsIn ? (request as AsyncIterable<object>) : [request], options);
          return streamsOut ? answers : single(answers);
        };
        return [method.localName, call];
      });
      return Object.fromEntries(methods) as RpcClient<D>;
    },
    async [Symbol.asyncDispose]() {
      for (const call of running) call.cancel();
      client.close();
    },
  };
}

const asIs = (bytes: Buffer): Buffer => bytes;

/** Writes what `requests` yields, as fast as the peer takes it. */
async function send(
  call: ClientDuplexStream<Buffer, Buffer>,
  schema: DescMessage,
  requests: AsyncIterable<object> | Iterable<object>,
  over: () => boolean,
): Promise<void> {
  for await (const request of requests) {
    if (over()) return;
    const bytes = toBinary(schema, create(schema, request as Record<string, unknown>));
    if (call.write(Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength))) continue;
    await drained(call);
  }
  if (!over()) call.end();
}

/** Until the peer takes more, or the call is over. */
function drained(call: ClientDuplexStream<Buffer, Buffer>): Promise<void> {
  return new Promise((resolve) => {
    const done = (): void => {
      call.off("drain", done).off("close", done);
      resolve();
    };
    call.on("drain", done).on("close", done);
  });
}

function decode(schema: DescMessage, bytes: Buffer): unknown {
  try {
    return fromBinary(schema, bytes);
  } catch (cause) {
    throw new ServiceError("internal", `The answer is not a valid ${schema.typeName}.`, { cause });
  }
}

function asOurs(thrown: unknown, answered: boolean): ServiceError {
  if (thrown instanceof ServiceError) return thrown;
  const { code, details, metadata } = thrown as Partial<GrpcError>;
  if (typeof code !== "number") return new ServiceError("internal", "The call failed.", { cause: thrown });
  const detailsBin = metadata?.get(DETAILS_HEADER)[0];
  return fromStatus(code, details ?? "", typeof detailsBin === "string" ? undefined : detailsBin, answered);
}
