// The embedded engine, whose arithmetic is a real model's, in a worker thread. This side admits sequences, passes on
// their tokens, and moves their KV; it never computes.
import { createHash } from "node:crypto";
import { TANDEM_VERSION } from "../../common/version.ts";
import type { Message, ModelFacts, SequenceRequest, Tokenizer, TokenLogprobs, TokenSink } from "../engine.ts";
import { EngineCore, type CoreOptions } from "../engine-core.ts";
import { kvFailure, type KvModel, type KvSpace, type Source } from "../kv/connector.ts";
import { EngineMetrics } from "../metrics.ts";
import type { ModelFile } from "./model-file.ts";
import { createRoom, type Room } from "./room.ts";
import { addCommand, Run, tokenLimit } from "./run.ts";
import { KV_BLOCK_TOKENS } from "./shape.ts";
import { kvLayout, kvRowBytes } from "./worker/kv-rows.ts";
import type { GivenKv, GivenToken, Report } from "./worker/messages.ts";
import type { LlamaWorker } from "./worker/start-worker.ts";

export interface ServedModel {
  readonly file: Omit<ModelFile, "bytes">;
  readonly modelName: string;
  /** The file's, unless another is claimed. */
  readonly modelHash: string;
  /** Prompt and answer together, in tokens; at most the model's context. */
  readonly maxLength: number;
  readonly slots: number;
  /** KV of all sequences together. */
  readonly blockCount: number;
}

export class LlamaEngine extends EngineCore<Run> {
  readonly kind = "embedded";
  readonly model: ModelFacts;
  readonly tokenizer: Tokenizer;
  readonly metrics: EngineMetrics;
  readonly kv: KvModel;
  readonly space: KvSpace;
  readonly #file: Omit<ModelFile, "bytes">;
  readonly #worker: LlamaWorker;
  readonly #room: Room;
  readonly #runs = new Map<number, Run>();
  #waiting: Run[] = [];
  #count = 0;

  constructor(served: ServedModel, worker: LlamaWorker, core: CoreOptions) {
    super(core);
    const { file, modelName, modelHash, maxLength, slots, blockCount } = served;
    this.#file = file;
    this.#worker = worker;
    this.tokenizer = file.tokenizer;
    this.model = {
      name: modelName,
      root: file.name,
      maxLength,
      fingerprint: `tandem-${TANDEM_VERSION}-${file.hash.slice(0, 8)}`,
      version: TANDEM_VERSION,
      takesGrammars: false,
    };
    this.kv = {
      modelHash,
      blockSize: KV_BLOCK_TOKENS,
      blockCount,
      bytesPerToken: kvRowBytes(file.shape),
      layout: kvLayout(file.shape),
      maxLength,
      promptHash: (tokens) => createHash("sha256").update(Uint32Array.from(tokens)).digest("hex"),
    };
    const room = createRoom(slots, blockCount);
    this.#room = room;
    this.space = {
      // The length of the answer is not known yet for KV that is pushed here.
      holdSlot: () => room.take(maxLength),
      releaseSlot: () => {
        room.give(maxLength);
        this.#admit();
      },
      // No connector of this engine keeps KV after its sequence.
      holdTokens() {},
      releaseTokens() {},
    };
    this.metrics = new EngineMetrics(modelName, this.kv, false);
    worker.onReport = (report) => this.#onReport(report);
    worker.onDeath = () => this.die();
  }

  get runningCount(): number {
    return this.sequences.size - this.#waiting.length;
  }
  get waitingCount(): number {
    return this.#waiting.length;
  }
  get kvTokens(): number {
    return this.#room.takenTokens;
  }

  chatTokens(messages: readonly Message[], openTurn: boolean, continueFinal: boolean): number[] {
    return this.#file.chatTokens(messages, openTurn, continueFinal);
  }

  protected newSequence(request: SequenceRequest, sink: TokenSink): Run {
    const run = new Run(++this.#count, request, sink, this.clock.nowMs());
    this.#runs.set(run.id, run);
    return run;
  }

  protected accept(run: Run, source: Source): void {
    if (source.kind === "fetch") {
      this.fail(run, kvFailure(500, "the embedded engine fetches no KV"));
      return;
    }
    this.#waiting.push(run);
    if (source.kind === "compute") {
      this.#admit();
      return;
    }
    if (run.request.promptLogprobs === null) {
      // From here on the sequence knows its prompt only from the transferred KV.
      const { length } = run.request.prompt;
      run.kv = source.blocks;
      run.cachedTokens = length - 1;
      this.metrics.received(length);
    }
    // Replaces the blocks held for it, which are more than it can need, so the sequence starts at once.
    this.space.releaseSlot(source.tokens);
  }

  protected promptLogprobs({ promptLogprobs, request }: Run): readonly (TokenLogprobs | null)[] {
    return promptLogprobs ?? request.prompt.map(() => null);
  }

  protected free(run: Run, finished: boolean): void {
    this.#runs.delete(run.id);
    if (run.state !== "running") {
      this.#waiting = this.#waiting.filter((other) => other !== run);
    } else {
      if (!finished) this.#worker.send({ kind: "drop", id: run.id });
      this.#room.give(tokenLimit(run.request));
    }
    this.#admit();
  }

  protected halt(halted: boolean): void {
    this.#worker.send({ kind: "hang", hung: halted });
    this.#admit();
  }

  protected shutDown(): void {
    void this.#worker.close();
  }

  /** Waiting sequences start in order, even if a later one would already fit. */
  #admit(): void {
    if (this.halted || !this.alive) return;
    while (this.#waiting.length > 0 && this.#room.take(tokenLimit(this.#waiting[0]!.request)))
      this.#start(this.#waiting.shift()!);
    // Only here: the gauges of a hung engine don't change.
    this.metrics.running = this.runningCount;
    this.metrics.waiting = this.#waiting.length;
    this.metrics.kvUsageRatio = this.#room.usedRatio;
  }

  #start(run: Run): void {
    run.state = "running";
    run.scheduledMs = this.clock.nowMs();
    // Asks the decode engine for a slot while the prompt is computed here.
    run.outflow = this.connector?.push(run.request, run.cancel.signal) ?? null;
    this.#worker.send(addCommand(run, this.#file.eos));
    run.kv = null;
    void run.outflow?.settled.then((failure) => {
      if (failure !== null) this.fail(run, failure);
    });
  }

  #onReport(report: Report): void {
    if (report.rows > 0) this.metrics.observe("iteration_tokens_total", report.rows);
    for (const given of report.kv) this.#onKv(given);
    const nowMs = this.clock.nowMs();
    for (const given of report.tokens) this.#onToken(given, nowMs);
  }

  #onKv({ id, blocks, last }: GivenKv): void {
    const outflow = this.#runs.get(id)?.outflow;
    outflow?.write(blocks.map((block) => Buffer.from(block.buffer)));
    if (last) outflow?.end();
  }

  #onToken(given: GivenToken, nowMs: number): void {
    const run = this.#runs.get(given.id);
    // The sequence was aborted while the worker was computing it.
    if (run === undefined) return;
    run.outputCount++;
    if (given.promptLogprobs !== null) run.promptLogprobs = given.promptLogprobs;
    this.metrics.generated(run, nowMs);
    if (run.outflow === null) {
      this.#give(run, given, given.finish);
      return;
    }
    void run.outflow.settled.then((failure) => {
      // A prefill engine's answer is one token long, whatever the text would have been.
      if (failure === null && run.state === "running") this.#give(run, given, given.finish ?? "length");
    });
  }

  #give(run: Run, { token, logprobs }: GivenToken, reason: GivenToken["finish"]): void {
    const { stopTokenIds, ignoreEos } = run.request.sampling;
    const endsText = !ignoreEos && this.#file.eos.has(token);
    const stopReason = reason === "stop" && stopTokenIds?.has(token) === true && !endsText ? token : null;
    this.give(run, token, reason, stopReason, logprobs);
  }
}
