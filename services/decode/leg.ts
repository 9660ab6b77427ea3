// Runs the protocol of one decode leg (protocol.ts): messages of the caller, news of the engine and the end of the hold
// become events, and effects become messages, requests to the engine, and entries in the instance's books.
import { fromBinary } from "@bufbuild/protobuf";
import { DecodeRequestSchema, type Reserve, type Start } from "#gen/tandem/decode/v1/decode_pb.js";
import { ADDRESS } from "../common/address.ts";
import type { Timer } from "../common/clock.ts";
import type { Deadline, Deadlines } from "../common/deadlines.ts";
import { type FailureCode, ServiceError, type ServiceErrorOptions } from "../common/errors.ts";
import { engineFailure } from "../engine/engine-error.ts";
import type { LiveEngine } from "../engine/engine.ts";
import type { InstanceParts } from "../instance/instance.ts";
import { admitLeg, estimatePromptTokens, invalid } from "../instance/leg-request.ts";
import type { EngineRequest } from "../kv/connector.ts";
import { asksForStream } from "../kv/leg-body.ts";
import type { RawCall } from "../rpc/service.ts";
import { AnswerRun } from "./answer-run.ts";
import type { AnswerShape, AnswerShapes } from "./answer-shape.ts";
import type { DebtRecord } from "./debt-record.ts";
import type { FirstTransfers } from "./first-transfers.ts";
import {
  type DecodeEffect,
  type DecodeEnding,
  type DecodeEvent,
  type DecodeState,
  NEW,
  stepDecode,
} from "./protocol.ts";
import type { ReservedLeg, Settle } from "./settle.ts";
import { isStuck } from "./stuck.ts";
import { wholeOnly } from "./whole-only.ts";
import { encodeResponse } from "./wire.ts";

/** An engine that goes on is looked at this often while a leg of it has no token. */
const LOOK_AGAIN_MS = 500;

export interface LegShared {
  readonly parts: InstanceParts;
  readonly settle: Settle;
  readonly holdMs: number;
  readonly stallMs: number;
  readonly shapes: AnswerShapes;
  readonly deadlines: Deadlines;
  readonly firstTransfers: FirstTransfers;
  /** Undefined where the KV goes with this process's engine, or by itself. */
  readonly record: Pick<DebtRecord, "open"> | undefined;
  /** Legs that have not ended, by leg id. An id stays taken until its KV is settled. */
  readonly legs: Map<string, DecodeLeg>;
}

/** What exists only in some states of the protocol. */
type Holding =
  | { readonly kind: "nothing" }
  | Slot
  | Run
  /** KV that is being settled. */
  | { readonly kind: "kv"; readonly leg: ReservedLeg };

interface Slot {
  readonly kind: "slot";
  readonly leg: ReservedLeg;
  readonly hold: Timer;
  /** Of a whole answer that is joined from a stream. */
  readonly shape: AnswerShape | undefined;
  readonly reportsTokens: boolean;
}

interface Run {
  readonly kind: "run";
  readonly leg: ReservedLeg;
  readonly run: AnswerRun;
  readonly startedMs: number;
  /** Checked once per allowed silence, and not moved with every token. */
  readonly due: Deadline;
  readonly unpaired: boolean;
  /** Set while it waits for the first KV from its prefill engine. */
  readonly firstTransfer: ReturnType<FirstTransfers["began"]>;
  /** The caller takes no more for now, so the wait is not the engine's fault. */
  held: boolean;
  /** When the caller last took more again. */
  resumedMs: number;
}

const NOTHING: Holding = { kind: "nothing" };

/** How calls end that fail for a reason of the protocol. */
const ENDINGS: Readonly<Record<DecodeEnding, readonly [FailureCode, string]>> = {
  misused: [
    "invalid_request",
    "A call reserves once, then starts or abandons the leg: this message can't follow here.",
  ],
  garbled: ["invalid_request", "The message is not a valid DecodeRequest."],
  "router silent": ["reservation_expired", "The router was silent, so its reservation has ended."],
  "hold expired": ["reservation_expired", "The reservation was not started in time."],
  "engine lost": ["instance_lost", "The instance's engine stopped before the answer began."],
  stopping: ["instance_lost", "The instance is stopping."],
};

export class DecodeLeg {
  #state: DecodeState = NEW;
  #holding: Holding = NOTHING;
  /** Of `shared.record`. */
  #recorded = 0;
  readonly #call: RawCall;
  readonly #shared: LegShared;

  constructor(call: RawCall, shared: LegShared) {
    this.#call = call;
    this.#shared = shared;
    call.onMessage = (message) => this.#take(message);
    call.onHalfClose = () => this.#dispatch({ kind: "halfClosed" });
    call.onCancel = () => this.#dispatch({ kind: "callBroken" });
    call.onCallerSilent = () => this.#dispatch({ kind: "callerSilent" });
    call.onDrain = () => this.#resume();
  }

  /** The engine was replaced, and this leg's KV address is gone. Running legs notice by themselves. */
  engineChanged(engine: LiveEngine | undefined): void {
    if (this.#holding.kind === "slot" && this.#holding.leg.engine !== engine) this.#dispatch({ kind: "engineChanged" });
  }

  /** The instance stops. */
  abort(): void {
    this.#dispatch({ kind: "stopping" });
  }

  #take(message: Buffer): void {
    let step;
    try {
      ({ step } = fromBinary(DecodeRequestSchema, message));
    } catch (cause) {
      return this.#dispatch({ kind: "garbled", cause });
    }
    if (step.case === "reserve") return this.#dispatch({ kind: "reserve", reserve: step.value });
    if (step.case === "start") return this.#dispatch({ kind: "start", start: step.value });
    if (step.case === undefined) return this.#dispatch({ kind: "garbled", cause: new Error("no step is set") });
    const { reason, nothingSent } = step.value;
    if (this.#holding.kind === "slot" || this.#holding.kind === "run") {
      const { legId } = this.#holding.leg.spec;
      this.#shared.parts.log.debug("decode leg abandoned", { legId, reason, nothingSent });
    }
    this.#dispatch({ kind: "abandon", nothingSent });
  }

  /** `admit` and `run` may cause the next event at once: each is the only effect of its step. */
  #dispatch(event: DecodeEvent): void {
    const { state, effects } = stepDecode(this.#shared.parts.connector.traits, this.#state, event);
    this.#state = state;
    for (const effect of effects) this.#apply(effect);
    const { record } = this.#shared;
    if (record === undefined) return;
    const open = this.#openTokens();
    if (open !== this.#recorded) record.open(open - this.#recorded);
    this.#recorded = open;
  }

  /** Prompt tokens whose KV the engine may hold without a request that has taken it. */
  #openTokens(): number {
    const holding = this.#holding;
    if (holding.kind === "nothing") return 0;
    if (holding.kind === "run" && (holding.unpaired || (this.#state.kind === "running" && this.#state.tookKv)))
      return 0;
    return estimatePromptTokens(holding.leg.spec);
  }

  #apply(effect: DecodeEffect): void {
    switch (effect.kind) {
      case "admit":
        return this.#admit(effect.reserve);
      case "run":
        return this.#run(effect.start);
      case "discard":
        return this.#running?.run.discard();
      case "stopRun":
        return this.#running?.run.abort();
      case "settle":
        return this.#settle(effect.ticket, effect.maybeTaken);
      case "forget":
        return this.#enter(NOTHING);
      case "endCall":
        return this.#call.end();
      case "failCall":
        return this.#fail(effect.why, effect.cause);
    }
  }

  /** @throws ServiceError, which ends the call. */
  #admit(reserve: Reserve): void {
    try {
      this.#enter(this.#granted(reserve));
    } catch (error) {
      this.#dispatch({ kind: "refused" });
      throw error;
    }
    const { reportsTokens } = this.#holding as Slot;
    this.#call.write(encodeResponse({ reserved: { holdMs: this.#shared.holdMs, reportsTokens } }));
  }

  /** @throws ServiceError if the leg is not granted. */
  #granted(reserve: Reserve): Slot {
    const { parts, legs, holdMs, shapes } = this.#shared;
    const { legId, prefillGrpcAddress, identity } = reserve;
    if (prefillGrpcAddress !== "" && !ADDRESS.test(prefillGrpcAddress))
      throw invalid("prefill_grpc_address", "must be host:port or empty");
    if (identity === undefined || identity.id === "") throw invalid("identity.id", "is missing");
    if (legs.has(legId)) throw new ServiceError("leg_id_reused", "The leg id is in use. Retry with a fresh one.");
    const { engine, spec } = admitLeg(parts, "decode", reserve, identity.sampleIndex);
    const streams = asksForStream(spec.body, spec.members);
    const shape = streams || wholeOnly(spec) ? undefined : shapes.of(engine, spec.path);
    const joined = shape !== undefined;
    const leg = { engine, spec: joined ? { ...spec, joined } : spec, reserve };
    const hold = parts.clock.setTimer(holdMs, () => this.#dispatch({ kind: "holdExpired" }));
    return { kind: "slot", leg, shape, hold, reportsTokens: streams || joined };
  }

  #run({ ticket, cachedTokens, unpaired }: Start): void {
    const { parts, shapes, deadlines, firstTransfers, stallMs } = this.#shared;
    const { connector } = parts;
    const { leg, shape } = this.#holding as Slot;
    const { spec, engine } = leg;
    const { id, created, choiceIndex } = leg.reserve.identity!;
    const notStarted = (message: string, why: ServiceErrorOptions): void =>
      this.#dispatch({ kind: "notStarted", error: new ServiceError("invalid_request", message, why) });
    let request: EngineRequest | undefined;
    try {
      request = unpaired ? connector.unpairedRequest(spec) : connector.decodeRequest(spec, ticket);
    } catch (cause) {
      return notStarted("The leg can't be started: its prompt_index or ticket is wrong.", { cause });
    }
    if (request === undefined)
      return notStarted("This connector's engines serve no leg without prefill.", { param: "unpaired" });
    const partner = unpaired ? undefined : connector.fetchedFrom(ticket);
    const firstTransfer = partner === undefined ? undefined : firstTransfers.began(engine, partner);
    const run = new AnswerRun({
      parts,
      engine,
      spec,
      request,
      identity: { id, created, choiceIndex, cachedTokens },
      shape,
      gotWhole: (answer) => void (wholeOnly(spec) || shapes.learn(engine, spec.path, answer)),
      notJoinable: (because) => shapes.forget(engine, spec.path, because),
      write: (message) => {
        const roomy = this.#call.write(message);
        if (!roomy) this.#setHeld(true);
        return roomy;
      },
      tookKv: () => {
        firstTransfer?.(true);
        this.#dispatch({ kind: "tookKv" });
      },
      ended: (error) => this.#answered(error),
    });
    const startedMs = parts.clock.nowMs();
    const due = deadlines.watch(startedMs + stallMs, (nowMs) => this.#look(nowMs));
    const fresh = { held: false, resumedMs: -Infinity };
    this.#enter({ kind: "run", leg, run, startedMs, due, unpaired, firstTransfer, ...fresh });
  }

  /** Ends an answer that the engine has forgotten. Returns when to look again. */
  #look(nowMs: number): number | undefined {
    const { parts, stallMs } = this.#shared;
    const running = this.#running;
    if (running === undefined || this.#state.kind !== "running") return undefined;
    const { run, unpaired, firstTransfer, leg, held, resumedMs } = running;
    const { tookKv } = this.#state;
    const sinceMs = Math.max(run.heardMs, resumedMs);
    if (held || nowMs < sinceMs + stallMs) return (held ? nowMs : sinceMs) + stallMs;
    // A whole answer that isn't joined shows nothing until it is complete.
    if (!run.streams) return undefined;
    const { movedMs, gauges } = parts.supervisor;
    const maybeLong = !tookKv && (unpaired || firstTransfer !== undefined);
    const sample = { nowMs, sinceMs, maybeLong, engineMovedMs: movedMs, waiting: gauges.waiting, stallMs };
    if (!isStuck(sample)) return nowMs + Math.min(LOOK_AGAIN_MS, stallMs / 4);
    const quietS = ((nowMs - sinceMs) / 1_000).toFixed(1);
    const cause = new Error(`no token for ${quietS} s, while the engine goes on with others`);
    parts.log.warn("decode leg is stuck in the engine", { legId: leg.spec.legId, cause });
    this.#dispatch({ kind: "stuck", error: engineFailure("decode", cause, { beforeFirstToken: !tookKv }) });
    return undefined;
  }

  /** The engine's side ended, well or with an error for the caller. Whatever was already sent stays valid. */
  #answered(error: ServiceError | undefined): void {
    const running = this.#running;
    if (running === undefined) return;
    const { leg, run, startedMs } = running;
    const { log, clock } = this.#shared.parts;
    const { legId } = leg.spec;
    if (error === undefined) {
      log.debug("decode leg ended", { legId, ms: clock.nowMs() - startedMs });
      return this.#dispatch({ kind: "answerEnded" });
    }
    log.warn("decode leg failed", { legId, code: error.code, cause: error.cause });
    // A refusal of the body, or a connection that never was, comes before the engine looks for the KV. So does a 5xx to a
    // request for a stream: what fails in vLLM's core is reported inside the stream.
    const untouched = run.refused || UNTOUCHED.has(error.code);
    this.#dispatch({ kind: "answerFailed", error, untouched });
  }

  #settle(ticket: string | undefined, maybeTaken: boolean): void {
    const { leg } = this.#holding as Exclude<Holding, { kind: "nothing" }>;
    this.#enter({ kind: "kv", leg });
    void this.#shared.settle(leg, ticket, maybeTaken).then(() => this.#dispatch({ kind: "settled" }));
  }

  #fail(why: DecodeEnding | ServiceError, cause: unknown): void {
    this.#call.fail(typeof why === "string" ? new ServiceError(...ENDINGS[why], { cause }) : why);
  }

  get #running(): Run | undefined {
    return this.#holding.kind === "run" ? this.#holding : undefined;
  }

  #resume(): void {
    const running = this.#running;
    if (running === undefined) return;
    this.#setHeld(false);
    running.resumedMs = this.#shared.parts.clock.nowMs();
    running.run.resume();
  }

  #setHeld(held: boolean): void {
    const running = this.#running;
    if (running === undefined || held === running.held) return;
    running.held = held;
    this.#shared.parts.status.count({ held: held ? 1 : -1 });
  }

  #enter(next: Holding): void {
    const { parts, legs } = this.#shared;
    const before = this.#holding;
    if (before.kind === "slot") {
      before.hold.cancel();
      parts.status.count({ reserved: -1, queuedTokens: -estimatePromptTokens(before.leg.spec) });
    } else if (before.kind === "run") {
      before.due.cancel();
      before.firstTransfer?.(false);
      this.#setHeld(false);
      parts.status.count({ running: -1 });
    }
    this.#holding = next;
    if (next.kind === "nothing") {
      if (before.kind !== "nothing") legs.delete(before.leg.spec.legId);
    } else legs.set(next.leg.spec.legId, this);
    if (next.kind === "slot") parts.status.count({ reserved: 1, queuedTokens: estimatePromptTokens(next.leg.spec) });
    else if (next.kind === "run") parts.status.count({ running: 1 });
  }
}

/** Failures from before the engine looked for the KV. */
const UNTOUCHED: ReadonlySet<FailureCode> = new Set<FailureCode>([
  "engine_refused",
  "instance_unavailable",
  "instance_lost",
]);
