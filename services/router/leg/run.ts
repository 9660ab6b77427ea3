// One attempt at one choice: runs the protocol of protocol.ts over the channels of two instances. It may outlive its
// request: what was set going is settled also when nobody waits for the answer any more.
import { fromBinary } from "@bufbuild/protobuf";
import { DecodeService, EndSchema } from "#gen/tandem/decode/v1/decode_pb.js";
import type { End } from "#gen/tandem/decode/v1/decode_pb.js";
import type { Clock } from "../../common/clock.ts";
import type { ServiceError } from "../../common/errors.ts";
import type { Log } from "../../common/log.ts";
import { methodPath } from "../../rpc/service.ts";
import type { ThinCall } from "../../rpc/thin-client.ts";
import type { Instance, Pool } from "../pool/pool.ts";
import { endedEarly, fromInstance, sentNothing } from "./blame.ts";
import { DecodeFrame } from "./decode-frame.ts";
import { LegAccounts } from "./accounts.ts";
import {
  answerStalled,
  prefillBoundMs,
  prefillStalled,
  quietLimitMs,
  stalled,
  waitingTokens,
  type AnswerPaces,
  type QuietPart,
} from "./bounds.ts";
import type { LegTask } from "./task.ts";
import { LegTimes } from "./times.ts";
import { IDLE, step } from "./protocol.ts";
import type { Ticket, LegEffect, LegEvent, LegOutcome, LegState } from "./protocol.ts";
import type { RelayMetrics } from "../request/metrics.ts";
import type { RelayLimits } from "../request/request.ts";
import { callPrefill } from "./prefill-call.ts";
import { estimateTokens } from "../request/estimate-tokens.ts";
import { abandonMessage, reserveMessage, startMessage } from "./wire.ts";

const DECODE_PATH = methodPath(DecodeService, DecodeService.method.decode);

/** How long an instance may take to end an abandoned leg before the call is cut. */
const SETTLE_MS = 30_000;
/** A deadline's own error should come before the one that an instance makes of the same deadline. */
const DEADLINE_SLACK_MS = 2_000;
const frame = new DecodeFrame();

/** What all legs of a relay share. */
export interface LegContext {
  readonly pool: Pick<Pool, "legStarted" | "legEnded" | "pairEnded" | "prefilled">;
  readonly limits: RelayLimits;
  readonly metrics: RelayMetrics;
  readonly clock: Clock;
  readonly log: Log;
  readonly paces: AnswerPaces;
  /** Legs that have not ended, for the watch over their deadlines. */
  readonly live: Set<RelayLeg>;
}

/** A decode instance that would not take the leg. */
export interface Refusal {
  readonly by: Instance;
  readonly error: ServiceError;
}

/** Whoever wants the answer. */
export interface LegOwner {
  /** Events of the answer, or the whole body. False holds the leg back until `resume`. */
  deliver(events: Buffer): boolean;
  /**
   * Picks a decode instance, at once or later, and tells the leg by `openOn` or `noDecode`. Returns what ends the search.
   * @param refusal Where one has refused already.
   */
  findDecode(leg: RelayLeg, ticket: Ticket, refusal: Refusal | undefined): () => void;
  /** Once. The leg may go on settling. */
  finished(leg: RelayLeg, outcome: LegOutcome): void;
}

export class RelayLeg {
  readonly task: LegTask;
  /** The decode instance it is on, or was last. */
  decode: Instance | undefined;
  /** Set once completed. */
  end: End | undefined;
  /** Of the token that prefill wrote, where its engine reports it. */
  prefillLogprob: number | undefined;
  /** Whether any of the answer was delivered. */
  delivered = false;
  paused = false;

  readonly #context: LegContext;
  readonly #owner: LegOwner;
  #state: LegState = IDLE;
  #stepping = false;
  readonly #events: LegEvent[] = [];
  #call: ThinCall | undefined;
  #answered = false;
  #refusal: Refusal | undefined;
  #endSearch: (() => void) | undefined;
  #cancelPrefill: (() => void) | undefined;
  readonly #accounts: LegAccounts;
  #messages = 0;
  #messagesSeen = 0;
  /** When tokens came last; 0 where the next gap tells nothing. */
  #tokensAtMs = 0;
  #quietSinceMs = 0;
  readonly #times: LegTimes;

  constructor(context: LegContext, task: LegTask, owner: LegOwner) {
    this.#context = context;
    this.task = task;
    this.#owner = owner;
    this.#accounts = new LegAccounts(context.pool, context.metrics);
    this.#times = new LegTimes(task.draft, task.traits.decodeFirst, context.clock.nowMs());
  }

  begin(): void {
    const { prefill, decode, draft, request } = this.task;
    draft.prefillInstanceId = prefill?.info.instanceId ?? "";
    this.#context.live.add(this);
    // Counted now and not at the call, or a burst would all see the same least loaded instance.
    if (prefill !== undefined) this.#accounts.holdPrefill(prefill, estimateTokens(request));
    if (decode !== undefined) this.#holdDecode(decode);
    if (this.task.traits.unpaired === true) this.#times.prefilled(this.#context.clock.nowMs());
    this.#dispatch({ kind: "begin" });
  }

  /** Nobody wants the answer any more. */
  unwanted(): void {
    this.#dispatch({ kind: "unwanted" });
  }

  overdue(error: ServiceError): void {
    this.#dispatch({ kind: "overdue", error });
  }

  /** The instance that `findDecode` found. */
  openOn(decode: Instance, ticket: Ticket): void {
    this.#endSearch = undefined;
    this.#holdDecode(decode);
    this.#open(decode, ticket);
    this.#dispatch({ kind: "decodeAsked" });
  }

  /** `findDecode` found none. */
  noDecode(error: ServiceError): void {
    this.#endSearch = undefined;
    this.#dispatch({ kind: "decodeFailed", error });
  }

  resume(): void {
    if (!this.paused) return;
    this.paused = false;
    this.#quietSinceMs = this.#context.clock.nowMs();
    this.#call?.resume();
  }

  /** Called every now and then; finds out what has been silent for too long. */
  check(nowMs: number): void {
    if (this.#state.kind === "settling") {
      if (nowMs - this.#quietSinceMs >= SETTLE_MS) this.#dispatch({ kind: "settleTimeout" });
      return;
    }
    const mayBeQuiet = this.paused || this.#state.kind === "prefilling";
    if (this.#messages !== this.#messagesSeen || mayBeQuiet || this.#call === undefined) {
      this.#messagesSeen = this.#messages;
      this.#quietSinceMs = nowMs;
      return;
    }
    const part = this.#quietPart();
    const { limits, paces } = this.#context;
    const { stream, maxTokens } = this.task.request;
    // A body in one piece comes when it is complete, after minutes perhaps.
    const whole = this.#answered && !stream;
    const limitMs = whole ? paces.boundMs(limits, this.decode!, maxTokens) : quietLimitMs(limits, part);
    if (nowMs - this.#quietSinceMs < limitMs) return;
    const error = whole ? answerStalled(limitMs, this.where(nowMs)) : stalled(part, limitMs, this.where(nowMs));
    // Between prefill and the first token it may be either instance: that speaks against the pair, and less against this one.
    this.#accounts.decodeEnded(error.code, part === "transfer" ? "bad" : "wedged");
    this.#dispatch({ kind: "decodeStalled", error });
  }

  /** What the decode instance is waited for. An answer to a reservation costs it nothing. */
  #quietPart(): QuietPart {
    if (this.#state.kind === "streaming") return "decode";
    return this.#answered ? "transfer" : "reserve";
  }

  /** Where the time went so far: "reserve 1 ms, prefill 210 ms, transfer 12 ms". */
  where(nowMs: number): string {
    return this.#times.where(nowMs);
  }

  get settling(): boolean {
    return this.#state.kind === "settling";
  }

  // An effect may bring the next event at once; it waits until the step that caused it is done.
  #dispatch(event: LegEvent): void {
    this.#events.push(event);
    if (this.#stepping) return;
    this.#stepping = true;
    try {
      for (let next = this.#events.shift(); next !== undefined; next = this.#events.shift()) {
        this.#note(next);
        const { state, effects } = step(this.task.traits, this.#state, next);
        this.#state = state;
        for (const effect of effects) this.#perform(effect);
      }
    } finally {
      this.#stepping = false;
    }
    if (this.#state.kind === "ended") this.#release();
  }

  /** Writes down when things happened. */
  #note(event: LegEvent): void {
    const { kind } = this.#state;
    const nowMs = this.#context.clock.nowMs();
    if (event.kind === "reserved" && kind === "reserving") this.#times.reserved(nowMs);
    else if (event.kind === "prefillDone") {
      this.#times.prefilled(nowMs);
      this.#quietSinceMs = nowMs;
    } else if (event.kind === "decodeChunk" && (kind === "transferring" || kind === "opening"))
      this.#times.firstToken(nowMs);
    else if (event.kind === "decodeEnd" && kind !== "settling") this.#times.ended(nowMs);
  }

  #perform(effect: LegEffect): void {
    switch (effect.kind) {
      case "openDecode":
        if (effect.ticket === undefined) this.#open(this.decode!, undefined);
        else this.#endSearch = this.#owner.findDecode(this, effect.ticket, this.#refusal);
        return;
      case "callPrefill":
        return this.#callPrefill();
      case "sendStart":
        // Not half-closed: it may have to be abandoned yet.
        this.#call?.write(startMessage(effect.ticket));
        return;
      case "sendAbandon":
        this.#quietSinceMs = this.#context.clock.nowMs();
        this.#call?.write(abandonMessage(effect.reason, effect.nothingSent));
        this.#readOut(this.#call);
        return;
      case "cancelPrefill":
        this.#cancelPrefill?.();
        this.#accounts.prefillEnded("cancelled");
        return;
      case "cancelDecode":
        this.#endSearch?.();
        this.#endSearch = undefined;
        this.#cut();
        return;
      case "finish":
        return this.#finish(effect.outcome);
    }
  }

  #open(decode: Instance, ticket: Ticket | undefined): void {
    const { request, draft, promptIndex, sampleIndex, prefill, traits } = this.task;
    const reserve = {
      legId: draft.legId,
      path: request.path,
      prefillKvAddress: traits.decodeFirst ? (prefill?.info.kvAddress ?? "") : "",
      decodeKvAddress: traits.decodeFirst && prefill !== undefined ? decode.info.kvAddress : "",
      prefillGrpcAddress: prefill?.info.grpcAddress ?? "",
      face: { id: request.id, created: request.createdUnixS, choiceIndex: draft.choiceIndex, sampleIndex },
      ...(promptIndex === undefined ? {} : { promptIndex }),
    };
    this.#quietSinceMs = this.#context.clock.nowMs();
    this.#answered = false;
    const call: ThinCall = decode.channel.open(
      DECODE_PATH,
      {
        // A call that was cut or replaced says nothing more here.
        onMessage: (message) => {
          if (this.#call === call) this.#onMessage(message);
        },
        onEnd: (error) => {
          if (this.#call === call) this.#onEnd(error);
        },
      },
      { timeoutMs: this.#timeLeftMs() },
    );
    this.#call = call;
    call.write(reserveMessage(reserve, request.body));
    if (ticket !== undefined) call.write(startMessage(ticket));
  }

  /** Says the last word, and takes what is under way: a call that is held back for a slow client would not hear its end. */
  #readOut(call: ThinCall | undefined): void {
    this.paused = false;
    call?.halfClose();
    call?.resume();
  }

  // The token path.
  #onMessage(message: Buffer): void {
    frame.read(message);
    const { events, reserved, end } = frame;
    this.#messages += 1;
    this.#answered = true;
    if (reserved) this.#dispatch({ kind: "reserved" });
    if (events.length > 0 && this.#state.kind !== "streaming") this.#dispatch({ kind: "decodeChunk" });
    if (end !== undefined) this.end = fromBinary(EndSchema, end);
    if (this.#state.kind === "streaming" && events.length > 0) {
      const nowMs = performance.now();
      if (this.#tokensAtMs > 0) this.#context.metrics.interTokenMs(nowMs - this.#tokensAtMs);
      this.#tokensAtMs = nowMs;
      this.delivered = true;
      // A delivery may have ended it.
      if (!this.#owner.deliver(events) && this.#state.kind === "streaming") this.#pause();
    }
    if (end !== undefined && this.#call !== undefined) this.#dispatch({ kind: "decodeEnd" });
  }

  #pause(): void {
    this.paused = true;
    this.#tokensAtMs = 0;
    this.#call?.pause();
  }

  #onEnd(error: ServiceError | undefined): void {
    this.#call = undefined;
    const told = error === undefined ? endedEarly() : fromInstance(error, "decode");
    // An abandoned leg ends without an answer, as it should.
    const asAsked = this.settling && (error === undefined || error.code === "cancelled");
    this.#accounts.decodeEnded(asAsked ? "cancelled" : told.code);
    const refused = !this.#answered && told.failure.retry === "elsewhere";
    if (refused) this.#refusal = { by: this.decode!, error: told };
    this.#dispatch({ kind: refused ? "decodeRefused" : "decodeFailed", error: told });
  }

  #callPrefill(): void {
    const { draft, traits } = this.task;
    const prefill = this.task.prefill!;
    const { pool, limits, metrics, log, clock } = this.#context;
    const decodeKvAddress = traits.decodeFirst ? this.decode!.info.kvAddress : "";
    // A load that came since the reservation may not count this prompt any more.
    const tokens = Math.max(waitingTokens(prefill), estimateTokens(this.task.request));
    const timeoutMs = prefillBoundMs(limits, prefill, tokens);
    this.#accounts.prefillCalled = true;
    // Once it was cancelled, neither handler has anything to say any more.
    this.#cancelPrefill = callPrefill(
      this.task,
      prefill,
      { decodeKvAddress, timeoutMs },
      {
        onDone: ({ ticket, cachedTokens, promptTokens, kvBytes, firstLogprob }) => {
          if (!this.#accounts.holdsPrefill) return;
          this.prefillLogprob = firstLogprob;
          this.#accounts.prefillEnded("completed");
          draft.promptTokens = promptTokens;
          if (cachedTokens !== undefined) draft.cachedTokens = cachedTokens;
          if (kvBytes !== undefined) {
            draft.kvBytes = kvBytes;
            metrics.kvBytes(kvBytes);
          }
          this.#dispatch({ kind: "prefillDone", ticket: { text: ticket, cachedTokens } });
          // What was found in the cache cost nothing, and would make the instance look faster than it is.
          if (cachedTokens === undefined || cachedTokens * 2 < promptTokens)
            pool.prefilled(prefill, tokens, draft.prefillMs);
        },
        onFailed: (failure) => {
          if (!this.#accounts.holdsPrefill) return;
          // What ran out is the time of this call: the deadline of the request is watched elsewhere and comes first.
          const late = failure.code === "deadline_exceeded";
          const error = late ? prefillStalled(timeoutMs, this.where(clock.nowMs()), failure) : failure;
          // Where prefill pushes the KV it may as well be decode that doesn't take it: that speaks against the pair alone.
          this.#accounts.prefillEnded(error.code, late && traits.decodeFirst ? "none" : undefined);
          this.#dispatch({ kind: "prefillFailed", error, nothingSent: sentNothing(error) });
        },
        onBug: (error) => log.error("relay failed unexpectedly", { legId: draft.legId, error }),
      },
    );
  }

  #timeLeftMs(): number | undefined {
    const { deadlineMs } = this.task.request;
    return deadlineMs === undefined
      ? undefined
      : Math.max(0, deadlineMs - this.#context.clock.nowMs()) + DEADLINE_SLACK_MS;
  }

  #cut(): void {
    const call = this.#call;
    this.#call = undefined;
    call?.cancel();
    this.#accounts.decodeEnded("cancelled");
  }

  #finish(outcome: LegOutcome): void {
    const { draft } = this.task;
    if (outcome.kind === "completed") {
      const { promptTokens, completionTokens, cachedTokens } = this.end!;
      draft.promptTokens = promptTokens;
      draft.completionTokens = completionTokens;
      if (cachedTokens !== undefined) draft.cachedTokens = cachedTokens;
      this.#context.metrics.completed(draft, this.task.request.stream);
      this.#context.paces.seen(this.decode!, draft.transferMs + draft.decodeMs, completionTokens);
    } else {
      this.#times.ended(this.#context.clock.nowMs());
      draft.error = outcome.kind === "failed" ? `${outcome.error.code}: ${outcome.error.message}` : outcome.kind;
    }
    this.#accounts.judgePair(this.task.prefill, this.decode, outcome);
    this.#owner.finished(this, outcome);
  }

  #holdDecode(decode: Instance): void {
    this.decode = decode;
    this.task.draft.decodeInstanceId = decode.info.instanceId;
    this.#accounts.holdDecode(decode);
  }

  /** Gives back what it still holds. What was called has ended, has said its end or was cut by now. */
  #release(): void {
    if (!this.#context.live.delete(this)) return;
    const call = this.#call;
    this.#call = undefined;
    this.#readOut(call);
    this.#accounts.prefillEnded("cancelled");
    this.#accounts.decodeEnded(this.end === undefined ? "cancelled" : "completed");
  }
}
