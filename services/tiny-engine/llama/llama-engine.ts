// The embedded engine: an Engine whose arithmetic is a real model's, in a worker thread. This side admits
// sequences, passes on their tokens, and moves their KV; it never computes.
import { createHash } from "node:crypto";
import type { Clock } from "../../common/clock.ts";
import { TANDEM_VERSION } from "../../common/version.ts";
import type {
  Engine,
  EngineFailure,
  Finish,
  ModelFacts,
  SequenceHandle,
  SequenceRequest,
  Tokenizer,
  TokenSink,
} from "../engine.ts";
import { kvFailure, type Connector, type KvModel, type KvSpace } from "../kv/connector.ts";
import type { Message } from "../message.ts";
import { EngineMetrics, type FinishedReason } from "../metrics.ts";
import type { ModelFile } from "./model-file.ts";
import { createRoom, type Room } from "./room.ts";
import { addCommand, newRun, tokenLimit, type Run } from "./run.ts";
import { KV_BLOCK_TOKENS } from "./shape.ts";
import { kvLayout, kvRowBytes } from "./worker/kv-rows.ts";
import type { GivenKv, GivenToken, Report } from "./worker/messages.ts";
import type { LlamaWorker } from "./worker/start-worker.ts";

export interface LlamaEngineOptions {
  readonly file: Omit<ModelFile, "bytes">;
  readonly worker: LlamaWorker;
  readonly modelName: string;
  /** Prompt and answer together, in tokens; at most the model's context. */
  readonly maxLength: number;
  readonly slots: number;
  /** KV of all sequences together. */
  readonly kvTokenLimit: number;
  /** Hash to claim instead of the file's. Null: the file's hash. */
  readonly claimedHash: string | null;
  readonly clock: Clock;
  /** Called when the engine core has died, before its process ends. */
  readonly onDeath: () => void;
}

/** vLLM's words for a request that the dying engine core takes with it. */
const CORE_DEAD: EngineFailure = {
  status: 500,
  type: "InternalServerError",
  param: null,
  message: "EngineCore encountered an issue. See stack trace (above) for the root cause.",
};

export class LlamaEngine implements Engine, KvSpace, KvModel {
  readonly model: ModelFacts;
  readonly tokenizer: Tokenizer;
  readonly metrics: EngineMetrics;
  readonly modelHash: string;
  readonly blockSize = KV_BLOCK_TOKENS;
  readonly blockCount: number;
  readonly bytesPerToken: number;
  readonly layout: string;
  readonly maxLength: number;
  readonly #options: LlamaEngineOptions;
  readonly #room: Room;
  readonly #runs = new Map<number, Run>();
  #waiting: Run[] = [];
  #connector: Connector | null = null;
  #alive = true;
  /** Hung by the fault "hang", which may be undone, or by KV that never arrived, which may not. */
  #hung = false;
  #wedged = false;
  #count = 0;

  constructor(options: LlamaEngineOptions) {
    const { file, modelName, maxLength, slots, kvTokenLimit, worker } = options;
    this.#options = options;
    this.tokenizer = file.tokenizer;
    this.modelHash = options.claimedHash ?? file.hash;
    this.bytesPerToken = kvRowBytes(file.shape);
    this.layout = kvLayout(file.shape);
    this.maxLength = maxLength;
    this.model = {
      name: modelName,
      root: file.name,
      maxLength,
      fingerprint: `tandem-${TANDEM_VERSION}-${file.hash.slice(0, 8)}`,
      version: TANDEM_VERSION,
      takesGrammars: false,
    };
    const blockCount = Math.floor(kvTokenLimit / KV_BLOCK_TOKENS);
    this.blockCount = blockCount;
    this.#room = createRoom(slots, blockCount);
    this.metrics = new EngineMetrics(
      modelName,
      { blockSize: KV_BLOCK_TOKENS, blockCount, maxLength, bytesPerToken: this.bytesPerToken },
      false,
    );
    worker.onReport = (report) => this.#onReport(report);
    worker.onDeath = () => this.die();
  }

  get alive(): boolean {
    return this.#alive;
  }
  get load(): number {
    return this.#runs.size;
  }
  get runningCount(): number {
    return this.#runs.size - this.#waiting.length;
  }
  get waitingCount(): number {
    return this.#waiting.length;
  }
  get kvTokens(): number {
    return this.#room.takenTokens;
  }

  useConnector(connector: Connector): void {
    this.#connector = connector;
  }

  // The length of the answer is not known yet for KV that is pushed here.
  holdSlot(): boolean {
    return this.#room.take(this.maxLength);
  }

  releaseSlot(): void {
    this.#room.give(this.maxLength);
    this.#admit();
  }

  // No connector of this engine keeps KV after its sequence.
  holdTokens(): void {}
  releaseTokens(): void {}

  promptHash(tokens: readonly number[]): string {
    return createHash("sha256").update(Uint32Array.from(tokens)).digest("hex");
  }

  chatTokens(messages: readonly Message[], openTurn: boolean, continueFinal: boolean): number[] {
    return this.#options.file.chatTokens(messages, openTurn, continueFinal);
  }

  metricsText(): string {
    return this.metrics.text();
  }

  submit(request: SequenceRequest, sink: TokenSink): SequenceHandle {
    const run = newRun(++this.#count, request, sink, this.#options.clock.nowMs());
    const handle: SequenceHandle = {
      get cachedTokens() {
        return run.cachedTokens;
      },
      promptLogprobs: () => run.promptLogprobs ?? request.prompt.map(() => null),
      abort: () => this.#abort(run),
    };
    this.#runs.set(run.id, run);
    if (!this.#alive) {
      this.#fail(run, CORE_DEAD);
      return handle;
    }
    this.metrics.arrived(request);
    const arrival = this.#connector?.arrive(request) ?? { kind: "compute" };
    if (arrival.kind === "claim" && request.promptLogprobs === null) this.#adopt(run, arrival.blocks);
    if (arrival.kind === "claim" || arrival.kind === "compute") {
      this.#waiting.push(run);
      // Replaces the blocks held for it, which are more than it can need, so the sequence starts at once.
      if (arrival.kind === "claim") this.releaseSlot();
      else this.#admit();
    } else if (arrival.kind === "refuse") {
      this.#fail(run, arrival.failure);
    } else if (arrival.kind === "wedge") {
      this.#wedged = true;
      this.#options.worker.send({ kind: "hang", hung: true });
    } else if (arrival.kind === "kill") {
      this.die();
    } else {
      this.#fail(run, kvFailure(500, "the embedded engine fetches no KV"));
    }
    return handle;
  }

  /** Stops all tokens until it is undone: the fault "hang". */
  setHung(hung: boolean): void {
    if (hung === this.#hung) return;
    this.#hung = hung;
    this.#options.worker.send({ kind: "hang", hung: hung || this.#wedged });
    this.#admit();
  }

  /** The engine core dies: all its sequences fail, and the process ends a moment later. */
  die(): void {
    if (!this.#alive) return;
    this.#alive = false;
    for (const run of [...this.#runs.values()]) this.#fail(run, CORE_DEAD);
    void this.#options.worker.close();
    this.#options.onDeath();
  }

  close(): void {
    this.#alive = false;
    for (const run of [...this.#runs.values()]) this.#abort(run);
    void this.#options.worker.close();
    this.#connector?.close();
  }

  /** Waiting sequences start in order, even if a later one would already fit. */
  #admit(): void {
    if (this.#hung || this.#wedged || !this.#alive) return;
    while (this.#waiting.length > 0 && this.#room.take(tokenLimit(this.#waiting[0]!.request)))
      this.#start(this.#waiting.shift()!);
    this.#setGauges();
  }

  #start(run: Run): void {
    run.state = "running";
    run.scheduledMs = this.#options.clock.nowMs();
    // Asks the decode engine for a slot while the prompt is computed here.
    run.outflow = this.#connector?.push(run.request, run.cancel.signal) ?? null;
    this.#options.worker.send(addCommand(run, this.#options.file.eos));
    run.kv = null;
    void run.outflow?.settled.then((failure) => {
      if (failure !== null) this.#fail(run, failure);
    });
  }

  /** From here on the sequence knows its prompt only from the transferred KV. */
  #adopt(run: Run, blocks: readonly Buffer[]): void {
    const { length } = run.request.prompt;
    run.kv = blocks;
    run.cachedTokens = length - 1;
    this.metrics.received(length);
  }

  #onReport(report: Report): void {
    if (report.rows > 0) this.metrics.observe("iteration_tokens_total", report.rows);
    for (const given of report.kv) this.#onKv(given);
    const nowMs = this.#options.clock.nowMs();
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
      this.#give(run, given);
      return;
    }
    // A prefill engine's answer is one token long, whatever the text would have been.
    const only = { ...given, finish: given.finish ?? "length" } as const;
    void run.outflow.settled.then((failure) => {
      if (failure === null && run.state === "running") this.#give(run, only);
    });
  }

  #give(run: Run, { token, finish: reason, logprobs }: GivenToken): void {
    const { request, sink } = run;
    const stopReason =
      reason === "stop" && request.sampling.stopTokenIds?.has(token) === true && !this.#endsText(run, token)
        ? token
        : null;
    const kvTransferParams = reason === null ? null : (this.#connector?.offer(request, request.prompt, null) ?? null);
    const finish: Finish | null = reason === null ? null : { reason, stopReason, kvTransferParams };
    const stopString = sink.token(token, finish, logprobs);
    if (reason !== null) this.#end(run, reason);
    else if (stopString) this.#stop(run, "stop");
  }

  #endsText(run: Run, token: number): boolean {
    return !run.request.sampling.ignoreEos && this.#options.file.eos.has(token);
  }

  #abort(run: Run): void {
    this.#stop(run, "abort");
  }

  #fail(run: Run, failure: EngineFailure): void {
    if (run.state === "ended") return;
    this.#stop(run, "error");
    run.sink.fail(failure);
  }

  /** Ends a sequence that may still be in the worker. */
  #stop(run: Run, reason: FinishedReason): void {
    if (run.state === "ended") return;
    if (run.state === "running") this.#options.worker.send({ kind: "drop", id: run.id });
    run.cancel.abort();
    this.#end(run, reason);
  }

  #end(run: Run, reason: FinishedReason): void {
    if (run.state === "ended") return;
    if (run.state === "running") this.#room.give(tokenLimit(run.request));
    else this.#waiting = this.#waiting.filter((other) => other !== run);
    run.state = "ended";
    this.#runs.delete(run.id);
    this.metrics.ended(run, reason, this.#options.clock.nowMs());
    this.#admit();
  }

  /** Called only by `#admit`: the gauges of a hung engine don't change. */
  #setGauges(): void {
    this.metrics.running = this.runningCount;
    this.metrics.waiting = this.#waiting.length;
    this.metrics.kvUsageRatio = this.#room.usedRatio;
  }
}
