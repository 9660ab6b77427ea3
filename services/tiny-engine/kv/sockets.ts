// The ZeroMQ sockets of an engine: one ROUTER that it listens on, and a DEALER per engine it talks to.
// zeromq is loaded only when a connector needs it: it costs 20 ms and several MB.
import type { Dealer, Router } from "zeromq";
import { parseMessage, type Frame, type KvMessage } from "./wire.ts";

export interface KvListener {
  /** The bound address, as `host:port`. */
  readonly address: string;
  close(): void;
}

export type Reply = (frames: Frame[]) => void;

/** @throws Error when the address cannot be bound. */
export async function listenForKv(
  address: string,
  onMessage: (message: KvMessage, reply: Reply) => void,
): Promise<KvListener> {
  const { Router } = await import("zeromq");
  const router = new Router({ linger: 0, sendHighWaterMark: 0, receiveHighWaterMark: 0 });
  await router.bind(`tcp://${address}`);
  const outbox = new Outbox(router);
  void (async () => {
    for await (const [identity, ...frames] of router) {
      const message = parseMessage(frames);
      if (identity !== undefined && message !== null)
        onMessage(message, (answer) => outbox.send([identity, ...answer]));
    }
  })().catch(() => {
    /* The socket was closed, which is the only way the loop ends. */
  });
  return {
    address: (router.lastEndpoint ?? `tcp://${address}`).slice("tcp://".length),
    close: () => router.close(),
  };
}

export interface KvPeer {
  send(frames: Frame[]): void;
  /** The other side is gone or never existed; nothing more arrives. */
  readonly lost: boolean;
  close(): void;
}

/** Connects lazily, as ZeroMQ does: a peer without a listener is reported lost after the first failed try. */
export async function dialKv(
  address: string,
  onMessage: (message: KvMessage) => void,
  onLost: (reason: string) => void,
): Promise<KvPeer> {
  const { Dealer } = await import("zeromq");
  const dealer = new Dealer({ linger: 0, sendHighWaterMark: 0, receiveHighWaterMark: 0, reconnectInterval: 100 });
  const outbox = new Outbox(dealer);
  let lost = false;
  const lose = (reason: string): void => {
    if (lost) return;
    lost = true;
    dealer.close();
    onLost(reason);
  };
  dealer.events.on("connect:retry", () => lose(`nothing listens on ${address}`));
  dealer.events.on("disconnect", () => lose(`${address} closed the connection`));
  dealer.connect(`tcp://${address}`);
  void (async () => {
    for await (const frames of dealer) {
      const message = parseMessage(frames);
      if (message !== null) onMessage(message);
    }
  })().catch(() => {
    /* Closed. */
  });
  return {
    send: (frames) => outbox.send(frames),
    get lost() {
      return lost;
    },
    close: () => {
      lost = true;
      dealer.close();
    },
  };
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
