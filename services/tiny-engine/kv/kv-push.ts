// The prefill side of p2p-zmq: pushes KV to decode engines block by block, while the rest of the prompt is still being
// computed, and waits for their ACKs.
import type { Clock, Timer } from "../../common/clock.ts";
import { dialKv, type KvPeer } from "./sockets.ts";
import { blockMessages, parseJson, type KvHeader, type KvMessage } from "./wire.ts";

export type PushResult =
  | { readonly kind: "acked" }
  | { readonly kind: "refused"; readonly reason: string; readonly message: string }
  | { readonly kind: "lost"; readonly message: string };

/** One request's KV on its way. */
export interface Push {
  /** Sends the next blocks, in order. They are kept until the other side has granted a slot. */
  write(blocks: readonly Buffer[]): void;
  /** Marks the end: the last block was sent. */
  end(): void;
  /** Never rejects. Settles early if the other side refuses or is gone. */
  readonly settled: Promise<PushResult>;
}

export interface PushOptions {
  readonly id: string;
  readonly header: KvHeader;
  /** Corrupts one byte of the first block after its checksum was computed. */
  readonly corrupt: boolean;
}

interface Pending {
  onGrant(): void;
  settle(result: PushResult): void;
}

interface Link {
  readonly peer: Promise<KvPeer>;
  readonly pending: Map<string, Pending>;
}

export class KvPusher {
  readonly #links = new Map<string, Link>();
  readonly #timeoutMs: number;
  readonly #clock: Clock;
  sentBytes = 0;

  /** @param timeoutMs Timeout for an answer of the other side. */
  constructor(timeoutMs: number, clock: Clock) {
    this.#timeoutMs = timeoutMs;
    this.#clock = clock;
  }

  /** Asks `address` for a slot at once. An abort releases the blocks that the other side already holds. */
  open(address: string, { id, header, corrupt }: PushOptions, signal: AbortSignal): Push {
    const link = this.#links.get(address) ?? this.#dial(address);
    if (link.pending.has(id)) {
      const refused = {
        kind: "refused",
        reason: "duplicate_id",
        message: `KV under id ${id} is already on its way`,
      } as const;
      return { write() {}, end() {}, settled: Promise.resolve(refused) };
    }
    let peer: KvPeer | null = null;
    let queue: Buffer[] = [];
    let sentBlocks = 0;
    let ended = false;
    let timer: Timer | null = null;
    let done: (result: PushResult) => void = () => {};
    const settled = new Promise<PushResult>((resolve) => {
      done = resolve;
    });
    const settle = (result: PushResult): void => {
      if (!link.pending.delete(id)) return;
      timer?.cancel();
      signal.removeEventListener("abort", onAbort);
      queue = [];
      done(result);
    };
    const giveUp = (message: string): void => {
      void link.peer.then(
        (known) => {
          if (!known.lost) known.send(["RELEASE", id]);
        },
        () => {},
      );
      settle({ kind: "lost", message });
    };
    const onAbort = (): void => giveUp("the request was aborted");
    const awaitAnswer = (): void => {
      timer = this.#clock.setTimer(this.#timeoutMs, () =>
        giveUp(`${address} did not answer for ${this.#timeoutMs} ms`),
      );
    };
    /** Sends the waiting blocks once a slot is granted. */
    const flush = (): void => {
      if (peer === null || !link.pending.has(id)) return;
      for (const frames of blockMessages(id, queue, corrupt, sentBlocks)) peer.send(frames);
      sentBlocks += queue.length;
      for (const block of queue) this.sentBytes += block.length;
      queue = [];
      if (!ended) return;
      awaitAnswer();
      peer.send(["COMMIT", id]);
    };
    link.pending.set(id, {
      settle,
      onGrant() {
        timer?.cancel();
        void link.peer.then((known) => {
          peer = known;
          flush();
        });
      },
    });
    signal.addEventListener("abort", onAbort, { once: true });
    awaitAnswer();
    link.peer.then(
      (known) => known.send(["RESERVE", id, JSON.stringify(header)]),
      (error: unknown) => settle({ kind: "lost", message: String(error) }),
    );
    return {
      settled,
      write(blocks) {
        if (!link.pending.has(id)) return;
        queue.push(...blocks);
        flush();
      },
      end() {
        if (ended) return;
        ended = true;
        flush();
      },
    };
  }

  close(): void {
    for (const link of this.#links.values())
      void link.peer.then(
        (peer) => peer.close(),
        () => {},
      );
    this.#links.clear();
  }

  #dial(address: string): Link {
    const pending = new Map<string, Pending>();
    const link: Link = {
      pending,
      peer: dialKv(
        address,
        (message) => onMessage(pending, message),
        (reason) => {
          // The next push makes a new connection: the engine may have restarted, and has none of the blocks sent
          // before.
          if (this.#links.get(address) === link) this.#links.delete(address);
          for (const { settle } of [...pending.values()]) settle({ kind: "lost", message: reason });
        },
      ),
    };
    this.#links.set(address, link);
    return link;
  }
}

function onMessage(links: ReadonlyMap<string, Pending>, message: KvMessage): void {
  const pending = links.get(message.id);
  if (pending === undefined) return;
  if (message.type === "GRANT") {
    pending.onGrant();
  } else if (message.type === "ACK") {
    pending.settle({ kind: "acked" });
  } else if (message.type === "REFUSE") {
    const refusal = parseJson(message.rest[0]);
    pending.settle({ kind: "refused", reason: String(refusal?.["reason"]), message: String(refusal?.["message"]) });
  }
}
