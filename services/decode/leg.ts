// One decode leg: reserved, then started, then streamed to its end, or abandoned before that. It ends exactly once, and
// whatever way it ends, the KV that prefill pushed for it is claimed, released or settled, and its slot comes free.
import { fromBinary } from "@bufbuild/protobuf";
import { DecodeRequestSchema, type Reserve, type Start } from "#gen/tandem/decode/v1/decode_pb.js";
import { ADDRESS } from "../common/address.ts";
import type { Timer } from "../common/clock.ts";
import type { Deadline, Deadlines } from "../common/deadlines.ts";
import { ServiceError, type ServiceErrorOptions } from "../common/errors.ts";
import { engineFailure } from "../engine/engine-error.ts";
import type { LiveEngine } from "../engine/engine.ts";
import type { InstanceParts } from "../instance/instance.ts";
import { admitLeg, estimatePromptTokens, invalid } from "../instance/leg-request.ts";
import type { EngineRequest } from "../kv/connector.ts";
import { asksForStream } from "../kv/leg-body.ts";
import type { RawCall } from "../rpc/service.ts";
import { AnswerRun } from "./answer-run.ts";
import type { AnswerShape, AnswerShapes } from "./answer-shape.ts";
import type { ReservedLeg, Settle } from "./settle.ts";
import type { FirstTransfers } from "./first-transfers.ts";
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
  /** Legs that have not ended, by leg id. An id stays taken until its KV is settled. */
  readonly legs: Map<string, DecodeLeg>;
}

type Phase =
  | { readonly kind: "new" }
  | {
      readonly kind: "reserved";
      readonly leg: ReservedLeg;
      readonly hold: Timer;
      /** Of a whole answer that is joined from a stream. */
      readonly shape: AnswerShape | undefined;
    }
  | {
      readonly kind: "running";
      readonly leg: ReservedLeg;
      readonly run: AnswerRun;
      readonly ticket: string;
      readonly startedMs: number;
      /** Checked once per allowed silence, and not moved with every token. */
      readonly due: Deadline;
      readonly unpaired: boolean;
      /** Set while it waits for the first KV from its prefill engine. */
      readonly firstTransfer: ReturnType<FirstTransfers["began"]>;
    }
  | { readonly kind: "over" };

type Running = Extract<Phase, { kind: "running" }>;

export class DecodeLeg {
  #phase: Phase = { kind: "new" };
  readonly #call: RawCall;
  readonly #shared: LegShared;
  /** The caller takes no more for now, so the wait is not the engine's fault. */
  #held = false;
  /** When it last took more again. */
  #resumedMs = -Infinity;

  constructor(call: RawCall, shared: LegShared) {
    this.#call = call;
    this.#shared = shared;
    call.onMessage = (message) => this.#take(message);
    call.onHalfClose = () => this.#halfClosed();
    call.onCancel = () => this.#cancelled();
    call.onCallerSilent = () => this.#callerSilent();
    call.onDrain = () => {
      this.#setHeld(false);
      this.#resumedMs = shared.parts.clock.nowMs();
      if (this.#phase.kind === "running") this.#phase.run.resume();
    };
  }

  /** The engine was replaced, and this leg's KV address is gone. Running legs notice by themselves. */
  engineChanged(engine: LiveEngine | undefined): void {
    if (this.#phase.kind !== "reserved" || this.#phase.leg.engine === engine) return;
    this.#forget(this.#leaveReserved());
    this.#call.fail(new ServiceError("instance_lost", "The instance's engine stopped before the answer began."));
  }

  /** The instance stops. */
  abort(): void {
    this.#drop("stopping");
    this.#call.fail(new ServiceError("instance_lost", "The instance is stopping."));
  }

  #take(message: Buffer): void {
    let step;
    try {
      ({ step } = fromBinary(DecodeRequestSchema, message));
    } catch (cause) {
      return this.#misused("The message is not a valid DecodeRequest.", cause);
    }
    const phase = this.#phase;
    if (phase.kind === "over") return;
    if (step.case === "reserve" && phase.kind === "new") this.#reserve(step.value);
    else if (step.case === "start" && phase.kind === "reserved") this.#start(step.value, phase.shape);
    else if (step.case === "abandon" && phase.kind === "reserved") {
      this.#abandon(step.value.reason, step.value.nothingSent);
      this.#call.end();
    } else if (step.case === "abandon" && phase.kind === "running") {
      const { reason } = step.value;
      this.#shared.parts.log.debug("decode leg abandoned", { legId: phase.leg.spec.legId, reason });
      this.#leave(phase);
      // At once, even if the engine has to take the KV first: the caller has nothing more to wait for.
      this.#call.end();
    } else {
      const what = step.case ?? "an empty step";
      this.#misused(`The leg is ${WHERE[phase.kind]}; ${what} can't follow.`);
    }
  }

  /** @throws ServiceError, which ends the call. */
  #reserve(reserve: Reserve): void {
    const { parts, legs, holdMs, shapes } = this.#shared;
    // Whatever is thrown below, this call is over.
    this.#phase = { kind: "over" };
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
    legs.set(legId, this);
    parts.status.count({ reserved: 1, queuedTokens: estimatePromptTokens(leg.spec) });
    this.#phase = { kind: "reserved", leg, shape, hold: parts.clock.setTimer(holdMs, () => this.#expired()) };
    this.#call.write(encodeResponse({ reserved: { holdMs, reportsTokens: streams || joined } }));
  }

  #start({ ticket, cachedTokens, unpaired }: Start, shape: AnswerShape | undefined): void {
    const { parts, shapes, deadlines, firstTransfers, stallMs } = this.#shared;
    const { connector } = parts;
    const leg = this.#leaveReserved();
    const { spec, engine } = leg;
    const { id, created, choiceIndex } = leg.reserve.identity!;
    const refuse = (message: string, why: ServiceErrorOptions): void => {
      this.#settle(leg, ticket);
      this.#call.fail(new ServiceError("invalid_request", message, why));
    };
    let request: EngineRequest | undefined;
    try {
      request = unpaired ? connector.unpairedRequest(spec) : connector.decodeRequest(spec, ticket);
    } catch (cause) {
      return refuse("The leg can't be started: its prompt_index or ticket is wrong.", { cause });
    }
    if (request === undefined)
      return refuse("This connector's engines serve no leg without prefill.", { param: "unpaired" });
    parts.status.count({ running: 1 });
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
      began: () => firstTransfer?.(true),
      ended: (error) => this.#ended(error),
    });
    const startedMs = parts.clock.nowMs();
    const due = deadlines.watch(startedMs + stallMs, (nowMs) => this.#look(nowMs));
    this.#phase = { kind: "running", leg, run, ticket, startedMs, due, unpaired, firstTransfer };
  }

  /** Ends an answer that the engine has forgotten. Returns when to look again. */
  #look(nowMs: number): number | undefined {
    const { parts, stallMs } = this.#shared;
    const phase = this.#phase;
    if (phase.kind !== "running" || phase.run.discarding) return undefined;
    const { run, unpaired, firstTransfer, leg } = phase;
    const sinceMs = Math.max(run.heardMs, this.#resumedMs);
    if (this.#held || nowMs < sinceMs + stallMs) return (this.#held ? nowMs : sinceMs) + stallMs;
    // A whole answer that isn't joined shows nothing until it is complete.
    if (!run.streams) return undefined;
    const { movedMs, gauges } = parts.supervisor;
    const maybeLong = !run.tookKv && (unpaired || firstTransfer !== undefined);
    const sample = { nowMs, sinceMs, maybeLong, engineMovedMs: movedMs, waiting: gauges.waiting, stallMs };
    if (!isStuck(sample)) return nowMs + Math.min(LOOK_AGAIN_MS, stallMs / 4);
    const quietS = ((nowMs - sinceMs) / 1_000).toFixed(1);
    const cause = new Error(`no token for ${quietS} s, while the engine goes on with others`);
    parts.log.warn("decode leg is stuck in the engine", { legId: leg.spec.legId, cause });
    this.#leave(phase);
    this.#call.fail(engineFailure("decode", cause, { beforeFirstToken: !run.tookKv }));
    return undefined;
  }

  /** The engine's side ended, well or with an error for the caller. Whatever was already sent stays valid. */
  #ended(error: ServiceError | undefined): void {
    if (this.#phase.kind !== "running") return;
    const { leg, startedMs } = this.#phase;
    const { log, clock } = this.#shared.parts;
    const { legId } = leg.spec;
    if (error === undefined) {
      this.#leaveRunning();
      this.#forget(leg);
      log.debug("decode leg ended", { legId, ms: clock.nowMs() - startedMs });
      return this.#call.end();
    }
    log.warn("decode leg failed", { legId, code: error.code, cause: error.cause });
    // A refusal of the body, or a connection that never was, comes before the engine looks for the KV. So does a 5xx to a
    // request for a stream: what fails in vLLM's core is reported inside the stream.
    const untouched =
      this.#phase.run.refused ||
      error.code === "engine_refused" ||
      error.code === "instance_unavailable" ||
      error.code === "instance_lost";
    this.#closeAccounts(this.#phase, untouched);
    this.#call.fail(error);
  }

  #halfClosed(): void {
    // After the start, a closed input means nothing more: grpcurl closes it once its own input has ended.
    if (this.#phase.kind === "running" || this.#phase.kind === "over") return;
    this.#misused("The call was closed before the leg was started or abandoned.");
  }

  /** The caller is gone. */
  #cancelled(): void {
    if (this.#phase.kind === "running") this.#leave(this.#phase);
    else this.#drop("the call broke");
  }

  /** The running answer is no longer wanted. */
  #leave(phase: Running): void {
    // If only the engine itself can drop the KV, the engine must have received all of it before it is stopped.
    if (!phase.run.tookKv && this.#shared.parts.connector.traits.abandoned === "drain") phase.run.discard();
    else this.#stopRunning(phase);
  }

  /** A running answer has its KV, and goes on for a router that may be back. A reservation holds KV for nothing. */
  #callerSilent(): void {
    if (this.#phase.kind !== "reserved") return;
    this.#drop("the router is silent");
    this.#call.fail(new ServiceError("reservation_expired", "The router was silent, so its reservation has ended."));
  }

  #expired(): void {
    this.#drop("not started in time");
    this.#call.fail(new ServiceError("reservation_expired", "The reservation was not started in time."));
  }

  #misused(message: string, cause?: unknown): void {
    this.#drop("the call was misused");
    this.#call.fail(new ServiceError("invalid_request", message, { cause }));
  }

  /** Ends the leg, whatever its phase. */
  #drop(reason: string): void {
    const phase = this.#phase;
    if (phase.kind === "reserved") this.#abandon(reason);
    else if (phase.kind === "running") this.#stopRunning(phase);
    else this.#phase = { kind: "over" };
  }

  /** Ends a reservation that was not started. */
  #abandon(reason: string, nothingSent = false): void {
    const leg = this.#leaveReserved();
    this.#shared.parts.log.debug("decode leg abandoned", { legId: leg.spec.legId, reason, nothingSent });
    if (nothingSent) this.#forget(leg);
    else this.#settle(leg, undefined);
  }

  #stopRunning(phase: Running): void {
    phase.run.abort();
    this.#closeAccounts(phase, false);
  }

  /** Ends a failed run. KV that the engine may not have taken is settled. */
  #closeAccounts({ leg, run, ticket }: Running, untouched: boolean): void {
    this.#leaveRunning();
    const engineIsGone = this.#shared.parts.supervisor.live !== leg.engine;
    if (run.tookKv || engineIsGone) this.#forget(leg);
    else this.#settle(leg, ticket, !untouched);
  }

  /** @param ticket Undefined if the outcome of prefill is unknown. */
  #settle(leg: ReservedLeg, ticket: string | undefined, maybeTaken = false): void {
    void this.#shared.settle(leg, ticket, maybeTaken).then(() => this.#forget(leg));
  }

  #forget(leg: ReservedLeg): void {
    this.#shared.legs.delete(leg.spec.legId);
  }

  #leaveReserved(): ReservedLeg {
    if (this.#phase.kind !== "reserved") throw new Error("the leg is not reserved");
    const { leg, hold } = this.#phase;
    hold.cancel();
    this.#phase = { kind: "over" };
    this.#shared.parts.status.count({ reserved: -1, queuedTokens: -estimatePromptTokens(leg.spec) });
    return leg;
  }

  #setHeld(held: boolean): void {
    if (held === this.#held || this.#phase.kind !== "running") return;
    this.#held = held;
    this.#shared.parts.status.count({ held: held ? 1 : -1 });
  }

  #leaveRunning(): void {
    if (this.#phase.kind === "running") {
      this.#phase.due.cancel();
      this.#phase.firstTransfer?.(false);
    }
    this.#setHeld(false);
    this.#phase = { kind: "over" };
    this.#shared.parts.status.count({ running: -1 });
  }
}

const WHERE: Record<Phase["kind"], string> = {
  new: "not reserved",
  reserved: "reserved already",
  running: "started already",
  over: "over",
};
