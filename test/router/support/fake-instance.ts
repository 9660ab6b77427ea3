// Prefill and decode instances that do what the test says, behind a real gRPC server. The test holds each call in its
// hands: nothing is answered unless it says so, or the instance was started with `auto`.
import { setTimeout as sleep } from "node:timers/promises";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import type { MessageInitShape } from "@bufbuild/protobuf";
import {
  type Abandon,
  DecodeRequestSchema,
  DecodeResponseSchema,
  DecodeService,
  type EndSchema,
  FinishReason,
  type Reserve,
  type Start,
} from "#gen/tandem/decode/v1/decode_pb.js";
import {
  type Info,
  InfoSchema,
  InstanceService,
  type LoadSchema,
  Role,
  State,
  type WatchLoadRequest,
} from "#gen/tandem/instance/v1/instance_pb.js";
import {
  type PrefillRequest,
  PrefillRequestSchema,
  PrefillResponseSchema,
  PrefillService,
} from "#gen/tandem/prefill/v1/prefill_pb.js";
import { ServiceError, type FailureCode } from "../../../services/common/errors.ts";
import { serveRpc } from "../../../services/rpc/server.ts";
import { defineService, type RawCall, type RpcService } from "../../../services/rpc/service.ts";
import { silentLog } from "../../support/log-sink.ts";
import { manualClock } from "../../support/manual-clock.ts";
import { deferred, type Deferred, within } from "../../support/waits.ts";

const HEARTBEAT_MS = 500;

/** What arrives, to be taken one by one. */
export class Arrivals<T> {
  readonly all: T[] = [];
  #taken = 0;
  #wake: Deferred<void> | undefined;

  push(item: T): void {
    this.all.push(item);
    this.#wake?.resolve();
    this.#wake = undefined;
  }

  async next(what: string): Promise<T> {
    while (this.all.length <= this.#taken) await within((this.#wake ??= deferred()).promise, what);
    return this.all[this.#taken++]!;
  }
}

export interface FakeInstance {
  readonly info: Info;
  /** Tells a new load; what is left out stays. */
  load(change: MessageInitShape<typeof LoadSchema>): void;
  /** From now on no load is told and none repeated; with false, told again. */
  mute(muted?: boolean): void;
  /** Changes of the router's word whether its engine may be restarted. */
  readonly grants: boolean[];
  /** Reasons of the drains it was told. */
  readonly drains: string[];
  [Symbol.asyncDispose](): Promise<void>;
}

type InfoInit = MessageInitShape<typeof InfoSchema>;

async function startInstance(role: Role, info: InfoInit, service: RpcService, token = ""): Promise<FakeInstance> {
  let load: MessageInitShape<typeof LoadSchema> = { state: State.SERVING, freeSlots: 64 };
  let changed = deferred();
  let muted = false;
  const drains: string[] = [];
  const grants: boolean[] = [];
  const change = (by: MessageInitShape<typeof LoadSchema>): void => {
    load = { ...load, ...by };
    changed.resolve();
    changed = deferred();
  };
  /** Each heartbeat of the router after its first message. */
  async function answer(requests: AsyncIterable<WatchLoadRequest>): Promise<void> {
    let count = 0;
    try {
      for await (const { restartGranted } of requests) {
        if (restartGranted !== undefined && restartGranted !== grants.at(-1)) grants.push(restartGranted);
        if (count++ > 0) change({});
      }
    } catch {
      // The router is gone.
    }
  }
  const control = defineService(
    InstanceService,
    {
      getInfo: async () => ({ info: full, load }),
      async *watchLoad(requests, { signal, closing }) {
        const ended = deferred();
        void answer(requests);
        for (const stop of [signal, closing]) stop.addEventListener("abort", () => ended.resolve());
        while (!signal.aborted && !closing.aborted) {
          const next = changed.promise;
          if (!muted) yield { load };
          // An instance is heard every second, also when nothing changes.
          const beat = new AbortController();
          await Promise.race([
            next,
            ended.promise,
            sleep(HEARTBEAT_MS, undefined, { signal: beat.signal }).catch(() => {}),
          ]);
          beat.abort();
        }
      },
      drain: async ({ reason }) => {
        drains.push(reason);
        change({ state: State.DRAINING });
        return { remaining: 7 };
      },
      undrain: async () => {
        change({ state: State.SERVING });
        return {};
      },
      diagnose: async () => ({ findings: [] }),
    },
    { access: token === "" ? "open" : "token" },
  );
  const services = [control, service];
  // Its time passes at the end only: a router that a test holds up is not taken for gone.
  const clock = manualClock();
  const server = await serveRpc({ listen: "127.0.0.1:0", services, token, log: silentLog, graceMs: 0, clock });
  const full = create(InfoSchema, {
    role,
    model: "tiny",
    connector: "p2p-zmq",
    engine: "sim",
    kvAddress: "127.0.0.1:9",
    maxModelLen: 4096,
    ...info,
    grpcAddress: server.address,
  });
  return {
    info: full,
    load: change,
    mute(now = true) {
      muted = now;
    },
    grants,
    drains,
    [Symbol.asyncDispose]() {
      const closed = server[Symbol.asyncDispose]();
      clock.advance(1);
      return closed;
    },
  };
}

// Decode.

export class DecodeLeg {
  readonly reserve: Reserve;
  readonly started = deferred<Start>();
  readonly abandoned = deferred<Abandon>();
  readonly cancelled = deferred();
  readonly halfClosed = deferred();
  /** Ends a started leg once it is abandoned, as a decode instance does. */
  endsWhenAbandoned = true;
  /** What the router did, in order. */
  readonly seen: string[] = ["reserve"];
  readonly #call: RawCall;
  #drained: Deferred<void> | undefined;

  constructor(call: RawCall, reserve: Reserve) {
    this.#call = call;
    this.reserve = reserve;
    call.onDrain = () => this.#drained?.resolve();
  }

  accept(reportsTokens = false): this {
    this.#send({ reserved: { holdMs: 30_000, reportsTokens } });
    return this;
  }

  /** False: the router is not reading. */
  events(text: string, tokenCount = 1): boolean {
    return this.#send({ events: text, tokenCount });
  }

  drained(): Promise<void> {
    return (this.#drained = deferred()).promise;
  }

  end(end: MessageInitShape<typeof EndSchema> = {}, events = ""): void {
    this.last(end, events);
    this.#call.end();
  }

  /** The last message, with the call still open. */
  last(end: MessageInitShape<typeof EndSchema> = {}, events = ""): void {
    this.#send({ events, end: { finishReason: FinishReason.STOP, promptTokens: 5, completionTokens: 2, ...end } });
  }

  /** Ends with OK and without `end`: right only after an abandon. */
  close(): void {
    this.#call.end();
  }

  fail(code: FailureCode): void {
    this.#call.fail(new ServiceError(code, `Scripted ${code}.`));
  }

  /** A message of these bytes, whatever they are. */
  raw(bytes: Buffer): void {
    this.#call.write(bytes);
  }

  #send(message: MessageInitShape<typeof DecodeResponseSchema>): boolean {
    return this.#call.write(Buffer.from(toBinary(DecodeResponseSchema, create(DecodeResponseSchema, message))));
  }
}

export interface FakeDecode extends FakeInstance {
  readonly legs: Arrivals<DecodeLeg>;
}

/** @param auto What to do with each leg as it arrives. @param token That callers must send. */
export async function startDecode(
  info: InfoInit = {},
  auto: (leg: DecodeLeg) => void = () => {},
  token = "",
): Promise<FakeDecode> {
  const legs = new Arrivals<DecodeLeg>();
  const decode = (call: RawCall): void => {
    let leg: DecodeLeg | undefined;
    call.onMessage = (bytes) => {
      const { step } = fromBinary(DecodeRequestSchema, bytes);
      if (step.case === "reserve") {
        leg = new DecodeLeg(call, step.value);
        legs.push(leg);
        auto(leg);
        return;
      }
      leg!.seen.push(step.case!);
      if (step.case === "start") leg!.started.resolve(step.value);
      if (step.case !== "abandon") return;
      leg!.abandoned.resolve(step.value);
      if (leg!.seen.includes("start") && leg!.endsWhenAbandoned) leg!.close();
    };
    call.onHalfClose = () => leg?.halfClosed.resolve();
    call.onCancel = () => {
      leg?.seen.push("cancel");
      leg?.cancelled.resolve();
    };
  };
  const service = defineService<typeof DecodeService, "decode">(DecodeService, {}, { raw: { decode } });
  const instance = await startInstance(Role.DECODE, { instanceId: "d1", ...info }, service, token);
  return { ...instance, legs };
}

// Prefill.

export class PrefillLeg {
  readonly request: PrefillRequest;
  readonly cancelled = deferred();
  readonly #call: RawCall;

  constructor(call: RawCall, request: PrefillRequest) {
    this.#call = call;
    this.request = request;
    call.onCancel = () => this.cancelled.resolve();
  }

  done(answer: MessageInitShape<typeof PrefillResponseSchema> = {}): void {
    const message = create(PrefillResponseSchema, { promptTokens: 5, ...answer });
    this.#call.write(Buffer.from(toBinary(PrefillResponseSchema, message)));
    this.#call.end();
  }

  fail(code: FailureCode): void {
    this.#call.fail(new ServiceError(code, `Scripted ${code}.`));
  }
}

export interface FakePrefill extends FakeInstance {
  readonly legs: Arrivals<PrefillLeg>;
}

/** @param auto What to do with each leg as it arrives. */
export async function startPrefill(
  info: InfoInit = {},
  auto: (leg: PrefillLeg) => void = () => {},
): Promise<FakePrefill> {
  const legs = new Arrivals<PrefillLeg>();
  const prefill = (call: RawCall): void => {
    call.onMessage = (bytes) => {
      const leg = new PrefillLeg(call, fromBinary(PrefillRequestSchema, bytes));
      legs.push(leg);
      auto(leg);
    };
  };
  const service = defineService<typeof PrefillService, "prefill">(
    PrefillService,
    { getOutcome: async () => ({}) },
    { raw: { prefill } },
  );
  const instance = await startInstance(Role.PREFILL, { instanceId: "p1", ...info }, service);
  return { ...instance, legs };
}

/** Answers a decode leg as an engine of two tokens would. */
export function twoTokens(leg: DecodeLeg): void {
  leg.accept();
  void leg.started.promise.then(() => {
    leg.events(`data: {"choices":[{"index":${leg.reserve.identity!.choiceIndex},"text":"a"}]}\n\n`);
    leg.end({}, `data: {"choices":[{"index":${leg.reserve.identity!.choiceIndex},"text":"b"}]}\n\n`);
  });
}
