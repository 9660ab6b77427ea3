// The decode side of one attempt: a slot on an instance, from the reservation to the last message. Each phase owns what
// exists only then: the remote leg, the deadline for the instance's next message, and the pause of a stream.
import type { Deadline } from "../../common/deadlines.ts";
import { ServiceError } from "../../common/errors.ts";
import type { Instance } from "../pool/pool.ts";
import { estimateTokens, type AnswerEnd } from "../request/request.ts";
import { AnswerCheck } from "./answer-check.ts";
import {
  answerBoundMs,
  reserveBoundMs,
  setUpMs,
  stalled,
  strainMs,
  streamBoundMs,
  STREAM_LOOK_MS,
  timeLeftMs,
  transferBoundMs,
  waitFor,
  type QuietPart,
  type Wait,
} from "./bounds.ts";
import type { LegContext, LegTask, SideOwner } from "./context.ts";
import type { DecodeListener, RemoteDecode, Reservation } from "./instance-link.ts";
import type { Pace } from "./paces.ts";
import type { LegEvent, Ticket } from "./protocol.ts";
import { fromInstance } from "./verdict.ts";

/** Time that an instance gets to end an abandoned leg before the leg is cut. */
const SETTLE_MS = 30_000;

type Phase =
  /** Nothing is open. */
  | { readonly kind: "none" }
  /** The reservation is sent but not answered. `started`: the start was sent with it, because prefill came first. */
  | {
      readonly kind: "asked";
      readonly remote: RemoteDecode;
      readonly due: Deadline;
      readonly sinceMs: number;
      readonly started: boolean;
    }
  /** The slot is held while prefill runs, which has its own bound. */
  | { readonly kind: "held"; readonly remote: RemoteDecode }
  /** Started, but nothing of the answer has arrived. */
  | {
      readonly kind: "transferring";
      readonly remote: RemoteDecode;
      readonly due: Deadline;
      readonly sinceMs: number;
      /** Extra time for the first transfer of the two. */
      readonly firstMs: number;
    }
  | Streaming
  /** The last message was sent. */
  | { readonly kind: "abandoned"; readonly remote: RemoteDecode; readonly due: Deadline };

interface Streaming {
  readonly kind: "streaming";
  readonly pace: Pace;
  readonly remote: RemoteDecode;
  /** Checked once per allowed silence, and not moved with every token. */
  readonly due: Deadline;
  readonly check: AnswerCheck;
  /** When the last events arrived, or the stream was resumed. */
  activeAtMs: number;
  /** When the last tokens arrived; 0 if the next gap says nothing about the engine. */
  tokensAtMs: number;
  /** Whether the client takes nothing more for now. */
  paused: boolean;
}

const NONE: Phase = { kind: "none" };

export class DecodeSide implements DecodeListener {
  /** The instance that was picked last. */
  on: Instance | undefined;
  readonly #context: LegContext;
  readonly #task: LegTask;
  readonly #owner: SideOwner;
  #phase: Phase = NONE;
  /** The instance reports the tokens of this leg as they come. */
  #reportsTokens = false;

  constructor(context: LegContext, task: LegTask, owner: SideOwner) {
    this.#context = context;
    this.#task = task;
    this.#owner = owner;
    this.on = task.decode;
  }

  /** @param ticket Given if prefill has run: the leg is then started together with the reservation. */
  reserve(ticket: Ticket | undefined): void {
    const decode = this.on!;
    const reservation = this.#reservation(decode);
    const remote = this.#context.linkTo(decode).reserve(reservation, this);
    if (ticket !== undefined) remote.start(ticket);
    this.#enter({
      kind: "asked",
      remote,
      due: this.#within("reserve", reserveBoundMs(this.#context, decode, reservation.body)),
      sinceMs: this.#context.clock.nowMs(),
      started: ticket !== undefined,
    });
  }

  /** Undefined while it waits for nothing, or for a whole answer whose tokens don't show, which may take any time. */
  get wait(): Wait | undefined {
    const phase = this.#phase;
    if (phase.kind === "asked") return waitFor(this.#context, "reserve", this.on!, phase);
    if (phase.kind !== "transferring" || !this.#isWatched) return undefined;
    const { sinceMs, firstMs } = phase;
    return waitFor(this.#context, "transfer", this.on!, { sinceMs, firstMs, tokens: this.#promptTokens });
  }

  /** Whether the first token shows. An instance that computes the prompt as well may need longer for it. */
  get #isWatched(): boolean {
    const { request, prefill } = this.#task;
    return request.stream || (this.#reportsTokens && prefill !== undefined);
  }

  /** Tokens that the decode engine computes before the first one, estimated: those of the prompt if it is unpaired. */
  get #promptTokens(): number {
    return this.#task.prefill === undefined ? estimateTokens(this.#task.request) : 0;
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
    const due = deadlines.at(clock.nowMs() + SETTLE_MS, () => this.#owner.dispatch({ kind: "settleTimeout" }));
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
    phase.activeAtMs = this.#context.clock.nowMs();
    phase.remote.resume();
  }

  onReserved(reportsTokens: boolean): void {
    this.#reportsTokens = reportsTokens;
    if (this.#phase.kind === "asked") {
      const { remote, started } = this.#phase;
      if (started) this.#startTransfer(remote);
      else this.#enter({ kind: "held", remote });
    }
    this.#owner.dispatch({ kind: "reserved" });
  }

  // The token path.
  onEvents(events: Buffer): void {
    const phase = this.#streaming();
    if (phase === undefined) return;
    const fault = phase.check.faultOf(events);
    if (fault !== undefined) return this.#distrusted(phase, fault);
    const nowMs = this.#context.clock.nowMs();
    if (phase.tokensAtMs > 0) {
      this.#context.metrics.interTokenMs(nowMs - phase.tokensAtMs);
      phase.pace.wrote(nowMs - phase.tokensAtMs);
    }
    phase.tokensAtMs = phase.activeAtMs = phase.pace.movedAtMs = nowMs;
    // The delivery may have ended the phase.
    if (this.#owner.deliver(events) || this.#phase !== phase) return;
    phase.paused = true;
    phase.tokensAtMs = 0;
    phase.remote.pause();
  }

  onTokens(): void {
    const phase = this.#streaming();
    if (phase !== undefined) phase.activeAtMs = phase.pace.movedAtMs = this.#context.clock.nowMs();
  }

  onCompleted(end: AnswerEnd): void {
    const early = !this.#isStarted && this.#phase.kind !== "abandoned";
    this.#enter(NONE);
    this.#owner.dispatch(early ? { kind: "decodeFailed", error: endedEarly() } : { kind: "decodeEnd", end });
  }

  onEnded(error: ServiceError | undefined): void {
    const { kind } = this.#phase;
    this.#enter(NONE);
    this.#owner.dispatch(endOf(kind, error));
  }

  /** Ends a leg whose answer can't be passed on. Its instance settles the KV. */
  #distrusted({ remote }: Streaming, error: ServiceError): void {
    remote.cut();
    this.#enter(NONE);
    this.#owner.dispatch({ kind: "decodeFailed", error });
  }

  /** The streaming phase, entered with the first events. Undefined if the answer was given up. */
  #streaming(): Streaming | undefined {
    if (this.#phase.kind !== "streaming" && this.#isStarted) {
      const before = this.#phase as Extract<Phase, { remote: RemoteDecode }>;
      const { remote } = before;
      const { clock, deadlines, paces } = this.#context;
      const activeAtMs = clock.nowMs();
      const pace = paces.of(this.on!);
      if (before.kind === "transferring" && this.#isWatched) this.#noteFirst(before, activeAtMs - before.sinceMs);
      const lookMs = Math.min(streamBoundMs(this.#context, this.on!), STREAM_LOOK_MS);
      const due = deadlines.watch(activeAtMs + lookMs, (nowMs) => this.#look(nowMs));
      const check = new AnswerCheck(this.#task.request, this.on!.info.maxModelLen);
      this.#enter({ kind: "streaming", remote, pace, due, check, activeAtMs, tokensAtMs: 0, paused: false });
      this.#owner.dispatch({ kind: "decodeChunk" });
    }
    return this.#phase.kind === "streaming" ? this.#phase : undefined;
  }

  get #isStarted(): boolean {
    const phase = this.#phase;
    return phase.kind === "asked" ? phase.started : phase.kind === "transferring" || phase.kind === "streaming";
  }

  #startTransfer(remote: RemoteDecode): void {
    const context = this.#context;
    const { request, prefill } = this.#task;
    const decode = this.on!;
    const firstMs = prefill === undefined ? 0 : setUpMs(context.books, prefill, decode);
    const answerMs = (): number =>
      answerBoundMs(context.limits.current, decode, context.paces.of(decode), request.maxTokens);
    const due = this.#isWatched
      ? this.#within("transfer", transferBoundMs(context, decode, { firstMs, unpaired: prefill === undefined }))
      : // Nothing arrives until the answer is complete, perhaps after minutes.
        this.#within("answer", answerMs() + firstMs + strainMs(context, decode));
    this.#enter({ kind: "transferring", remote, due, sinceMs: context.clock.nowMs(), firstMs });
  }

  #noteFirst({ firstMs }: Phase & { kind: "transferring" }, ms: number): void {
    const pace = this.#context.paces.of(this.on!);
    const tokens = this.#promptTokens;
    if (tokens > 0) pace.prefilled(tokens, ms);
    // The first transfer of two engines shows nothing of what is usual.
    else if (firstMs === 0) pace.cameFirst(ms);
  }

  /** Fails a stream that has stalled. A pause for a slow client doesn't count against the instance. */
  #look(nowMs: number): number | undefined {
    const boundMs = streamBoundMs(this.#context, this.on!);
    const phase = this.#phase as Streaming;
    const dueMs = (phase.paused ? nowMs : phase.activeAtMs) + boundMs;
    if (nowMs < dueMs) return Math.min(dueMs, nowMs + STREAM_LOOK_MS);
    this.#stalled("decode", boundMs);
    return undefined;
  }

  /** Sets the deadline for the instance's next message. */
  #within(part: QuietPart, limitMs: number): Deadline {
    const { deadlines, clock } = this.#context;
    return deadlines.at(clock.nowMs() + limitMs, () => this.#stalled(part, limitMs));
  }

  #stalled(part: QuietPart, limitMs: number): void {
    this.#owner.dispatch({ kind: "decodeStalled", error: stalled(part, limitMs, this.#owner.where()) });
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
      prefillInstanceId: prefill?.instanceId ?? "",
      probe: request.probe === true,
      identity: {
        id: request.id,
        created: request.createdUnixS,
        choiceIndex: draft.choiceIndex,
        sampleIndex,
      },
      timeoutMs: timeLeftMs(request, this.#context.clock.nowMs()),
    };
  }
}

/** The event for a leg that ended without an answer, by the phase in which it ended. */
function endOf(kind: Phase["kind"], error: ServiceError | undefined): LegEvent {
  if (kind === "abandoned" && (error === undefined || error.code === "cancelled")) return { kind: "decodeSettled" };
  const reported = error === undefined ? endedEarly() : fromInstance(error, "decode");
  const refused = kind === "asked" && reported.failure.retry === "elsewhere";
  return { kind: refused ? "decodeRefused" : "decodeFailed", error: reported };
}

function endedEarly(): ServiceError {
  return new ServiceError("engine_failed", "The decode instance ended its answer before its end.");
}
