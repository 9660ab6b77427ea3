// A channel to one peer: gRPC on node:http2 itself. On the token path, which uses only callbacks, a message costs about
// 5 us in total; with grpc-js 16 to 18 (Node 24, 256 streams). The channel alone decides how many connections it has:
// one, and after a GOAWAY two until the calls on the old one have ended.
import type { DescMessage, DescService } from "@bufbuild/protobuf";
import { type Clock, type Timer, systemClock } from "../common/clock.ts";
import { ServiceError } from "../common/errors.ts";
import { backoffMs } from "../common/lifecycle.ts";
import type { Log } from "../common/log.ts";
import { type RpcClient, type TypedHeartbeat, typedClient, untypedHeartbeat } from "./client.ts";
import { Connection, type LossReason } from "./connection.ts";
import type { HeartbeatOptions } from "./heartbeat.ts";
import { PACE } from "./liveness.ts";
import { MESSAGE_LIMIT_BYTES } from "./service.ts";
import type { CallOptions, ThinCall, ThinHandlers } from "./thin-call.ts";
import type { Tls } from "./tls.ts";

export { type LossReason, NO_ANSWER } from "./connection.ts";

export interface ChannelOptions<I extends DescMessage = DescMessage, O extends DescMessage = DescMessage> {
  /**
   * Join token. Each connection begins with a proof that both sides know it; the token itself is never sent. Empty or
   * left out: nothing is proven.
   */
  readonly token?: string | undefined;
  /** Over TLS the certificates of both sides take the place of the token. */
  readonly tls?: Tls | undefined;
  readonly log?: Log | undefined;
  readonly clock?: Clock;
  /** Default 2000. */
  readonly connectTimeoutMs?: number | undefined;
  /** Longest accepted message. Default 64 MiB. */
  readonly messageLimitBytes?: number;
  /**
   * The call that shows each side that the other is alive. With a heartbeat the channel connects at once, and
   * reconnects after each loss. Without one it connects for a call, and only TCP notices that the peer is gone.
   */
  readonly heartbeat?: TypedHeartbeat<I, O>;
  /** More time, in milliseconds, before a peer without heartbeats is given up. Asked again and again. Default: none. */
  readonly patienceMs?: () => number;
  onState?(state: ChannelState): void;
}

/**
 * - `idle`: no call was made yet.
 * - `connecting`: a connection is being made, and calls wait for it.
 * - `up`: the channel takes calls.
 * - `suspect`: as `up`, but no byte has come for 1.3 s, although the peer was asked for one.
 * - `down`: the last connection ended or failed. The next call makes a new one.
 * - `retired`: the channel takes no more calls, and closes with its last one.
 * - `closed`: permanently.
 */
export type ChannelState =
  | { readonly kind: "idle" | "connecting" | "up" | "suspect" | "retired" | "closed" }
  | { readonly kind: "down"; readonly because: LossReason; readonly cause: Error | undefined };

const REDIAL = { minMs: 50, maxMs: 1_000 };

/** Calls fail with `instance_unavailable` if there is no connection and none can be made. */
export function dialRpc<I extends DescMessage, O extends DescMessage>(
  address: string,
  options: ChannelOptions<I, O> = {},
): RpcChannel {
  const { heartbeat, ...rest } = options;
  return new RpcChannel(address, rest, heartbeat === undefined ? undefined : untypedHeartbeat(heartbeat));
}

/** Consecutive `failures`: connections and heartbeats that never got an answer. */
type State =
  | { readonly kind: "idle" | "retired" | "closed" }
  | { readonly kind: "open"; readonly connection: Connection; failures: number }
  | {
      readonly kind: "down";
      readonly because: LossReason;
      readonly cause: Error | undefined;
      readonly failures: number;
      readonly redial: Timer | undefined;
    };

export class RpcChannel implements AsyncDisposable {
  /** host:port. */
  readonly address: string;
  readonly #o: Omit<ChannelOptions, "heartbeat">;
  readonly #clock: Clock;
  readonly #heartbeat: HeartbeatOptions | undefined;
  /** All open connections: beside the one that takes new calls, others may be finishing theirs. */
  readonly #connections = new Set<Connection>();
  #state: State = { kind: "idle" };
  #toldKind: ChannelState["kind"] = "idle";

  constructor(address: string, o: Omit<ChannelOptions, "heartbeat">, heartbeat: HeartbeatOptions | undefined) {
    this.address = address;
    this.#o = o;
    this.#clock = o.clock ?? systemClock;
    this.#heartbeat = heartbeat;
    // In a later turn, so that no listener is called before the owner has the channel.
    if (heartbeat !== undefined) queueMicrotask(() => this.#state.kind === "idle" && this.#connect(0));
  }

  get state(): ChannelState {
    const state = this.#state;
    if (state.kind === "down") return { kind: "down", because: state.because, cause: state.cause };
    if (state.kind !== "open") return { kind: state.kind };
    const { kind } = state.connection.state;
    // The channel drops a draining or closed connection at once, so this state is not visible.
    return kind === "draining" || kind === "closed" ? { kind: "down", because: "ended", cause: undefined } : { kind };
  }

  /** Typed calls, off the token path. */
  client<D extends DescService>(descriptor: D): RpcClient<D> {
    return typedClient((path, handlers, options) => this.open(path, handlers, options), descriptor);
  }

  open(path: string, handlers: ThinHandlers, options?: CallOptions): ThinCall {
    const { kind } = this.#state;
    if (kind === "retired" || kind === "closed") return refusedCall(handlers);
    return this.#usable().open(path, handlers, options);
  }

  /**
   * Calls a unary method, or any method that answers with one message. Rejects with ServiceError.
   *
   * @param options.onCancelable Gets a function that cancels the call.
   */
  unary(
    path: string,
    message: Buffer,
    options: CallOptions & { onCancelable?(cancel: () => void): void } = {},
  ): Promise<Buffer> {
    return new Promise((resolve, reject) => {
      let answer: Buffer | undefined;
      let count = 0;
      const call = this.open(
        path,
        {
          onMessage(received) {
            answer = received;
            count++;
          },
          onEnd(error) {
            if (error !== undefined) reject(error);
            else if (answer !== undefined && count === 1) resolve(answer);
            else reject(new ServiceError("internal", `The peer answered with ${count} messages instead of one.`));
          },
        },
        options,
      );
      call.write(message);
      call.halfClose();
      options.onCancelable?.(() => call.cancel());
    });
  }

  /** Sends the heartbeat's message now, because it has changed. */
  beat(): void {
    if (this.#state.kind === "open") this.#state.connection.beat();
  }

  /** While the peer is suspect: ends, as lost, the calls that the peer has not begun to answer. The others go on. */
  dropUnanswered(): void {
    for (const connection of this.#connections) if (connection.state.kind === "suspect") connection.dropUnanswered();
  }

  /** Takes no more calls, and closes when the last call has ended. Resolves then. */
  retire(): Promise<void> {
    if (this.#state.kind !== "closed") this.#takeNoMore("retired");
    for (const connection of this.#connections) connection.drain();
    return this.#emptied();
  }

  /** Cancels the running calls. May be called twice. */
  [Symbol.asyncDispose](): Promise<void> {
    this.#takeNoMore("closed");
    for (const connection of this.#connections) connection.close();
    return this.#emptied();
  }

  #takeNoMore(kind: "retired" | "closed"): void {
    if (this.#state.kind === "down") this.#state.redial?.cancel();
    this.#state = { kind };
    this.#tell();
  }

  async #emptied(): Promise<void> {
    await Promise.all([...this.#connections].map(({ gone }) => gone));
    if (this.#state.kind === "retired") this.#takeNoMore("closed");
  }

  #usable(): Connection {
    if (this.#state.kind === "open" && this.#state.connection.checkOpen()) return this.#state.connection;
    const state = this.#state;
    return this.#connect(state.kind === "open" || state.kind === "down" ? state.failures : 0);
  }

  #connect(failures: number): Connection {
    if (this.#state.kind === "down") this.#state.redial?.cancel();
    const { token, tls, log, connectTimeoutMs = PACE.silenceMs, messageLimitBytes = MESSAGE_LIMIT_BYTES } = this.#o;
    const connection: Connection = new Connection({
      address: this.address,
      token,
      tls,
      clock: this.#clock,
      log,
      connectTimeoutMs,
      messageLimitBytes,
      heartbeat: this.#heartbeatOf(() => connection),
      patienceMs: this.#o.patienceMs,
      onState: (changed) => this.#changed(changed),
    });
    this.#connections.add(connection);
    void connection.gone.then(() => this.#connections.delete(connection));
    this.#state = { kind: "open", connection, failures };
    this.#tell();
    return connection;
  }

  /** The heartbeat of one connection. The owner only gets the answers on the connection that takes new calls. */
  #heartbeatOf(connection: () => Connection): HeartbeatOptions | undefined {
    const heartbeat = this.#heartbeat;
    if (heartbeat === undefined) return undefined;
    return {
      ...heartbeat,
      onMessage: (answer) => {
        if (this.#state.kind !== "open" || this.#state.connection !== connection()) return;
        this.#state.failures = 0;
        heartbeat.onMessage(answer);
      },
      onRefused: (error) => {
        if (this.#state.kind === "open" && this.#state.connection === connection()) heartbeat.onRefused(error);
      },
    };
  }

  #changed(connection: Connection): void {
    const { state } = connection;
    if (this.#state.kind === "retired" && state.kind === "up") connection.drain();
    if (this.#state.kind !== "open" || this.#state.connection !== connection) return;
    if (state.kind === "draining") this.#lost("ended", undefined, this.#state.failures);
    else if (state.kind === "closed" && state.because !== "disposed")
      this.#lost(state.because, state.cause, this.#state.failures);
    else this.#tell();
  }

  #lost(because: LossReason, cause: Error | undefined, failures: number): void {
    const again = (): unknown => this.#connect(failures + 1);
    const redial = this.#heartbeat === undefined ? undefined : this.#clock.setTimer(backoffMs(failures, REDIAL), again);
    this.#state = { kind: "down", because, cause, failures, redial };
    this.#tell();
  }

  #tell(): void {
    const { state } = this;
    if (state.kind === this.#toldKind) return;
    this.#toldKind = state.kind;
    this.#o.onState?.(state);
  }
}

function refusedCall(handlers: ThinHandlers): ThinCall {
  const nothing = (): void => {};
  setImmediate(() => handlers.onEnd(new ServiceError("instance_unavailable", "The channel is closed.")));
  return { write: () => true, halfClose: nothing, cancel: nothing, pause: nothing, resume: nothing };
}
