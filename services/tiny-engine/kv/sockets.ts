// The ZeroMQ sockets of an engine: one ROUTER that it listens on, and a DEALER per engine it talks to.
// zeromq is loaded only when a connector needs it: it costs 20 ms and several MB.
import type { Dealer, Router } from "zeromq";
import type { Clock, Timer } from "../../common/clock.ts";
import { curveKeys } from "./curve.ts";
import { parseMessage, type Frame, type KvMessage } from "./wire.ts";

export interface KvSockets {
  /** The bound address, as `host:port`. */
  readonly address: string;
  /** Connects lazily, as ZeroMQ does: a peer without a listener is lost after the first failed try. */
  dial(address: string): KvPeer;
  /** Closes the listener and all peers. */
  close(): void;
}

export type Reply = (frames: Frame[]) => void;

export interface KvListen {
  /** `host:port`; the port may be 0. */
  readonly listen: string;
  /** What other engines must know. Empty: anyone who reaches the port may send and read KV. */
  readonly key: string;
  /** The longest payload of a block. */
  readonly blockBytes: number;
}

/**
 * Messages that wait to be read, from one sender; beyond that its connection is held back. What is sent is not bounded
 * here: a ROUTER would drop it, and transfers in flight bound it.
 */
const RECEIVE_LIMIT = 64;
/** For JSON, such as the list of all blocks of a long prompt. */
const JSON_LIMIT_BYTES = 1024 * 1024;
/** For strangers that connect and say nothing. */
const HANDSHAKE_LIMIT_MS = 5_000;

/** @throws Error when the address cannot be bound. */
export async function listenForKv(
  { listen: address, key, blockBytes }: KvListen,
  onMessage: (message: KvMessage, reply: Reply) => void,
): Promise<KvSockets> {
  const { Dealer, Router } = await import("zeromq");
  const options = {
    linger: 0,
    sendHighWaterMark: 0,
    receiveHighWaterMark: RECEIVE_LIMIT,
    maxMessageSize: Math.max(JSON_LIMIT_BYTES, 2 * blockBytes),
    handshakeInterval: HANDSHAKE_LIMIT_MS,
  };
  const keys = key === "" ? undefined : curveKeys(key);
  const asServer = keys && { curveServer: true, curveSecretKey: keys.secretKey };
  const asClient = keys && {
    curveServerKey: keys.publicKey,
    curvePublicKey: keys.publicKey,
    curveSecretKey: keys.secretKey,
  };
  const router = new Router({ ...options, ...asServer });
  await router.bind(`tcp://${address}`);
  const outbox = new Outbox(router);
  let peers: readonly KvPeer[] = [];
  void readAll(router, ([identity, ...frames]) => {
    const message = parseMessage(frames);
    if (identity !== undefined && message !== null) onMessage(message, (answer) => outbox.send([identity, ...answer]));
  });
  return {
    address: (router.lastEndpoint ?? `tcp://${address}`).slice("tcp://".length),
    dial(to) {
      const peer = new KvPeer(new Dealer({ ...options, ...asClient, reconnectInterval: 100 }), to);
      peers = [...peers.filter(({ lost }) => !lost), peer];
      return peer;
    },
    close() {
      router.close();
      for (const peer of peers) peer.close();
    },
  };
}

/** What was asked of a peer under an id, until the answer is complete. */
export interface Asked<T> {
  /** Rejects with the reason where it has no result: the peer is lost or silent, or the request was aborted. */
  readonly result: Promise<T>;
  readonly over: boolean;
  end(result: T | Error): void;
  /** Starts the time for the next message. */
  expectAnswer(): void;
  /** Stops it: it is this side's turn. */
  expectNothing(): void;
}

interface Patience {
  readonly clock: Clock;
  readonly timeoutMs: number;
  readonly signal?: AbortSignal;
}

export class KvPeer {
  readonly #address: string;
  readonly #dealer: Dealer;
  readonly #outbox: Outbox;
  readonly #asked = new Map<string, { onMessage(message: KvMessage): void; fail(reason: string): void }>();
  /** The other side is gone or never existed, or this side has closed. */
  lost = false;

  constructor(dealer: Dealer, address: string) {
    this.#dealer = dealer;
    this.#outbox = new Outbox(dealer);
    this.#address = address;
    dealer.events.on("connect:retry", () => this.#lose(`nothing listens on ${address}`));
    let met = false;
    dealer.events.on("handshake", () => (met = true));
    const closed = `${address} closed the connection`;
    dealer.events.on("disconnect", () => this.#lose(met ? closed : `${closed} at once: does it have the same kv.key?`));
    dealer.connect(`tcp://${address}`);
    void readAll(dealer, (frames) => {
      const message = parseMessage(frames);
      if (message !== null) this.#asked.get(message.id)?.onMessage(message);
    });
  }

  send(frames: Frame[]): void {
    if (!this.lost) this.#outbox.send(frames);
  }

  isAsked(id: string): boolean {
    return this.#asked.has(id);
  }

  /** Passes the messages that arrive under `id` to `onMessage`, which ends it. Sends nothing by itself. */
  ask<T>(
    id: string,
    { clock, timeoutMs, signal }: Patience,
    onMessage: (message: KvMessage, asked: Asked<T>) => void,
  ): Asked<T> {
    const waiting = this.#asked;
    let timer: Timer | undefined;
    let settle!: (result: T | Error) => void;
    const fail = (reason: string): void => asked.end(new Error(reason));
    const onAbort = (): void => fail("the request was aborted");
    const entry = { fail, onMessage: (message: KvMessage): void => onMessage(message, asked) };
    const asked: Asked<T> = {
      result: new Promise((resolve, reject) => {
        settle = (result) => (result instanceof Error ? reject(result) : resolve(result));
      }),
      get over() {
        return waiting.get(id) !== entry;
      },
      end(result) {
        if (asked.over) return;
        waiting.delete(id);
        timer?.cancel();
        signal?.removeEventListener("abort", onAbort);
        settle(result);
      },
      expectAnswer: () => {
        timer = clock.setTimer(timeoutMs, () => fail(`${this.#address} did not answer for ${timeoutMs} ms`));
      },
      expectNothing: () => timer?.cancel(),
    };
    waiting.set(id, entry);
    signal?.addEventListener("abort", onAbort, { once: true });
    asked.expectAnswer();
    return asked;
  }

  close(): void {
    if (this.lost) return;
    this.lost = true;
    this.#dealer.close();
  }

  #lose(reason: string): void {
    if (this.lost) return;
    this.close();
    for (const { fail } of [...this.#asked.values()]) fail(reason);
  }
}

/** Until the socket is closed. */
async function readAll(socket: AsyncIterable<Buffer[]>, onFrames: (frames: Buffer[]) => void): Promise<void> {
  try {
    for await (const frames of socket) onFrames(frames);
  } catch {
    // The socket was closed, which is the only way the loop ends.
  }
}

/** zeromq allows one `send` at a time per socket; this is the queue for it. Bounded by the transfers in flight. */
class Outbox {
  readonly #socket: Dealer | Router;
  readonly #queue: Frame[][] = [];
  #sending = false;

  constructor(socket: Dealer | Router) {
    this.#socket = socket;
  }

  send(frames: Frame[]): void {
    this.#queue.push(frames);
    if (!this.#sending) void this.#drain();
  }

  async #drain(): Promise<void> {
    this.#sending = true;
    try {
      for (let frames = this.#queue.shift(); frames !== undefined; frames = this.#queue.shift())
        await this.#socket.send(frames);
    } catch {
      // The socket was closed, or the peer of a ROUTER left. Callers that wait for an answer have a timeout.
      this.#queue.length = 0;
    }
    this.#sending = false;
  }
}
