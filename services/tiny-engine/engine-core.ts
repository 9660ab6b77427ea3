// The sim and the embedded engine, as far as they are alike: the life of a sequence from its request to its end, the
// connector, and the ways to hang, die and stop. They differ in how they compute.
import type { Clock } from "../common/clock.ts";
import type {
  EngineFailure,
  Message,
  ModelFacts,
  SequenceHandle,
  SequenceRequest,
  Tokenizer,
  TokenLogprobs,
  TokenSink,
} from "./engine.ts";
import type { Connector, KvModel, KvSpace, KvStages, RepeatableKv, Source } from "./kv/connector.ts";
import type { EngineMetrics, FinishedReason } from "./metrics.ts";
import type { Sequence } from "./sequence.ts";

/** vLLM's words for a request that the dying engine core takes with it. */
const CORE_DEAD: EngineFailure = {
  status: 500,
  type: "InternalServerError",
  param: null,
  message: "EngineCore encountered an issue. See stack trace (above) for the root cause.",
};

export interface CoreOptions {
  readonly clock: Clock;
  /** Called when the core has died, before its process ends. */
  readonly onDeath: () => void;
}

export abstract class EngineCore<S extends Sequence = Sequence> {
  /** Which of Tandem's engines this is. */
  abstract readonly kind: "sim" | "embedded";
  abstract readonly model: ModelFacts;
  abstract readonly tokenizer: Tokenizer;
  abstract readonly metrics: EngineMetrics;
  abstract readonly kv: KvModel | RepeatableKv;
  abstract readonly space: KvSpace;
  abstract readonly runningCount: number;
  abstract readonly waitingCount: number;
  /** Tokens in the KV cache. */
  abstract readonly kvTokens: number;
  protected readonly clock: Clock;
  protected connector: Connector | null = null;
  /** All that have not ended. */
  protected readonly sequences = new Set<S>();
  readonly #onDeath: () => void;
  #alive = true;
  /** Hung by the fault "hang", which may be undone, or by KV that never arrived, which may not. */
  #hung = false;
  #wedged = false;

  constructor({ clock, onDeath }: CoreOptions) {
    this.clock = clock;
    this.#onDeath = onDeath;
  }

  /**
   * The prompt of a chat. `openTurn` leaves the answer's turn open; `continueFinal` leaves the last message's.
   * @throws HttpError if the conversation does not fit the model's template.
   */
  abstract chatTokens(messages: readonly Message[], openTurn: boolean, continueFinal: boolean): number[];

  protected abstract newSequence(request: SequenceRequest, sink: TokenSink): S;
  /** Queues a sequence, or starts it where its slot was held for it. */
  protected abstract accept(sequence: S, source: Source): void;
  protected abstract promptLogprobs(sequence: S, alternatives: number): readonly (TokenLogprobs | null)[];
  /** Frees what the sequence occupies. @param finished Its last token has been computed. */
  protected abstract free(sequence: S, finished: boolean): void;
  /** Stops all steps until undone, as a hung engine core does. The gauges don't change. */
  protected abstract halt(halted: boolean): void;
  protected abstract shutDown(): void;

  /** False once the engine core is gone: `/health` says 503 and every request fails. */
  get alive(): boolean {
    return this.#alive;
  }

  protected get halted(): boolean {
    return this.#hung || this.#wedged;
  }

  /** The connector needs the engine to exist; it is set once, before the first request. */
  useConnector(connector: Connector): void {
    this.connector = connector;
    this.metrics.transfers = () => ({ stages: this.kvStages(), lateCount: connector.state().lateCount });
  }

  /** Transferred KV that this engine holds now. */
  kvStages(): KvStages {
    const held = this.connector?.state().held ?? [];
    const ready = held.filter(({ stage }) => stage === "ready").length;
    const claimed = [...this.sequences].filter(({ isTransferred }) => isTransferred).length;
    return { filling: held.length - ready, ready, claimed };
  }

  /** Queues one sequence. Failures arrive at the sink, never as a throw. */
  submit(request: SequenceRequest, sink: TokenSink): SequenceHandle {
    const sequence = this.newSequence(request, sink);
    this.sequences.add(sequence);
    if (this.#alive) this.#arrive(sequence);
    else this.fail(sequence, CORE_DEAD);
    return {
      get cachedTokens() {
        return sequence.cachedTokens;
      },
      promptLogprobs: (alternatives) => this.promptLogprobs(sequence, alternatives),
      abort: () => this.#abort(sequence),
    };
  }

  /** The fault "hang". */
  setHung(hung: boolean): void {
    if (hung === this.#hung) return;
    this.#hung = hung;
    this.halt(this.halted);
  }

  /** The engine core dies: all its sequences fail, and the process ends a moment later. */
  die(): void {
    if (!this.#alive) return;
    this.#alive = false;
    for (const sequence of [...this.sequences]) this.fail(sequence, CORE_DEAD);
    this.shutDown();
    this.#onDeath();
  }

  /** Closes the connector with it. */
  close(): void {
    this.#alive = false;
    for (const sequence of [...this.sequences]) this.#abort(sequence);
    this.shutDown();
    this.connector?.close();
  }

  /** Delivers a token; with a reason, or at a stop string, it is the sequence's last. */
  protected give(
    sequence: S,
    token: number,
    reason: "stop" | "length" | null,
    stopReason: number | null,
    logprobs: TokenLogprobs | null,
  ): void {
    const finish = reason === null ? null : { reason, stopReason, kvTransferParams: this.offer(sequence) };
    const stopString = sequence.sink.token(token, finish, logprobs);
    if (reason !== null || stopString) this.#end(sequence, reason ?? "stop", reason !== null);
  }

  protected offer({ request }: S): Readonly<Record<string, unknown>> | null {
    return this.connector?.offer(request, request.prompt, null) ?? null;
  }

  protected fail(sequence: S, failure: EngineFailure): void {
    if (sequence.state === "ended") return;
    sequence.cancel.abort();
    this.#end(sequence, "error", false);
    sequence.sink.fail(failure);
  }

  #arrive(sequence: S): void {
    const { request } = sequence;
    this.metrics.arrived(request);
    const arrival = this.connector?.arrive(request) ?? { kind: "compute" };
    if (arrival.kind === "refuse") {
      this.fail(sequence, arrival.failure);
    } else if (arrival.kind === "kill") {
      this.die();
    } else if (arrival.kind === "wedge") {
      this.#wedged = true;
      this.halt(true);
      this.accept(sequence, { kind: "compute" });
    } else {
      sequence.isTransferred = arrival.kind !== "compute";
      this.accept(sequence, arrival);
    }
  }

  #abort(sequence: S): void {
    if (sequence.state === "ended") return;
    sequence.cancel.abort();
    this.#end(sequence, "abort", false);
  }

  #end(sequence: S, reason: FinishedReason, finished: boolean): void {
    if (sequence.state === "ended") return;
    this.sequences.delete(sequence);
    this.free(sequence, finished);
    sequence.state = "ended";
    this.metrics.ended(sequence, reason, this.clock.nowMs());
  }
}
