// One decode leg: reserved, then started or abandoned, then streamed to its end. It ends exactly once, and whatever way
// it ends, the KV that prefill pushed for it is claimed, released or settled, and its slot comes free.
import { fromBinary } from "@bufbuild/protobuf";
import { DecodeRequestSchema, FinishReason, type Reserve, type Start } from "#gen/tandem/decode/v1/decode_pb.js";
import { ServiceError } from "../common/errors.ts";
import type { LiveEngine } from "../engine/engine.ts";
import { engineFailure, refusalOf } from "../engine/engine-error.ts";
import { neverReached, type EngineCall } from "../engine/http.ts";
import { createEventSplitter, type EventSplitter } from "../engine/sse.ts";
import type { InstanceParts } from "../instance/instance.ts";
import { checkKvAddress, checkLeg, estimateTokens } from "../instance/leg-request.ts";
import type { EngineRequest, LegContext } from "../kv/connector.ts";
import { asksForStream, asksForUsage } from "../kv/leg-body.ts";
import type { RawCall } from "../rpc/service.ts";
import { scanObject } from "../common/json-body.ts";
import { AnswerStream } from "./answer-stream.ts";
import { faceAnswer, finishReasonOf, type Face, type Usage } from "./answer.ts";
import type { Settler } from "./settle.ts";
import { encodePiece, encodeResponse } from "./wire.ts";

/** The largest event, or error body, that an engine may send. */
const EVENT_LIMIT_BYTES = 16 * 1024 * 1024;
const ANSWER_LIMIT_BYTES = 64 * 1024 * 1024;
const ADDRESS = /^(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):\d{1,5}$/;

export interface LegShared {
  readonly parts: InstanceParts;
  readonly settler: Settler;
  readonly holdMs: number;
  /** Legs that have not ended, by leg id. An id stays taken until its KV is settled. */
  readonly legs: Map<string, DecodeLeg>;
}

/** What is known of a leg from its reservation on. */
interface Reserved {
  readonly engine: LiveEngine;
  readonly context: LegContext;
  readonly reserve: Reserve;
  readonly reservedAtMs: number;
  readonly queuedTokens: number;
}

type Phase =
  | { readonly kind: "new" }
  | { readonly kind: "reserved"; readonly leg: Reserved; readonly hold: NodeJS.Timeout }
  | { readonly kind: "running"; readonly leg: Reserved; readonly run: Run }
  | { readonly kind: "over" };

/** The engine's side of a started leg. */
interface Run {
  readonly ticket: string;
  readonly startedMs: number;
  readonly face: Face;
  /** Undefined where the client wants one body. */
  readonly stream: AnswerStream | undefined;
  readonly splitter: EventSplitter | undefined;
  call: EngineCall | undefined;
  status: number;
  /** Body of a plain answer, or of an error. */
  readonly chunks: Buffer[];
  chunkBytes: number;
  firstTokenMs: number;
  lastTokenMs: number;
  /** A message went out in this turn of the event loop. */
  wroteThisTurn: boolean;
  /** The caller left; the engine is only heard until it is sure to have taken the KV. */
  discarding: boolean;
}

export class DecodeLeg {
  #phase: Phase = { kind: "new" };
  readonly #call: RawCall;
  readonly #shared: LegShared;

  constructor(call: RawCall, shared: LegShared) {
    this.#call = call;
    this.#shared = shared;
    call.onMessage = (message) => this.#take(message);
    call.onHalfClose = () => this.#halfClosed();
    call.onCancel = () => this.#cancelled();
    call.onDrain = () => this.#phase.kind === "running" && this.#phase.run.call?.resume();
  }

  /** The engine is gone, and with it the KV address that this leg was paired to. Running legs hear it from their call. */
  engineLost(engine: LiveEngine | undefined): void {
    if (this.#phase.kind !== "reserved" || this.#phase.leg.engine === engine) return;
    this.#shared.legs.delete(this.#leaveReserved().context.legId);
    this.#call.fail(new ServiceError("instance_lost", "The instance's engine stopped before the answer was started."));
  }

  /** The instance stops. */
  abort(): void {
    const error = new ServiceError("instance_lost", "The instance is stopping.");
    if (this.#phase.kind === "reserved") this.#abandon("stopping");
    else if (this.#phase.kind === "running") {
      this.#phase.run.call?.abort();
      this.#afterRun(this.#phase.leg, this.#phase.run);
    }
    this.#call.fail(error);
  }

  #take(message: Buffer): void {
    let step;
    try {
      ({ step } = fromBinary(DecodeRequestSchema, message));
    } catch (cause) {
      return this.#misused(new ServiceError("invalid_request", "The message is not a valid DecodeRequest.", { cause }));
    }
    const phase = this.#phase;
    if (phase.kind === "over") return;
    if (step.case === "reserve" && phase.kind === "new") this.#reserve(step.value);
    else if (step.case === "start" && phase.kind === "reserved") this.#start(step.value);
    else if (step.case === "abandon" && phase.kind === "reserved") {
      this.#abandon(step.value.reason, step.value.nothingSent);
      this.#call.fail(new ServiceError("cancelled", "The leg was abandoned."));
    } else {
      const what = step.case ?? "an empty step";
      this.#misused(new ServiceError("invalid_request", `The call is ${WHERE[phase.kind]}; ${what} can't follow.`));
    }
  }

  #reserve(reserve: Reserve): void {
    const { parts, legs, holdMs } = this.#shared;
    const { traits } = parts.connector;
    try {
      const checked = checkLeg(reserve);
      checkKvAddress("prefill_kv_address", reserve.prefillKvAddress, traits.decodeFirst);
      if (reserve.prefillGrpcAddress !== "" && !ADDRESS.test(reserve.prefillGrpcAddress)) {
        throw new ServiceError("invalid_request", "prefill_grpc_address must be host:port or empty.", { param: "prefill_grpc_address" });
      }
      if (reserve.face === undefined || reserve.face.id === "") {
        throw new ServiceError("invalid_request", "face.id is missing.", { param: "face" });
      }
      if (legs.has(reserve.legId)) throw new ServiceError("leg_id_reused", "The leg id is in use. Retry with a fresh one.");
      parts.board.admit();
      const engine = parts.keeper()?.live;
      if (engine === undefined) throw new ServiceError("instance_unavailable", "The instance's engine is not there.");
      const context: LegContext = {
        ...checked,
        legId: reserve.legId,
        prefillKvAddress: reserve.prefillKvAddress,
        decodeKvAddress: traits.pairedId ? engine.kvAddress : "",
        promptIndex: reserve.promptIndex,
        sampleIndex: reserve.face.sampleIndex,
      };
      const queuedTokens = estimateTokens(checked.body.length);
      const leg: Reserved = { engine, context, reserve, reservedAtMs: Date.now(), queuedTokens };
      legs.set(reserve.legId, this);
      parts.board.count({ reserved: 1, queuedTokens });
      this.#phase = { kind: "reserved", leg, hold: setTimeout(() => this.#expired(), holdMs) };
    } catch (error) {
      this.#phase = { kind: "over" };
      throw error;
    }
    this.#call.write(encodeResponse({ reserved: { holdMs } }));
  }

  #start(start: Start): void {
    const { parts } = this.#shared;
    const leg = this.#leaveReserved();
    const { context, reserve } = leg;
    let request: EngineRequest;
    try {
      request = parts.connector.decodeRequest(context, start.ticket);
    } catch (error) {
      this.#settle(leg, start.ticket, false);
      this.#call.fail(new ServiceError("invalid_request", "The leg can't be started: its body or ticket is malformed.", { cause: error }));
      return;
    }
    parts.board.count({ running: 1 });
    const face: Face = {
      id: reserve.face!.id,
      created: reserve.face!.created,
      choiceIndex: reserve.face!.choiceIndex,
      cachedTokens: start.cachedTokens,
    };
    const stream = asksForStream(context.body, context.members)
      ? new AnswerStream({
          face,
          wantsUsage: asksForUsage(context.body, context.members),
          startsWithRole: context.path === "/v1/chat/completions",
        })
      : undefined;
    const run: Run = {
      ticket: start.ticket,
      startedMs: performance.now(),
      face,
      stream,
      splitter: stream && createEventSplitter((buffer, from, to) => stream.take(buffer, from, to), EVENT_LIMIT_BYTES),
      call: undefined,
      status: 0,
      chunks: [],
      chunkBytes: 0,
      firstTokenMs: 0,
      lastTokenMs: 0,
      wroteThisTurn: false,
      discarding: false,
    };
    this.#phase = { kind: "running", leg, run };
    const streamed = stream !== undefined;
    run.call = leg.engine.http.open(
      { method: "POST", ...request, repeatable: !parts.connector.traits.pairedId },
      {
        onHead: (status) => void (run.status = status),
        onData: (chunk) => (streamed && run.status === 200 ? this.#onEvents(leg, run, chunk) : this.#onBody(leg, run, chunk)),
        onEnd: (error) => this.#onEnd(leg, run, error),
      },
    );
  }

  #onEvents(leg: Reserved, run: Run, chunk: Buffer): void {
    const stream = run.stream!;
    const before = stream.chunkCount;
    try {
      run.splitter!.push(chunk);
    } catch (error) {
      return this.#failRun(leg, run, engineFailure("decode", error as Error));
    }
    if (stream.chunkCount !== before) {
      run.lastTokenMs = performance.now();
      if (before === 0) run.firstTokenMs = run.lastTokenMs;
    }
    if (stream.error !== undefined) return this.#failRun(leg, run, reportedError(stream));
    if (run.discarding) {
      // The engine has answered, so it has taken the KV: from here an abort frees it.
      if (stream.chunkCount > 0 || stream.done) this.#endDiscarded(leg, run);
      return stream.cleared();
    }
    if (stream.done) return this.#completeStream(leg, run);
    if (stream.parts.length === 0 || run.wroteThisTurn) return;
    // The first piece of a turn goes out at once; what else the turn brings goes together when it is over. Never a timer.
    run.wroteThisTurn = true;
    this.#flush(run);
    setImmediate(() => {
      run.wroteThisTurn = false;
      if (this.#phase.kind === "running" && stream.parts.length > 0) this.#flush(run);
    });
  }

  #flush(run: Run): void {
    const stream = run.stream!;
    const roomy = this.#call.write(encodePiece(stream.parts, stream.bytes, stream.tokens));
    stream.cleared();
    if (!roomy) run.call?.pause();
  }

  #onBody(leg: Reserved, run: Run, chunk: Buffer): void {
    run.chunkBytes += chunk.length;
    if (run.chunkBytes > ANSWER_LIMIT_BYTES) return this.#failRun(leg, run, engineFailure("decode", new RangeError("the answer is too large")));
    run.chunks.push(chunk);
  }

  #onEnd(leg: Reserved, run: Run, error: Error | undefined): void {
    if (this.#phase.kind !== "running") return;
    const { parts } = this.#shared;
    const fresh = run.stream === undefined || run.stream.chunkCount === 0;
    if (error !== undefined) {
      if (!(error instanceof ServiceError)) parts.keeper()?.suspect(leg.engine);
      if (neverReached(error)) {
        return this.#failRun(leg, run, new ServiceError("instance_lost", "The instance's engine is gone.", { cause: error }));
      }
      return this.#failRun(leg, run, error instanceof ServiceError ? error : engineFailure("decode", error));
    }
    if (run.status !== 200) {
      const { context } = leg;
      const internal = [context.legId, context.prefillKvAddress, context.decodeKvAddress];
      let refusal = refusalOf(run.status, Buffer.concat(run.chunks), { leg: "decode", internal });
      if (refusal.code === "engine_failed") {
        parts.keeper()?.suspect(leg.engine);
        refusal = engineFailure("decode", refusal.cause as Error, fresh);
      }
      return this.#failRun(leg, run, refusal);
    }
    if (run.stream !== undefined) {
      // An orderly stream was ended by its [DONE]; this one stopped in the middle, or without it.
      const cut = run.splitter!.pendingBytes > 0 ? "in the middle of an event" : "without [DONE]";
      return this.#failRun(leg, run, engineFailure("decode", new Error(`the engine's stream ended ${cut}`)));
    }
    this.#completeBody(leg, run);
  }

  #completeStream(leg: Reserved, run: Run): void {
    const stream = run.stream!;
    if (stream.finishReason === undefined) {
      return this.#failRun(leg, run, engineFailure("decode", new Error("the engine's stream ended without a finish reason")));
    }
    const usage: Usage = stream.usage ?? { promptTokens: 0, completionTokens: stream.chunkCount };
    const end = this.#endOf(run, stream.finishReason, usage);
    this.#call.write(encodePiece(stream.parts, stream.bytes, stream.tokens, end));
    this.#complete(leg, run);
  }

  #completeBody(leg: Reserved, run: Run): void {
    if (run.discarding) return this.#endDiscarded(leg, run);
    run.firstTokenMs = run.lastTokenMs = performance.now();
    let message: Buffer;
    try {
      const body = Buffer.concat(run.chunks);
      const answer = faceAnswer(body, scanObject(body), run.face, true);
      if (answer.finishReason === undefined) throw new SyntaxError("no choice with a finish reason");
      const usage = answer.usage ?? { promptTokens: 0, completionTokens: 0 };
      const end = this.#endOf(run, finishReasonOf(answer.finishReason), usage);
      message = encodePiece([answer.json], answer.json.length, usage.completionTokens, end);
    } catch (error) {
      return this.#failRun(leg, run, engineFailure("decode", error as Error));
    }
    this.#call.write(message);
    this.#complete(leg, run);
  }

  #endOf(run: Run, finishReason: FinishReason, usage: Usage): Buffer {
    return encodeResponse({
      end: {
        finishReason,
        promptTokens: usage.promptTokens,
        completionTokens: usage.completionTokens,
        ...(run.face.cachedTokens === undefined ? {} : { cachedTokens: run.face.cachedTokens }),
        firstTokenMs: Math.max(0, run.firstTokenMs - run.startedMs),
        generationMs: Math.max(0, run.lastTokenMs - run.firstTokenMs),
      },
    });
  }

  #complete(leg: Reserved, run: Run): void {
    this.#leaveRunning(leg);
    this.#shared.legs.delete(leg.context.legId);
    this.#call.end();
    this.#shared.parts.log.debug("decode leg ended", { legId: leg.context.legId, ms: performance.now() - run.startedMs });
  }

  /** The engine's side failed. Only what the caller may hear goes out; what it already has stands. */
  #failRun(leg: Reserved, run: Run, error: ServiceError): void {
    if (this.#phase.kind !== "running") return;
    run.call?.abort();
    this.#shared.parts.log.warn("decode leg failed", { legId: leg.context.legId, code: error.code, cause: error.cause });
    this.#afterRun(leg, run, error);
    this.#call.fail(error);
  }

  /** Ends the run's accounts. KV that the engine didn't surely take is settled. */
  #afterRun(leg: Reserved, run: Run, error?: ServiceError): void {
    this.#leaveRunning(leg);
    const taken = run.stream !== undefined && run.stream.chunkCount > 0;
    if (taken || this.#shared.parts.keeper()?.live !== leg.engine) {
      this.#shared.legs.delete(leg.context.legId);
      return;
    }
    // A refusal of the body, or a connection that never was, comes before the engine looks for the KV.
    const untouched = error?.code === "engine_refused" || error?.code === "instance_unavailable" || error?.code === "instance_lost";
    this.#settle(leg, run.ticket, !untouched);
  }

  #halfClosed(): void {
    if (this.#phase.kind === "running" || this.#phase.kind === "over") return;
    this.#misused(new ServiceError("invalid_request", "The call was closed before the leg was started or abandoned."));
  }

  /** The caller is gone, or wants no more. */
  #cancelled(): void {
    const phase = this.#phase;
    if (phase.kind === "reserved") this.#abandon("the call broke");
    else if (phase.kind === "running") {
      const { run, leg } = phase;
      // Where only the engine itself can drop the KV, it must be sure to know the request before it is told to stop.
      const unsure = run.stream === undefined || run.stream.chunkCount === 0;
      if (unsure && this.#shared.parts.connector.traits.abandoned === "drain") {
        run.discarding = true;
        run.call?.resume();
        return;
      }
      run.call?.abort();
      this.#afterRun(leg, run);
    } else this.#phase = { kind: "over" };
  }

  #endDiscarded(leg: Reserved, run: Run): void {
    run.call?.abort();
    this.#leaveRunning(leg);
    this.#shared.legs.delete(leg.context.legId);
  }

  #expired(): void {
    this.#abandon("not started in time");
    this.#call.fail(new ServiceError("reservation_expired", "The reservation was not started in time."));
  }

  #misused(error: ServiceError): void {
    const phase = this.#phase;
    if (phase.kind === "reserved") this.#abandon("the call was misused");
    else if (phase.kind === "running") {
      phase.run.call?.abort();
      this.#afterRun(phase.leg, phase.run);
    } else this.#phase = { kind: "over" };
    this.#call.fail(error);
  }

  /** Ends a reservation that was not started. */
  #abandon(reason: string, nothingSent = false): void {
    const leg = this.#leaveReserved();
    this.#shared.parts.log.debug("decode leg abandoned", { legId: leg.context.legId, reason, nothingSent });
    if (nothingSent) this.#shared.legs.delete(leg.context.legId);
    else this.#settle(leg, undefined, false);
  }

  #settle(leg: Reserved, ticket: string | undefined, maybeTaken: boolean): void {
    const { settler, legs } = this.#shared;
    const { engine, context, reserve, reservedAtMs } = leg;
    const prefillAddress = reserve.prefillGrpcAddress;
    settler.settle({ engine, context, ticket, prefillAddress, reservedAtMs, maybeTaken }, () => legs.delete(context.legId));
  }

  #leaveReserved(): Reserved {
    if (this.#phase.kind !== "reserved") throw new Error("the leg is not reserved");
    const { leg, hold } = this.#phase;
    clearTimeout(hold);
    this.#phase = { kind: "over" };
    this.#shared.parts.board.count({ reserved: -1, queuedTokens: -leg.queuedTokens });
    return leg;
  }

  #leaveRunning(_leg: Reserved): void {
    this.#phase = { kind: "over" };
    this.#shared.parts.board.count({ running: -1 });
  }
}

const WHERE: Record<Phase["kind"], string> = {
  new: "not reserved",
  reserved: "reserved already",
  running: "started already",
  over: "over",
};

/** An error event inside a 200 stream. A 4xx in it is about the request; it comes before any token. */
function reportedError(stream: AnswerStream): ServiceError {
  const fresh = stream.chunkCount === 0;
  let status = 500;
  try {
    const { code } = JSON.parse(stream.error!) as { code?: unknown };
    if (typeof code === "number") status = code;
  } catch {
    // Cut off at its limit, or no object: an engine failure all the same.
  }
  if (fresh && status >= 400 && status < 500) {
    return refusalOf(status, Buffer.from(`{"error":${stream.error!}}`), { leg: "decode", internal: [] });
  }
  return engineFailure("decode", new Error(`the engine reported in its stream: ${stream.error!}`), fresh);
}
