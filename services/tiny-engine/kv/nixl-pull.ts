// The decode side of nixl: one handshake per prefill engine, then reads. Handshakes run one after the
// other, as in vLLM, so one dead address delays the next; a known engine that is gone fails at once.
import { pause, type Clock } from "../../common/clock.ts";
import type { KvPeer, KvSockets } from "./sockets.ts";
import { parseBlocks, parseJson } from "./wire.ts";

/** The location of the KV, from `kv_transfer_params`. */
export interface Remote {
  readonly engineId: string;
  readonly requestId: string;
  readonly address: string;
  readonly blockIds: readonly number[];
}

export class NixlPuller {
  readonly #sockets: KvSockets;
  readonly #patience: { readonly clock: Clock; readonly timeoutMs: number };
  readonly #modelHash: string;
  /** By engine id. */
  readonly #peers = new Map<string, KvPeer>();
  #handshakes: Promise<unknown> = Promise.resolve();
  #pullCount = 0;
  receivedBytes = 0;

  /** @param timeoutMs Timeout of a handshake, and of a read. vLLM: 5 s. */
  constructor(sockets: KvSockets, clock: Clock, timeoutMs: number, modelHash: string) {
    this.#sockets = sockets;
    this.#patience = { clock, timeoutMs };
    this.#modelHash = modelHash;
  }

  /** @throws Error that says why the blocks cannot be read. */
  async pull({ engineId, requestId, address, blockIds }: Remote, signal: AbortSignal): Promise<readonly Buffer[]> {
    const peer = this.#peers.get(engineId) ?? (await this.#handshakeInTurn(engineId, address));
    if (peer.lost) throw new Error(`engine ${engineId} is gone`);
    const blocks = new Array<Buffer | undefined>(blockIds.length).fill(undefined);
    let damaged = false;
    const pullId = String(++this.#pullCount);
    const { result } = peer.ask<readonly Buffer[]>(pullId, { ...this.#patience, signal }, ({ type, rest }, asked) => {
      if (type === "BLOCK") {
        for (const { index, payload, intact } of parseBlocks(rest) ?? []) {
          if (!intact) damaged = true;
          else if (index < blocks.length) blocks[index] = payload;
          this.receivedBytes += payload.length;
        }
      } else if (type === "END") {
        const whole = blocks.filter((block) => block !== undefined);
        const missing = blocks.length - whole.length;
        if (damaged) asked.end(new Error("a block arrived damaged"));
        else if (missing > 0) asked.end(new Error(`${missing} blocks are gone`));
        else asked.end(whole);
      }
    });
    peer.send(["PULL", pullId, JSON.stringify({ block_ids: blockIds })]);
    // Also after a failure, so that the prefill engine can free the blocks before the lease ends.
    return result.finally(() => peer.send(["DONE", requestId]));
  }

  #handshakeInTurn(engineId: string, address: string): Promise<KvPeer> {
    const handshake = this.#handshakes.then(() => this.#peers.get(engineId) ?? this.#handshake(engineId, address));
    this.#handshakes = handshake.catch(() => {});
    return handshake;
  }

  async #handshake(engineId: string, address: string): Promise<KvPeer> {
    const peer = this.#sockets.dial(address);
    const { clock, timeoutMs } = this.#patience;
    const answered = new AbortController();
    const wholeTime = pause(clock, timeoutMs, answered.signal);
    try {
      const { result } = peer.ask<unknown>(engineId, this.#patience, ({ rest }, asked) =>
        asked.end(parseJson(rest[0])),
      );
      peer.send(["HELLO", engineId, JSON.stringify({ engine_id: engineId })]);
      const facts = await result.catch(async (error: unknown) => {
        // Not earlier if the connection is refused: vLLM waits its whole timeout then too.
        await wholeTime;
        throw error;
      });
      const theirs = facts as Readonly<Record<string, unknown>> | null;
      if (theirs?.["engine_id"] !== engineId)
        throw new Error(`${address} is engine ${String(theirs?.["engine_id"])}, not ${engineId}`);
      if (theirs["model_hash"] !== this.#modelHash) throw new Error(`${address} runs another model`);
    } catch (error) {
      peer.close();
      throw error;
    } finally {
      answered.abort();
    }
    this.#peers.set(engineId, peer);
    return peer;
  }
}
