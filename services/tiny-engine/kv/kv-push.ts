// The prefill side of p2p-zmq: pushes KV to decode engines block by block, while the rest of the prompt is still being
// computed, and waits for their ACKs.
import type { Clock } from "../../common/clock.ts";
import type { EngineFailure } from "../engine.ts";
import { kvFailure, type KvOutflow } from "./connector.ts";
import type { KvPeer, KvSockets } from "./sockets.ts";
import { blockMessages, parseJson, type KvHeader } from "./wire.ts";

export interface PushOptions {
  readonly id: string;
  readonly header: KvHeader;
  /** Corrupts one byte of the first block after its checksum was computed. */
  readonly corrupt: boolean;
}

export class KvPusher {
  readonly #sockets: KvSockets;
  readonly #clock: Clock;
  readonly #timeoutMs: number;
  readonly #peers = new Map<string, KvPeer>();
  sentBytes = 0;

  /** @param timeoutMs Timeout for an answer of the other side. */
  constructor(sockets: KvSockets, clock: Clock, timeoutMs: number) {
    this.#sockets = sockets;
    this.#clock = clock;
    this.#timeoutMs = timeoutMs;
  }

  /** Asks `address` for a slot at once. An abort releases the blocks that the other side already holds. */
  open(address: string, { id, header, corrupt }: PushOptions, signal: AbortSignal): KvOutflow {
    const peer = this.#peerAt(address);
    if (peer.isAsked(id)) {
      const settled = Promise.resolve(refused("duplicate_id", `KV under id ${id} is already on its way`));
      return { write() {}, end() {}, settled };
    }
    let queue: Buffer[] = [];
    let sentBlocks = 0;
    let granted = false;
    let ended = false;
    /** Sends the waiting blocks once a slot is granted. */
    const flush = (): void => {
      if (!granted || push.over) return;
      for (const frames of blockMessages(id, queue, corrupt, sentBlocks)) peer.send(frames);
      sentBlocks += queue.length;
      for (const block of queue) this.sentBytes += block.length;
      queue = [];
      if (!ended) return;
      push.expectAnswer();
      peer.send(["COMMIT", id]);
    };
    const patience = { clock: this.#clock, timeoutMs: this.#timeoutMs, signal };
    const push = peer.ask<EngineFailure | null>(id, patience, ({ type, rest }, asked) => {
      if (type === "GRANT") {
        asked.expectNothing();
        granted = true;
        flush();
      } else if (type === "ACK") {
        asked.end(null);
      } else if (type === "REFUSE") {
        const refusal = parseJson(rest[0]);
        asked.end(refused(String(refusal?.["reason"]), String(refusal?.["message"])));
      }
    });
    peer.send(["RESERVE", id, JSON.stringify(header)]);
    const settled = push.result.catch((error: Error) => {
      peer.send(["RELEASE", id]);
      return kvFailure(503, `kv_push_failed: ${error.message}`, "kv");
    });
    return {
      settled,
      write(blocks) {
        if (push.over) return;
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

  /** After a loss a new one: the engine may have restarted, and has none of the blocks sent before. */
  #peerAt(address: string): KvPeer {
    const known = this.#peers.get(address);
    if (known?.lost === false) return known;
    const peer = this.#sockets.dial(address);
    this.#peers.set(address, peer);
    return peer;
  }
}

function refused(reason: string, message: string): EngineFailure {
  return kvFailure(reason === "no_slots" ? 503 : 500, `kv_refused: ${reason}: ${message}`, "kv");
}
