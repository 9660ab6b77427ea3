// The sim: an Engine whose arithmetic is a clock and a hash. The queue, the slots, the KV
// bytes and their transfer from prefill to decode are real, and the answer is computed from the KV alone.
import type { Clock } from "../../common/clock.ts";
import type {
  Engine,
  EngineFailure,
  Finish,
  ModelFacts,
  SequenceHandle,
  SequenceRequest,
  TokenSink,
} from "../engine.ts";
import type { FaultBoard } from "../faults.ts";
import type { Connector, Fetched, KvSpace, RepeatableKv } from "../kv/connector.ts";
import { EngineMetrics, type FinishedReason } from "../metrics.ts";
import type { Message } from "../message.ts";
import { chatTokens } from "./chat-template.ts";
import { blockHashes, blocksOf, hex32, mix, promptState, readRows, stateName, type PromptState } from "./kv-rows.ts";
import { outputLogprobs, promptLogprobs } from "./logprobs.ts";
import { PrefixCache } from "./prefix-cache.ts";
import { Prose } from "./prose.ts";
import { Scheduler, type Timing } from "./scheduler.ts";
import { newSequence, type Sequence } from "./sequence.ts";
import { tokenizer } from "./tokenizer.ts";

export interface SimOptions {
  readonly modelName: string;
  readonly maxLength: number;
  /** Simulates other weights: another salt gives other texts, and KV that fits no other salt. */
  readonly hashSalt: string;
  readonly slots: number;
  readonly blockSize: number;
  readonly bytesPerToken: number;
  readonly kvTokenLimit: number;
  readonly timing: Timing;
  readonly clock: Clock;
  readonly faults: FaultBoard;
  readonly withNixl: boolean;
  /** Called when the engine core has died, before its process ends. */
  readonly onDeath: () => void;
}

/** Version of the vLLM API that the sim speaks. */
const VLLM_VERSION = "0.32.0";

/** vLLM's words for a request that the dying engine core takes with it. */
const CORE_DEAD: EngineFailure = {
  status: 500,
  type: "InternalServerError",
  param: null,
  message: "EngineCore encountered an issue. See stack trace (above) for the root cause.",
};

export class SimEngine implements Engine, KvSpace, RepeatableKv {
  readonly model: ModelFacts;
  readonly tokenizer = tokenizer;
  readonly metrics: EngineMetrics;
  readonly modelHash: string;
  readonly blockSize: number;
  readonly blockCount: number;
  readonly bytesPerToken: number;
  readonly layout = "rows";
  readonly maxLength: number;
  readonly #options: SimOptions;
  readonly #seed: number;
  readonly #scheduler: Scheduler;
  readonly #prefixCache: PrefixCache;
  /** Sequences that wait for their KV, or whose KV is on its way. */
  readonly #transferring = new Set<Sequence>();
  #connector: Connector | null = null;
  #alive = true;
  #hung = false;

  constructor(options: SimOptions) {
    this.#options = options;
    this.#seed = [...`${options.modelName}\n${options.hashSalt}`].reduce(
      (hash, letter) => mix(hash ^ letter.codePointAt(0)!),
      1,
    );
    this.modelHash = hex32(this.#seed) + hex32(mix(this.#seed + 1));
    this.blockSize = options.blockSize;
    this.bytesPerToken = options.bytesPerToken;
    this.maxLength = options.maxLength;
    this.model = {
      name: options.modelName,
      root: options.modelName,
      maxLength: options.maxLength,
      fingerprint: `vllm-${VLLM_VERSION}-${hex32(this.#seed)}`,
      version: VLLM_VERSION,
      takesGrammars: true,
    };
    const blockCount = Math.ceil(options.kvTokenLimit / options.blockSize);
    this.blockCount = blockCount;
    this.metrics = new EngineMetrics(
      options.modelName,
      {
        blockSize: options.blockSize,
        blockCount,
        maxLength: options.maxLength,
        bytesPerToken: options.bytesPerToken,
      },
      options.withNixl,
    );
    this.#prefixCache = new PrefixCache(blockCount);
    this.#scheduler = new Scheduler({
      slots: options.slots,
      kvTokenLimit: options.kvTokenLimit,
      timing: options.timing,
      clock: options.clock,
      metrics: this.metrics,
      onAdmit: (sequence) => this.#lookUpPrefix(sequence),
      onToken: (sequence, nowMs) => this.#onToken(sequence, nowMs),
    });
  }

  get alive(): boolean {
    return this.#alive;
  }
  get load(): number {
    return this.#scheduler.runningCount + this.#scheduler.waitingCount;
  }
  get runningCount(): number {
    return this.#scheduler.runningCount;
  }
  get waitingCount(): number {
    return this.#scheduler.waitingCount;
  }
  get kvTokens(): number {
    return this.#scheduler.usedTokens;
  }

  /** The connector needs the engine to exist; it is set once, before the first request. */
  useConnector(connector: Connector): void {
    this.#connector = connector;
  }
  holdSlot(tokens: number): boolean {
    return this.#scheduler.holdSlot(tokens);
  }
  releaseSlot(tokens: number): void {
    this.#scheduler.releaseSlot(tokens);
  }
  holdTokens(tokens: number): void {
    this.#scheduler.holdTokens(tokens);
  }
  releaseTokens(tokens: number): void {
    this.#scheduler.releaseTokens(tokens);
  }
  promptHash(tokens: readonly number[]): string {
    return stateName(promptState(tokens, this.#seed));
  }
  blocksOf(tokens: readonly number[]): Iterable<Buffer> {
    return blocksOf(tokens, this.blockSize, this.bytesPerToken, this.#seed);
  }

  chatTokens(messages: readonly Message[], openTurn: boolean, continueFinal: boolean): number[] {
    return chatTokens(messages, openTurn, continueFinal);
  }

  metricsText(): string {
    return this.metrics.text();
  }

  submit(request: SequenceRequest, sink: TokenSink): SequenceHandle {
    const sequence = newSequence(request, sink, this.#options.clock.nowMs());
    const handle: SequenceHandle = {
      get cachedTokens() {
        return sequence.cachedTokens;
      },
      promptLogprobs: (alternatives) => promptLogprobs(request.prompt, this.#seed, alternatives),
      abort: () => this.#abort(sequence),
    };
    if (!this.#alive) {
      this.#fail(sequence, CORE_DEAD);
      return handle;
    }
    this.metrics.arrived(request);
    const arrival = this.#connector?.arrive(request) ?? { kind: "compute" };
    if (arrival.kind === "compute") {
      this.#scheduler.enqueue(sequence);
    } else if (arrival.kind === "claim") {
      this.#adoptRows(sequence, arrival.blocks);
      this.#scheduler.runHeld(sequence, arrival.tokens);
    } else if (arrival.kind === "fetch") {
      void this.#fetch(sequence, arrival.fetch);
    } else if (arrival.kind === "refuse") {
      this.#fail(sequence, arrival.failure);
    } else if (arrival.kind === "kill") {
      this.die([sequence]);
    } else {
      this.#scheduler.setWedged(true);
      this.#scheduler.enqueue(sequence);
    }
    return handle;
  }

  /** Stops every step until undone; the fault "hang". Does not undo a wedge of another cause. */
  setHung(hung: boolean): void {
    if (hung === this.#hung) return;
    this.#hung = hung;
    this.#scheduler.setWedged(hung);
  }

  /** The engine core dies: all its sequences fail, and the process ends a moment later. */
  die(also: readonly Sequence[] = []): void {
    if (!this.#alive) return;
    this.#alive = false;
    for (const sequence of [...also, ...this.#transferring, ...this.#scheduler.sequences()])
      this.#fail(sequence, CORE_DEAD);
    this.#scheduler.close();
    this.#options.onDeath();
  }

  close(): void {
    this.#alive = false;
    for (const sequence of [...this.#transferring, ...this.#scheduler.sequences()]) this.#abort(sequence);
    this.#scheduler.close();
    this.#connector?.close();
  }

  #lookUpPrefix(sequence: Sequence): void {
    const { promptTokens } = sequence;
    const hits = this.#prefixCache.use(blockHashes(promptTokens, this.blockSize, this.#seed)) * this.blockSize;
    // The last prompt token is always computed: the first answer token is drawn from its result.
    const cached = Math.min(hits, Math.floor((promptTokens.length - 1) / this.blockSize) * this.blockSize);
    this.metrics.prefixQueries += promptTokens.length;
    this.metrics.prefixHits += cached;
    if (this.#options.withNixl) this.metrics.externalQueries += promptTokens.length - cached;
    sequence.cachedTokens = sequence.kvTokens = cached;
    sequence.prefillLeft -= cached;
  }

  /** From here on the sequence knows its prompt only from the transferred rows. */
  #adoptRows(sequence: Sequence, blocks: readonly Buffer[]): void {
    const length = sequence.request.prompt.length;
    const { state, tokens } = readRows(blocks, this.bytesPerToken, length);
    sequence.source = "transfer";
    sequence.prose = this.#prose(sequence, state, tokens);
    sequence.cachedTokens = sequence.kvTokens = length - 1;
    sequence.prefillLeft = 1;
    this.metrics.received(length);
  }

  async #fetch(sequence: Sequence, fetch: (signal: AbortSignal) => Promise<Fetched>): Promise<void> {
    sequence.state = "transferring";
    this.#transferring.add(sequence);
    const settled = this.#scheduler.defer();
    const fetched = await fetch(sequence.cancel.signal);
    settled();
    this.#transferring.delete(sequence);
    // An abort or the engine's death has already ended the sequence while it waited.
    if (sequence.cancel.signal.aborted || !this.#alive) return;
    if (fetched.kind === "failed") {
      this.#fail(sequence, fetched.failure);
      return;
    }
    this.#adoptRows(sequence, fetched.blocks);
    this.#scheduler.enqueue(sequence);
  }

  #prose(sequence: Sequence, state: PromptState, tokens: readonly number[]): Prose {
    const { temperature, seed } = sequence.request.sampling;
    const lane = temperature === 0 ? 0 : seed === null ? (Math.random() * 0x7fffffff) | 1 : mix(seed + 1) | 1;
    return new Prose(state, tokens, lane);
  }

  #onToken(sequence: Sequence, nowMs: number): void {
    const { request } = sequence;
    const { sampling, pace } = request;
    sequence.prose ??= this.#prose(sequence, promptState(sequence.promptTokens, this.#seed), sequence.promptTokens);
    if (pace !== null) {
      if (sequence.outputCount >= pace.stallAfterTokens) {
        sequence.notBeforeMs = Infinity;
        return;
      }
      sequence.notBeforeMs = nowMs + pace.extraMsPerToken;
    }
    const mayEnd = !sampling.ignoreEos && sequence.outputCount >= sampling.minTokens;
    const token = sequence.prose.next(mayEnd);
    sequence.outputCount++;
    sequence.outputTokens.push(token);
    const stopped = sequence.outputCount >= sampling.minTokens && sampling.stopTokenIds?.has(token) === true;
    const reason =
      token === this.tokenizer.eos || stopped ? "stop" : sequence.outputCount >= sampling.maxTokens ? "length" : null;
    this.metrics.generated(sequence, nowMs);
    const sending = sequence.outputCount === 1 ? this.#push(sequence) : null;
    if (sending === null) this.#give(sequence, token, reason, stopped ? token : null);
    else void this.#giveAfter(sending, sequence, token, reason, stopped ? token : null);
  }

  /** The sim has all blocks at once, when the prompt's time is over. */
  #push({ request, cancel }: Sequence): Promise<EngineFailure | null> | null {
    const outflow = this.#connector?.push(request, cancel.signal) ?? null;
    if (outflow === null) return null;
    outflow.write([...this.blocksOf(request.prompt)]);
    outflow.end();
    return outflow.settled;
  }

  async #giveAfter(
    sending: Promise<EngineFailure | null>,
    sequence: Sequence,
    token: number,
    reason: "stop" | "length" | null,
    stopReason: number | null,
  ): Promise<void> {
    const heldTokens = this.#scheduler.park(sequence);
    this.#transferring.add(sequence);
    const failure = await sending;
    this.#transferring.delete(sequence);
    this.#scheduler.releaseSlot(heldTokens);
    if (sequence.cancel.signal.aborted || !this.#alive) return;
    sequence.kvTokens = 0;
    if (failure !== null) this.#fail(sequence, failure);
    // A prefill engine's answer is one token long, whatever the text would have been.
    else this.#give(sequence, token, reason ?? "length", stopReason);
  }

  #give(sequence: Sequence, token: number, reason: "stop" | "length" | null, stopReason: number | null): void {
    const { request, sink } = sequence;
    const logprobs =
      request.sampling.logprobs === null
        ? null
        : outputLogprobs(
            token,
            sequence.outputCount,
            this.#seed ^ (sequence.prose?.basis ?? 0),
            request.sampling.logprobs,
          );
    const finish: Finish | null =
      reason === null ? null : { reason, stopReason, kvTransferParams: this.#offer(sequence) };
    const stopString = sink.token(token, finish, logprobs);
    if (reason !== null) this.#end(sequence, reason);
    else if (stopString) this.#end(sequence, "stop");
  }

  #offer(sequence: Sequence): Readonly<Record<string, unknown>> | null {
    if (this.#connector === null) return null;
    const kvTokens = [...sequence.promptTokens, ...sequence.outputTokens.slice(0, -1)];
    return this.#connector.offer(sequence.request, kvTokens, sequence.outputCount === 1 ? sequence.cachedTokens : null);
  }

  #abort(sequence: Sequence): void {
    if (sequence.ended) return;
    sequence.cancel.abort();
    this.#end(sequence, "abort");
  }

  #fail(sequence: Sequence, failure: EngineFailure): void {
    if (sequence.ended) return;
    sequence.cancel.abort();
    this.#end(sequence, "error");
    sequence.sink.fail(failure);
  }

  #end(sequence: Sequence, reason: FinishedReason): void {
    if (sequence.ended) return;
    sequence.ended = true;
    this.#scheduler.remove(sequence);
    this.metrics.ended(sequence, reason, this.#options.clock.nowMs());
  }
}
