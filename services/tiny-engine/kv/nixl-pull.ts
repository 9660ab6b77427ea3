// The decode side of nixl: one handshake per prefill engine, then reads. Handshakes run one after the
// other, as in vLLM, so one dead address delays the next; a known engine that is gone fails at once.
import type { Clock, Timer } from "../../common/clock.ts";
import { dialKv, type KvPeer } from "./sockets.ts";
import { parseBlocks, parseJson, type KvMessage } from "./wire.ts";

/** The location of the KV, from `kv_transfer_params`. */
export interface Remote {
  readonly engineId: string;
  readonly requestId: string;
  readonly address: string;
  readonly blockIds: readonly number[];
}

interface Link {
  readonly peer: KvPeer;
  readonly pulls: Map<string, Pull>;
}

interface Pull {
  readonly blocks: (Buffer | undefined)[];
  damaged: boolean;
  readonly settle: (blocks: readonly Buffer[] | Error) => void;
}

export class NixlPuller {
  readonly #clock: Clock;
  readonly #modelHash: () => string;
  readonly #timeoutMs: number;
  readonly #links = new Map<string, Link>();
  #handshakes: Promise<unknown> = Promise.resolve();
  #pullCount = 0;
  receivedBytes = 0;

  /** @param timeoutMs Timeout of a handshake, and of a read. vLLM: 5 s. */
  constructor(clock: Clock, timeoutMs: number, modelHash: () => string) {
    this.#clock = clock;
    this.#timeoutMs = timeoutMs;
    this.#modelHash = modelHash;
  }

  /** @throws Error that says why the blocks cannot be read. */
  async pull(remote: Remote, signal: AbortSignal): Promise<readonly Buffer[]> {
    const known = this.#links.get(remote.engineId);
    const link = known ?? (await this.#handshakeInTurn(remote));
    if (link.peer.lost) throw new Error(`engine ${remote.engineId} is gone`);
    const pullId = String(++this.#pullCount);
    return new Promise((resolve, reject) => {
      const settle = (result: readonly Buffer[] | Error): void => {
        if (!link.pulls.delete(pullId)) return;
        timer.cancel();
        signal.removeEventListener("abort", onAbort);
        // Also after a failure, so that the prefill engine can free the blocks before the lease ends.
        if (!link.peer.lost) link.peer.send(["DONE", remote.requestId]);
        if (result instanceof Error) reject(result);
        else resolve(result);
      };
      const onAbort = (): void => settle(new Error("aborted"));
      const timer = this.#clock.setTimer(this.#timeoutMs, () =>
        settle(new Error(`engine ${remote.engineId} did not answer for ${this.#timeoutMs} ms`)),
      );
      link.pulls.set(pullId, {
        blocks: new Array<Buffer | undefined>(remote.blockIds.length).fill(undefined),
        damaged: false,
        settle,
      });
      signal.addEventListener("abort", onAbort, { once: true });
      link.peer.send(["PULL", pullId, JSON.stringify({ block_ids: remote.blockIds })]);
    });
  }

  #handshakeInTurn(remote: Remote): Promise<Link> {
    const handshake = this.#handshakes.then(() => this.#handshake(remote));
    this.#handshakes = handshake.catch(() => {});
    return handshake;
  }

  close(): void {
    for (const { peer } of this.#links.values()) peer.close();
    this.#links.clear();
  }

  async #handshake(remote: Remote): Promise<Link> {
    const known = this.#links.get(remote.engineId);
    if (known !== undefined) return known;
    const pulls = new Map<string, Pull>();
    let onFacts: (facts: Record<string, unknown> | null) => void = () => {};
    const peer = await dialKv(
      remote.address,
      (message) => {
        if (message.type === "FACTS") onFacts(parseJson(message.rest[0]));
        else this.#onMessage(pulls, message);
      },
      (reason) => {
        for (const { settle } of [...pulls.values()]) settle(new Error(reason));
      },
    );
    let timer: Timer | null = null;
    try {
      const facts = new Promise<Record<string, unknown> | null>((resolve, reject) => {
        onFacts = resolve;
        // Not earlier if the connection is refused: vLLM waits its whole timeout then too.
        const late = new Error(`no handshake with ${remote.address} within ${this.#timeoutMs} ms`);
        timer = this.#clock.setTimer(this.#timeoutMs, () => reject(late));
      });
      peer.send(["HELLO", remote.engineId, JSON.stringify({ engine_id: remote.engineId })]);
      const theirs = await facts;
      const theirId = theirs?.["engine_id"];
      if (theirs === null || theirId !== remote.engineId)
        throw new Error(`${remote.address} is engine ${String(theirId)}, not ${remote.engineId}`);
      if (theirs["model_hash"] !== this.#modelHash()) throw new Error(`${remote.address} runs another model`);
    } catch (error) {
      peer.close();
      throw error;
    } finally {
      (timer as Timer | null)?.cancel();
    }
    const link = { peer, pulls };
    this.#links.set(remote.engineId, link);
    return link;
  }

  #onMessage(pulls: Map<string, Pull>, message: KvMessage): void {
    const pull = pulls.get(message.id);
    if (pull === undefined) return;
    if (message.type === "BLOCK") {
      for (const { index, payload, intact } of parseBlocks(message.rest) ?? []) {
        if (!intact) pull.damaged = true;
        else if (index < pull.blocks.length) pull.blocks[index] = payload;
        this.receivedBytes += payload.length;
      }
    } else if (message.type === "END") {
      const blocks = pull.blocks.filter((block) => block !== undefined);
      if (pull.damaged) pull.settle(new Error("a block arrived damaged"));
      else if (blocks.length < pull.blocks.length)
        pull.settle(new Error(`${pull.blocks.length - blocks.length} blocks are gone`));
      else pull.settle(blocks);
    }
  }
}
