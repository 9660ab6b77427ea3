// A gRPC service, independent of the transport: server.ts serves it with @grpc/grpc-js, connect-handler.ts serves the
// same object over HTTP/1.1. Typed methods see protobuf-es messages; raw methods, the token path, see Buffers.
import {
  type DescMessage,
  type DescMethod,
  type DescService,
  type MessageInitShape,
  type MessageShape,
  create,
  fromBinary,
  toBinary,
} from "@bufbuild/protobuf";
import { type FailureCode, ServiceError } from "../common/errors.ts";

/** Longest message that is accepted or sent, in bytes. gRPC's own default of 4 MiB is too short for long prompts. */
export const MESSAGE_LIMIT_BYTES = 64 * 1024 * 1024;

/**
 * Who may call. `token`: instances and routers that know the join token. `key`: clients with the API key. Either is
 * open where no such secret is configured.
 */
export type Access = "open" | "token" | "key";

export interface CallContext extends Pick<RawCall, "deadlineMs" | "header"> {
  /** Aborts when the caller has cancelled or gone, or its deadline has passed. */
  readonly signal: AbortSignal;
  /** Aborts when the server begins to shut down. Endless calls should end then. */
  readonly closing: AbortSignal;
}

/**
 * One call on the token path: Buffers of whole protobuf messages, callbacks that the handler assigns before it returns.
 * A Buffer given to `write` must not be changed afterwards.
 */
export interface RawCall {
  /** When the caller gives up, by common/clock.ts. */
  readonly deadlineMs: number | undefined;
  /** Address and port of the caller, as the transport sees them. */
  readonly peer: string;
  /** First value of a request header, by lower-case name. */
  header(name: string): string | undefined;
  onMessage: (message: Buffer) => void;
  /** The caller has sent its last message. */
  onHalfClose: () => void;
  /** Called once, if the call was cancelled, broke or ran out of time before `end` or `fail`. */
  onCancel: () => void;
  /**
   * The caller has missed its heartbeats for 2 s: it is gone, or paused. Without a byte of it the call is cancelled
   * some seconds later.
   */
  onCallerSilent: () => void;
  onDrain: () => void;
  /** Returns false if the next write must wait for `onDrain`. Ignored once the call has ended. */
  write(message: Buffer): boolean;
  end(): void;
  fail(error: ServiceError): void;
  /** Stops reading: the caller is held back once its flow-control window is full. */
  pause(): void;
  resume(): void;
}

/** What the caller of a method sends, `T` being one message. */
export type Requests<M extends DescMethod, T, S = AsyncIterable<T>> = M["methodKind"] extends
  | "client_streaming"
  | "bidi_streaming"
  ? S
  : T;
/** What the caller gets, `T` being one message. */
export type Answers<M extends DescMethod, T> = M["methodKind"] extends "server_streaming" | "bidi_streaming"
  ? AsyncIterable<T>
  : Promise<T>;

type Method<M extends DescMethod> = (
  request: Requests<M, MessageShape<M["input"]>>,
  context: CallContext,
) => Answers<M, MessageInitShape<M["output"]>>;

/** Implementations by `localName` (`getInfo`). */
export type ServiceImpl<D extends DescService> = { readonly [K in keyof D["method"]]: Method<D["method"][K]> };

// RpcService erases the message types: only the descriptor ties request and answer together at run time.
export type AnyMethod = (request: any, context: CallContext) => Promise<any> | AsyncIterable<any>;

export interface RpcService {
  readonly descriptor: DescService;
  readonly access: Access;
  readonly typed: Readonly<Record<string, AnyMethod | undefined>>;
  readonly raw: Readonly<Record<string, ((call: RawCall) => void) | undefined>>;
}

/**
 * Ties an implementation to its descriptor. Methods named in `raw` need no typed implementation.
 *
 * @param impl Its methods are called without `this`.
 * @param options.access Defaults to `token`.
 */
export function defineService<D extends DescService, R extends keyof D["method"] = never>(
  descriptor: D,
  impl: Omit<ServiceImpl<D>, R>,
  options: { access?: Access; raw?: { readonly [K in R]: (call: RawCall) => void } } = {},
): RpcService {
  const { access = "token", raw = {} } = options;
  return { descriptor, access, typed: impl as RpcService["typed"], raw };
}

/** `/package.Service/Method`, as in `:path`. */
export function methodPath(service: { readonly typeName: string }, method: { readonly name: string }): string {
  return `/${service.typeName}/${method.name}`;
}

export function streamsIn({ methodKind }: DescMethod): boolean {
  return methodKind === "client_streaming" || methodKind === "bidi_streaming";
}

export function streamsOut({ methodKind }: DescMethod): boolean {
  return methodKind === "server_streaming" || methodKind === "bidi_streaming";
}

export function encode<D extends DescMessage>(schema: D, message: MessageInitShape<D>): Buffer {
  const bytes = toBinary(schema, create(schema, message));
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** @throws ServiceError `code` for bytes that are not a message. @param noun What they should be: "request". */
export function decode<D extends DescMessage>(
  schema: D,
  bytes: Buffer,
  noun: string,
  code: FailureCode,
): MessageShape<D> {
  try {
    return fromBinary(schema, bytes);
  } catch (cause) {
    throw new ServiceError(code, `The ${noun} is not a valid ${schema.typeName}.`, { cause });
  }
}
