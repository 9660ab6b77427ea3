// The prefill side of p2p-zmq: pushes one request's KV to a decode engine and waits for its ACK.
import type { Clock } from "../../common/clock.ts";
import { dialKv, type KvPeer } from "./sockets.ts";
import { blockMessages, parseJson, type KvHeader, type KvMessage } from "./wire.ts";

export type PushResult =
  | { readonly kind: "acked" }
  | { readonly kind: "refused"; readonly reason: string; readonly message: string }
  | { readonly kind: "lost"; readonly message: string };

export interface Push {
  readonly id: string;
  readonly header: KvHeader;
  readonly blocks: () => Iterable<Buffer>;
  readonly corrupt: boolean;
}

interface Pending {
  readonly push: Push;
  readonly settle: (result: PushResult) => void;
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

  constructor(timeoutMs: number, clock: Clock) {
    this.#timeoutMs = timeoutMs;
    this.#clock = clock;
  }

  /** Never rejects. An abort releases what the other side already holds. */
  push(address: string, push: Push, signal: AbortSignal): Promise<PushResult> {
    const link = this.#links.get(address) ?? this.#dial(address);
    if (link.pending.has(push.id)) {
      return Promise.resolve({ kind: "refused", reason: "duplicate_id", message: `KV under id ${push.id} is already on its way` });
    }
    return new Promise((resolve) => {
      const settle = (result: PushResult): void => {
        if (!link.pending.delete(push.id)) return;
        timer.cancel();
        signal.removeEventListener("abort", onAbort);
        resolve(result);
      };
      const giveUp = (message: string): void => {
        void link.peer.then((peer) => { if (!peer.lost) peer.send(["RELEASE", push.id]); }, () => {});
        settle({ kind: "lost", message });
      };
      const onAbort = (): void => giveUp("the request was aborted");
      const timer = this.#clock.setTimer(this.#timeoutMs, () => giveUp(`${address} did not answer for ${this.#timeoutMs} ms`));
      link.pending.set(push.id, { push, settle });
      signal.addEventListener("abort", onAbort, { once: true });
      link.peer.then((peer) => peer.send(["RESERVE", push.id, JSON.stringify(push.header)]),
        (error: unknown) => settle({ kind: "lost", message: String(error) }));
    });
  }

  close(): void {
    for (const link of this.#links.values()) void link.peer.then((peer) => peer.close(), () => {});
    this.#links.clear();
  }

  #dial(address: string): Link {
    const pending = new Map<string, Pending>();
    const link: Link = {
      pending,
      peer: dialKv(address, (message) => void this.#onMessage(link, message), (reason) => {
        // The next push dials afresh: the engine may be back, and nothing sent to the old one counts.
        if (this.#links.get(address) === link) this.#links.delete(address);
        for (const { settle } of [...pending.values()]) settle({ kind: "lost", message: reason });
      }),
    };
    this.#links.set(address, link);
    return link;
  }

  async #onMessage(link: Link, message: KvMessage): Promise<void> {
    const pending = link.pending.get(message.id);
    if (pending === undefined) return;
    if (message.type === "GRANT") {
      const peer = await link.peer;
      for (const frames of blockMessages(message.id, pending.push.blocks(), pending.push.corrupt)) peer.send(frames);
      this.sentBytes += pending.push.header.token_count * pending.push.header.bytes_per_token;
      peer.send(["COMMIT", message.id]);
    } else if (message.type === "ACK") {
      pending.settle({ kind: "acked" });
    } else if (message.type === "REFUSE") {
      const refusal = parseJson(message.rest[0]);
      pending.settle({ kind: "refused", reason: String(refusal?.["reason"]), message: String(refusal?.["message"]) });
    }
  }
}
