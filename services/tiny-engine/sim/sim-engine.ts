// The sim: an engine whose arithmetic is a clock and a hash. The queue, the slots, the KV
// bytes and their transfer from prefill to decode are real, and the answer is computed from the KV alone.
import type { EngineFailure, Message, ModelFacts, SequenceRequest, TokenLogprobs, TokenSink } from "../engine.ts";
import { EngineCore, type CoreOptions } from "../engine-core.ts";
import type { Fetched, KvSpace, RepeatableKv, Source } from "../kv/connector.ts";
import { EngineMetrics } from "../metrics.ts";
import type { EngineOptions } from "../serve-engine.ts";
import { blockHashes, blocksOf, hex32, mix, promptState, readRows, stateName, type PromptState } from "./kv-rows.ts";
import { outputLogprobs, promptLogprobs } from "./logprobs.ts";
import { PrefixCache } from "./prefix-cache.ts";
import { Prose } from "./prose.ts";
import { Scheduler, type Timing } from "./scheduler.ts";
import { SimSequence } from "./sim-sequence.ts";
import { tokenizer } from "./tokenizer.ts";

export interface SimEngineOptions extends EngineOptions, Partial<Timing> {
  /** Simulates other weights: another salt gives other texts, and KV that fits no other salt. */
  readonly hashSalt?: string;
  readonly kvBlockSize?: number;
  /** A multiple of 4. */
  readonly kvBytesPerToken?: number;
}

/** Version of the vLLM API that the sim speaks. */
const VLLM_VERSION = "0.32.0";

export class SimEngine extends EngineCore<SimSequence> {
  readonly kind = "sim";
  readonly model: ModelFacts;
  readonly tokenizer = tokenizer;
  readonly metrics: EngineMetrics;
  readonly kv: RepeatableKv;
  readonly #seed: number;
  readonly #withNixl: boolean;
  readonly #scheduler: Scheduler;
  readonly #prefixCache: PrefixCache;

  constructor(options: SimEngineOptions, core: CoreOptions) {
    super(core);
    const { modelName = "tandem-sim", maxLength = 8_192, hashSalt = "", kvSlots = 64 } = options;
    const { kvBlockSize: blockSize = 16, kvBytesPerToken: bytesPerToken = 256 } = options;
    const { kvTokenLimit = kvSlots * maxLength } = options;
    const seed = [...`${modelName}\n${hashSalt}`].reduce((hash, letter) => mix(hash ^ letter.codePointAt(0)!), 1);
    this.#seed = seed;
    this.model = {
      name: modelName,
      root: modelName,
      maxLength,
      fingerprint: `vllm-${VLLM_VERSION}-${hex32(seed)}`,
      version: VLLM_VERSION,
      takesGrammars: true,
    };
    this.kv = {
      modelHash: hex32(seed) + hex32(mix(seed + 1)),
      blockSize,
      blockCount: Math.ceil(kvTokenLimit / blockSize),
      bytesPerToken,
      layout: "rows",
      maxLength,
      promptHash: (tokens) => stateName(promptState(tokens, seed)),
      blocksOf: (tokens) => blocksOf(tokens, blockSize, bytesPerToken, seed),
    };
    this.#withNixl = options.connector === "nixl";
    this.metrics = new EngineMetrics(modelName, this.kv, this.#withNixl);
    this.#prefixCache = new PrefixCache(this.kv.blockCount);
    this.#scheduler = new Scheduler({
      slots: kvSlots,
      kvTokenLimit,
      prefillMsPerToken: options.prefillMsPerToken ?? 0.05,
      decodeMsPerToken: options.decodeMsPerToken ?? 8,
      requestMs: options.requestMs ?? 0,
      stepTokenLimit: options.stepTokenLimit ?? 2_048,
      clock: core.clock,
      metrics: this.metrics,
      onAdmit: (sequence) => this.#lookUpPrefix(sequence),
      onToken: (sequence, nowMs) => this.#onToken(sequence, nowMs),
    });
  }

  get space(): KvSpace {
    return this.#scheduler;
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

  /** "role: content" and a turn end for each message, then the assistant's turn. */
  chatTokens(messages: readonly Message[], openTurn: boolean, continueFinal: boolean): number[] {
    const parts: number[][] = [[tokenizer.bos]];
    messages.forEach(({ role, content }, index) => {
      parts.push(tokenizer.encode(`${role}: ${content}`));
      if (!continueFinal || index < messages.length - 1) parts.push([tokenizer.turnEnd], tokenizer.encode("\n"));
    });
    if (openTurn && !continueFinal) parts.push(tokenizer.encode("assistant: "));
    return parts.flat();
  }

  protected newSequence(request: SequenceRequest, sink: TokenSink): SimSequence {
    return new SimSequence(request, sink, this.clock.nowMs());
  }

  protected accept(sequence: SimSequence, source: Source): void {
    if (source.kind === "compute") {
      this.#scheduler.enqueue(sequence);
    } else if (source.kind === "claim") {
      this.#adoptRows(sequence, source.blocks);
      this.#scheduler.runHeld(sequence, source.tokens);
    } else {
      void this.#fetch(sequence, source.fetch);
    }
  }

  protected promptLogprobs({ request }: SimSequence, alternatives: number): (TokenLogprobs | null)[] {
    return promptLogprobs(request.prompt, this.#seed, alternatives);
  }

  protected free(sequence: SimSequence): void {
    this.#scheduler.remove(sequence);
  }

  protected halt(halted: boolean): void {
    this.#scheduler.setWedged(halted);
  }

  protected shutDown(): void {
    this.#scheduler.close();
  }

  protected override offer(sequence: SimSequence): Readonly<Record<string, unknown>> | null {
    if (this.connector === null) return null;
    const { request, outputTokens } = sequence;
    const kvTokens = [...request.prompt, ...outputTokens.slice(0, -1)];
    return this.connector.offer(request, kvTokens, sequence.outputCount === 1 ? sequence.cachedTokens : null);
  }

  #lookUpPrefix(sequence: SimSequence): void {
    const { prompt } = sequence.request;
    const { blockSize } = this.kv;
    const hits = this.#prefixCache.use(blockHashes(prompt, blockSize, this.#seed)) * blockSize;
    // The last prompt token is always computed: the first answer token is drawn from its result.
    const cached = Math.min(hits, Math.floor((prompt.length - 1) / blockSize) * blockSize);
    this.metrics.prefixQueries += prompt.length;
    this.metrics.prefixHits += cached;
    if (this.#withNixl) this.metrics.externalQueries += prompt.length - cached;
    sequence.cachedTokens = sequence.kvTokens = cached;
    sequence.prefillLeft -= cached;
  }

  /** From here on the sequence knows its prompt only from the transferred rows. */
  #adoptRows(sequence: SimSequence, blocks: readonly Buffer[]): void {
    const { length } = sequence.request.prompt;
    const { state, tokens } = readRows(blocks, this.kv.bytesPerToken, length);
    sequence.prose = this.#prose(sequence, state, tokens);
    sequence.cachedTokens = sequence.kvTokens = length - 1;
    sequence.prefillLeft = 1;
    this.metrics.received(length);
  }

  async #fetch(sequence: SimSequence, fetch: (signal: AbortSignal) => Promise<Fetched>): Promise<void> {
    sequence.state = "transferring";
    const settled = this.#scheduler.defer();
    const fetched = await fetch(sequence.cancel.signal);
    settled();
    // An abort or the engine's death has already ended the sequence while it waited.
    if (sequence.cancel.signal.aborted) return;
    if (fetched.kind === "failed") {
      this.fail(sequence, fetched.failure);
      return;
    }
    this.#adoptRows(sequence, fetched.blocks);
    this.#scheduler.enqueue(sequence);
  }

  #prose(sequence: SimSequence, state: PromptState, tokens: readonly number[]): Prose {
    const { temperature, seed } = sequence.request.sampling;
    const lane = temperature === 0 ? 0 : seed === null ? (Math.random() * 0x7fffffff) | 1 : mix(seed + 1) | 1;
    return new Prose(state, tokens, lane);
  }

  #onToken(sequence: SimSequence, nowMs: number): void {
    const { request } = sequence;
    const { sampling, pace } = request;
    sequence.prose ??= this.#prose(sequence, promptState(request.prompt, this.#seed), request.prompt);
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
      token === tokenizer.eos || stopped ? "stop" : sequence.outputCount >= sampling.maxTokens ? "length" : null;
    const stopReason = stopped ? token : null;
    this.metrics.generated(sequence, nowMs);
    const sending = sequence.outputCount === 1 ? this.#push(sequence) : null;
    if (sending === null) this.#give(sequence, token, reason, stopReason);
    // A prefill engine's answer is one token long, whatever the text would have been.
    else void this.#giveAfter(sending, sequence, token, reason ?? "length", stopReason);
  }

  /** The sim has all blocks at once, when the prompt's time is over. */
  #push({ request, cancel }: SimSequence): Promise<EngineFailure | null> | null {
    const outflow = this.connector?.push(request, cancel.signal) ?? null;
    if (outflow === null) return null;
    outflow.write([...this.kv.blocksOf(request.prompt)]);
    outflow.end();
    return outflow.settled;
  }

  async #giveAfter(
    sending: Promise<EngineFailure | null>,
    sequence: SimSequence,
    ...token: [token: number, reason: "stop" | "length", stopReason: number | null]
  ): Promise<void> {
    const heldTokens = this.#scheduler.park(sequence);
    const failure = await sending;
    this.#scheduler.releaseSlot(heldTokens);
    if (sequence.cancel.signal.aborted) return;
    sequence.kvTokens = 0;
    if (failure === null) this.#give(sequence, ...token);
    else this.fail(sequence, failure);
  }

  #give(sequence: SimSequence, token: number, reason: "stop" | "length" | null, stopReason: number | null): void {
    const { logprobs: alternatives } = sequence.request.sampling;
    const seed = this.#seed ^ (sequence.prose?.basis ?? 0);
    const logprobs = alternatives === null ? null : outputLogprobs(token, sequence.outputCount, seed, alternatives);
    this.give(sequence, token, reason, stopReason, logprobs);
  }
}
