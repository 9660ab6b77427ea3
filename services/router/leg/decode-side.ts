// The decode side of one attempt: a slot on an instance, from the reservation to the last word. Each phase owns what
// exists only then: the leg there, the deadline of the instance's next word, and the pause of a stream.
import type { Deadline } from "../../common/deadlines.ts";
import { ServiceError } from "../../common/errors.ts";
import type { Instance } from "../pool/pool.ts";
import type { AnswerEnd } from "../request/request.ts";
import { setUpMs, stalled, timeLeftMs, type QuietPart } from "./bounds.ts";
import type { LegContext, LegTask, SideRunner } from "./context.ts";
import type { DecodeListener, RemoteDecode, Reservation } from "./instance-link.ts";
import type { LegEvent, Ticket } from "./protocol.ts";
import { fromInstance, type SideEnd } from "./verdict.ts";

/** How long an instance may take to end an abandoned leg before it is left. */
const SETTLE_MS = 30_000;

type Phase =
  /** Nothing is open. */
  | { readonly kind: "none" }
  /** Reserved, and not answered; started in the same breath where prefill came first. */
  | { readonly kind: "asked"; readonly remote: RemoteDecode; readonly due: Deadline; readonly started: boolean }
  /** The slot is held while prefill runs, which has a bound of its own. */
  | { readonly kind: "held"; readonly remote: RemoteDecode }
  /** Started, and nothing of the answer is here. */
  | { readonly kind: "transferring"; readonly remote: RemoteDecode; readonly due: Deadline }
  | Streaming
  /** The last word was sent. */
  | { readonly kind: "abandoned"; readonly remote: RemoteDecode; readonly due: Deadline };

interface Streaming {
  readonly kind: "streaming";
  readonly remote: RemoteDecode;
  /** Looked at once in the longest silence, and not moved with every token. */
  readonly due: Deadline;
  /** When it was heard last, or resumed. */
  heardMs: number;
  /** When tokens came last; 0 where the next gap says nothing of the engine. */
  tokensAtMs: number;
  /** The client takes nothing more for now. */
  paused: boolean;
}

const NONE: Phase = { kind: "none" };

export class DecodeSide implements DecodeListener {
  /** The instance that it is on, or was last. */
  on: Instance | undefined;
  /** The instance that the leg is counted on. */
  #held: Instance | undefined;
  readonly #context: LegContext;
  readonly #task: LegTask;
  readonly #runner: SideRunner;
  readonly #deliver: (events: Buffer) => boolean;
  #phase: Phase = NONE;

  /** @param deliver Takes events of the answer. False: none more until `resume`. */
  constructor(context: LegContext, task: LegTask, runner: SideRunner, deliver: (events: Buffer) => boolean) {
    this.#context = context;
    this.#task = task;
    this.#runner = runner;
    this.#deliver = deliver;
  }

  /** Counted before the reservation, or a burst would all see the same least loaded instance. */
  hold(decode: Instance): void {
    this.on = this.#held = decode;
    this.#task.draft.decodeInstanceId = decode.info.instanceId;
    this.#context.books.legStarted(decode);
  }

  /** Ends the entry in the books. */
  release({ outcome, verdict }: SideEnd): void {
    const held = this.#held;
    if (held === undefined) return;
    this.#held = undefined;
    this.#context.metrics.leg("decode", outcome);
    this.#context.books.legEnded(held, verdict);
  }

  /** @param ticket Given where prefill has run: the leg is started in the same breath. */
  reserve(ticket: Ticket | undefined): void {
    const decode = this.on!;
    const remote = this.#context.linkTo(decode).reserve(this.#reservation(decode), this);
    if (ticket !== undefined) remote.start(ticket);
    this.#enter({
      kind: "asked",
      remote,
      due: this.#within("reserve", this.#context.reserveTimeoutMs),
      started: ticket !== undefined,
    });
  }

  start(ticket: Ticket): void {
    if (this.#phase.kind !== "held") return;
    this.#phase.remote.start(ticket);
    this.#startTransfer(this.#phase.remote);
  }

  abandon(reason: string, nothingSent: boolean): void {
    if (this.#phase.kind === "none") return;
    const { remote } = this.#phase;
    remote.abandon(reason, nothingSent);
    const { deadlines, clock } = this.#context;
    const due = deadlines.at(clock.nowMs() + SETTLE_MS, () => this.#runner.dispatch({ kind: "settleTimeout" }));
    this.#enter({ kind: "abandoned", remote, due });
  }

  cut(): void {
    if (this.#phase.kind !== "none") this.#phase.remote.cut();
    this.#enter(NONE);
  }

  resume(): void {
    const phase = this.#phase;
    if (phase.kind !== "streaming" || !phase.paused) return;
    phase.paused = false;
    phase.heardMs = this.#context.clock.nowMs();
    phase.remote.resume();
  }

  onReserved(): void {
    if (this.#phase.kind === "asked") {
      const { remote, started } = this.#phase;
      if (started) this.#startTransfer(remote);
      else this.#enter({ kind: "held", remote });
    }
    this.#runner.dispatch({ kind: "reserved" });
  }

  // The token path.
  onEvents(events: Buffer): void {
    const phase = this.#streaming();
    if (phase === undefined) return;
    const nowMs = this.#context.clock.nowMs();
    if (phase.tokensAtMs > 0) this.#context.metrics.interTokenMs(nowMs - phase.tokensAtMs);
    phase.tokensAtMs = phase.heardMs = nowMs;
    // A delivery may have ended it.
    if (this.#deliver(events) || this.#phase !== phase) return;
    phase.paused = true;
    phase.tokensAtMs = 0;
    phase.remote.pause();
  }

  onCompleted(end: AnswerEnd): void {
    const early = !this.#isStarted && this.#phase.kind !== "abandoned";
    this.#enter(NONE);
    this.#runner.dispatch(early ? { kind: "decodeFailed", error: endedEarly() } : { kind: "decodeEnd", end });
  }

  onEnded(error: ServiceError | undefined): void {
    const { kind } = this.#phase;
    this.#enter(NONE);
    this.#runner.dispatch(endOf(kind, error));
  }

  /** Entered with the first events. Undefined where the answer was given up. */
  #streaming(): Streaming | undefined {
    if (this.#phase.kind !== "streaming" && this.#isStarted) {
      const { remote } = this.#phase as Extract<Phase, { remote: RemoteDecode }>;
      const heardMs = this.#context.clock.nowMs();
      const due = this.#context.deadlines.watch(heardMs + this.#context.limits.current.stallMs, (nowMs) =>
        this.#look(nowMs),
      );
      this.#enter({ kind: "streaming", remote, due, heardMs, tokensAtMs: 0, paused: false });
      this.#runner.dispatch({ kind: "decodeChunk" });
    }
    return this.#phase.kind === "streaming" ? this.#phase : undefined;
  }

  get #isStarted(): boolean {
    const phase = this.#phase;
    return phase.kind === "asked" ? phase.started : phase.kind === "transferring" || phase.kind === "streaming";
  }

  #startTransfer(remote: RemoteDecode): void {
    const { paces, books } = this.#context;
    const limits = this.#context.limits.current;
    const { request, prefill } = this.#task;
    const decode = this.on!;
    const firstMs = prefill === undefined ? 0 : setUpMs(books, prefill, decode);
    const due = request.stream
      ? this.#within("transfer", Math.max(limits.transferTimeoutMs, firstMs))
      : // A body in one piece comes when it is complete, after minutes perhaps.
        this.#within("answer", paces.boundMs(limits, decode, request.maxTokens) + firstMs);
    this.#enter({ kind: "transferring", remote, due });
  }

  /** When a stream has stalled. A slow client's pause is not its instance's. */
  #look(nowMs: number): number | undefined {
    const { stallMs } = this.#context.limits.current;
    const phase = this.#phase as Streaming;
    if (phase.paused) return nowMs + stallMs;
    if (nowMs < phase.heardMs + stallMs) return phase.heardMs + stallMs;
    this.#stalled("decode", stallMs);
    return undefined;
  }

  /** The instance owes a word within `limitMs`. */
  #within(part: QuietPart, limitMs: number): Deadline {
    const { deadlines, clock } = this.#context;
    return deadlines.at(clock.nowMs() + limitMs, () => this.#stalled(part, limitMs));
  }

  #stalled(part: QuietPart, limitMs: number): void {
    this.#runner.dispatch({ kind: "decodeStalled", error: stalled(part, limitMs, this.#runner.where()) });
  }

  #enter(next: Phase): void {
    if ("due" in this.#phase) this.#phase.due.cancel();
    this.#phase = next;
  }

  #reservation(decode: Instance): Reservation {
    const { request, draft, promptIndex, sampleIndex, prefill, traits } = this.#task;
    const paired = traits.decodeFirst && prefill !== undefined;
    return {
      legId: draft.legId,
      path: request.path,
      body: request.body,
      promptIndex,
      prefillKvAddress: paired ? prefill.info.kvAddress : "",
      decodeKvAddress: paired ? decode.info.kvAddress : "",
      prefillGrpcAddress: prefill?.info.grpcAddress ?? "",
      face: {
        id: request.id,
        createdUnixS: request.createdUnixS,
        choiceIndex: draft.choiceIndex,
        sampleIndex,
      },
      timeoutMs: timeLeftMs(request, this.#context.clock.nowMs()),
    };
  }
}

/** What the end of a leg without an answer means, by the phase that it came in. */
function endOf(kind: Phase["kind"], error: ServiceError | undefined): LegEvent {
  if (kind === "abandoned" && (error === undefined || error.code === "cancelled")) return { kind: "decodeSettled" };
  const told = error === undefined ? endedEarly() : fromInstance(error, "decode");
  const refused = kind === "asked" && told.failure.retry === "elsewhere";
  return { kind: refused ? "decodeRefused" : "decodeFailed", error: told };
}

function endedEarly(): ServiceError {
  return new ServiceError("engine_failed", "The decode instance ended its answer before its end.");
}
