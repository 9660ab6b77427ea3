// Legs over instances in memory, with a clock that the test moves. All that a leg says to instances, books and owner is
// written down in order; the test plays the instances.
import { create } from "@bufbuild/protobuf";
import { InfoSchema } from "#gen/tandem/instance/v1/instance_pb.js";
import { Deadlines } from "../../../services/common/deadlines.ts";
import { ServiceError, type FailureCode } from "../../../services/common/errors.ts";
import type { ConnectorName } from "../../../services/kv/connector.ts";
import { CONNECTORS } from "../../../services/kv/index.ts";
import type { LegContext, LiveLeg } from "../../../services/router/leg/context.ts";
import type {
  DecodeListener,
  PrefillListener,
  PrefillOrder,
  RemoteDecode,
  Reservation,
} from "../../../services/router/leg/instance-link.ts";
import type { RelayLimits } from "../../../services/router/config.ts";
import { Paces } from "../../../services/router/leg/paces.ts";
import { RESERVE_TIMEOUT_MS } from "../../../services/router/leg/bounds.ts";
import type { LegOutcome } from "../../../services/router/leg/protocol.ts";
import { LegRun } from "../../../services/router/leg/run.ts";
import { BREAKER_LIMITS } from "../../../services/router/pool/breaker.ts";
import { Pairs } from "../../../services/router/pool/pairs.ts";
import type { Instance } from "../../../services/router/pool/pool.ts";
import { LegDraft } from "../../../services/router/request/receipt.ts";
import type { AnswerEnd, RelayRequest } from "../../../services/router/request/request.ts";
import { type ManualClock, manualClock } from "../../support/manual-clock.ts";
import { LIMITS } from "./deployment.ts";

const END: AnswerEnd = { finishReason: "stop", promptTokens: 5, completionTokens: 2 };
const scripted = (code: FailureCode): ServiceError => new ServiceError(code, `Scripted ${code}.`);

/** A decode leg at its instance: the test says what the instance does. */
class MemoryDecode {
  /** The listener gets nothing more: a real link would see to that. */
  over = false;
  readonly instance: Instance;
  readonly reservation: Reservation;
  readonly #listener: DecodeListener;

  constructor(instance: Instance, reservation: Reservation, listener: DecodeListener) {
    this.instance = instance;
    this.reservation = reservation;
    this.#listener = listener;
  }

  /** @param reportsTokens Also those of an answer in one piece. */
  accept(reportsTokens = false): this {
    this.#listener.onReserved(reportsTokens);
    return this;
  }

  /** The answer in one piece goes on. */
  tokens(): void {
    this.#listener.onTokens();
  }

  events(text = "data: x\n\n"): void {
    this.#listener.onEvents(Buffer.from(text));
  }

  complete(end: Partial<AnswerEnd> = {}): void {
    this.over = true;
    this.#listener.onCompleted({ ...END, ...end });
  }

  /** Ends without an answer; in order where no code is given. */
  end(code?: FailureCode): void {
    this.over = true;
    this.#listener.onEnded(code === undefined ? undefined : scripted(code));
  }
}

class MemoryPrefill {
  /** As of a decode leg. */
  over = false;
  readonly order: PrefillOrder;
  readonly #listener: PrefillListener;

  constructor(order: PrefillOrder, listener: PrefillListener) {
    this.order = order;
    this.#listener = listener;
  }

  done(cachedTokens?: number): void {
    this.over = true;
    this.#listener.onDone({ ticket: { text: "{}", cachedTokens }, promptTokens: 5, kvBytes: 7n, firstLogprob: -1 });
  }

  fail(code: FailureCode): void {
    this.over = true;
    this.#listener.onFailed(scripted(code));
  }
}

export interface Lab {
  readonly clock: ManualClock;
  /** Timers that were set so far. */
  readonly timersSet: number;
  /** "d1 reserve", "books -d1 good", "owner completed": all since the last look. */
  said(): string[];
  /** The legs at instances, the latest last. */
  readonly decodes: MemoryDecode[];
  readonly prefills: MemoryPrefill[];
  readonly outcomes: LegOutcome[];
  /** Drafts of the legs that gave a whole answer. */
  readonly completed: LegDraft[];
  readonly live: ReadonlySet<LiveLeg>;
  readonly itlMs: number[];
  /** The pool's own memory of them. */
  readonly pairs: Pairs;
  /** Whether the owner takes more. */
  reading: boolean;
  /** Called when a decode instance is looked for. */
  onSearch: (() => void) | undefined;
  /** Called when the leg is taken off an instance's books. */
  onBooks: (() => void) | undefined;
  /** Called with each piece that the owner gets. */
  onDelivery: ((leg: LegRun) => void) | undefined;
  /** Called with all that is said, and with what `said` leaves out: details, and what the leg tells its context. */
  onWord: ((text: string) => void) | undefined;
  /** Called with a leg before it begins. */
  onBegin: ((leg: LegRun) => void) | undefined;
  instance(instanceId: string): Instance;
  /** Begins a leg, on d1 where the connector picks decode first. */
  begin(o?: LegInit): LegRun;
}

export interface LegInit {
  readonly request?: Partial<RelayRequest>;
  readonly prefill?: Instance;
  readonly decode?: Instance;
  readonly unpaired?: boolean;
}

/** @param Run The runner, or a mutant of it. */
export function legLab(connector: ConnectorName, limits: Partial<RelayLimits> = {}, Run = LegRun): Lab {
  const manual = manualClock();
  let timersSet = 0;
  const clock: ManualClock = {
    nowMs: manual.nowMs,
    advance: manual.advance,
    pass: manual.pass,
    stall: manual.stall,
    untilPending: manual.untilPending,
    get pending() {
      return manual.pending;
    },
    setTimer(ms, fn) {
      timersSet += 1;
      return manual.setTimer(ms, fn);
    },
  };
  let said: string[] = [];
  const live = new Set<LiveLeg>();
  const idOf = ({ info }: Instance): string => info.instanceId;
  const note = (text: string): void => lab.onWord?.(text);
  const say = (text: string): void => {
    said.push(text);
    note(text);
  };
  /** What an instance is told, without the random id. */
  const noteOrder = ({ legId, body, ...rest }: PrefillOrder | Reservation): void =>
    note(`with ${JSON.stringify({ ...rest, legId: legId.length, body: body.toString() })}`);

  const context: LegContext = {
    clock,
    live,
    onLegEnded: () => note(`a leg ended, ${live.size} live`),
    deadlines: new Deadlines(clock),
    limits: { current: { ...LIMITS, ...limits } },
    reserveTimeoutMs: RESERVE_TIMEOUT_MS,
    paces: new Paces(),
    loop: { delayMs: 0 },
    books: {
      legStarted(instance, tokens) {
        say(`books +${idOf(instance)}`);
        note(`for ${tokens} tokens`);
      },
      legEnded(instance, verdict) {
        say(`books -${idOf(instance)} ${verdict}`);
        lab.onBooks?.();
      },
      outrun: (instance) => say(`books ${idOf(instance)} outrun`),
      pairEnded(prefill, decode, verdict) {
        say(`books ${idOf(prefill)}|${idOf(decode)} ${verdict}`);
        lab.pairs.judge(idOf(prefill), idOf(decode), verdict, clock.nowMs());
      },
      isWarm: (prefill, decode) => lab.pairs.isWarm(idOf(prefill), idOf(decode)),
      prefilled: (instance, tokens, ms) => say(`books ${idOf(instance)} did ${tokens} tokens in ${ms} ms`),
    },
    metrics: {
      leg: (side, outcome) => say(`metrics ${side} ${outcome}`),
      interTokenMs(ms) {
        lab.itlMs.push(ms);
        note(`metrics gap of ${ms} ms`);
      },
      completed(draft, stream) {
        lab.completed.push(draft);
        note(`metrics completed, ${stream ? "stream" : "whole"}`);
      },
      kvBytes: (bytes) => note(`metrics ${bytes} bytes of KV`),
    },
    linkTo: (instance) => ({
      reserve(reservation, listener): RemoteDecode {
        say(`${idOf(instance)} reserve`);
        noteOrder(reservation);
        const decode = new MemoryDecode(instance, reservation, listener);
        lab.decodes.push(decode);
        return {
          start: ({ text, unpaired }) => say(`${idOf(instance)} start ${unpaired === true ? "unpaired" : text}`),
          abandon: (reason, nothingSent) =>
            say(`${idOf(instance)} abandon ${reason}${nothingSent ? ", nothing sent" : ""}`),
          cut() {
            decode.over = true;
            say(`${idOf(instance)} cut`);
          },
          pause: () => say(`${idOf(instance)} pause`),
          resume: () => say(`${idOf(instance)} resume`),
        };
      },
      prefill(order, listener) {
        say(`${idOf(instance)} prefill`);
        noteOrder(order);
        const prefill = new MemoryPrefill(order, listener);
        lab.prefills.push(prefill);
        return {
          cancel() {
            prefill.over = true;
            say(`${idOf(instance)} cancel`);
          },
        };
      },
    }),
  };

  const lab: Lab = {
    clock,
    get timersSet() {
      return timersSet;
    },
    said() {
      const all = said;
      said = [];
      return all;
    },
    decodes: [],
    prefills: [],
    outcomes: [],
    completed: [],
    live,
    itlMs: [],
    pairs: new Pairs(BREAKER_LIMITS),
    reading: true,
    onSearch: undefined,
    onBooks: undefined,
    onDelivery: undefined,
    onWord: undefined,
    onBegin: undefined,
    instance: (instanceId) =>
      ({
        info: create(InfoSchema, {
          instanceId,
          connector,
          kvAddress: `${instanceId}:1`,
          grpcAddress: `${instanceId}:2`,
        }),
        instanceId,
        load: undefined,
        placedTokens: 0,
        tokensPerMs: 0,
      }) as unknown as Instance,
    begin({ request, prefill = lab.instance("p1"), decode = lab.instance("d1"), unpaired = false } = {}) {
      const { traits } = CONNECTORS[connector];
      const full: RelayRequest = {
        id: "cmpl-1",
        path: "/v1/completions",
        model: "tiny",
        body: Buffer.from('{"prompt":"hi"}'),
        stream: true,
        choices: 1,
        prompts: 1,
        promptIsList: false,
        includeUsage: false,
        createdUnixS: 7,
        ...request,
      };
      const leg: LegRun = new Run(
        context,
        {
          request: full,
          draft: new LegDraft(0),
          promptIndex: undefined,
          sampleIndex: 0,
          traits: unpaired ? { ...traits, unpaired } : traits,
          prefill: unpaired ? undefined : prefill,
          decode: traits.decodeFirst ? decode : undefined,
        },
        {
          began: () => note("owner began"),
          deliver(events) {
            say("owner events");
            note(events.toString());
            lab.onDelivery?.(leg);
            return lab.reading;
          },
          findDecode(_leg, refusal) {
            say(`owner search${refusal === undefined ? "" : ` after ${refusal.code}`}`);
            lab.onSearch?.();
          },
          endSearch: () => say("owner ends the search"),
          finished(_leg, outcome) {
            lab.outcomes.push(outcome);
            say(`owner ${outcome.kind === "failed" ? `${outcome.phase} ${outcome.error.code}` : outcome.kind}`);
            if (outcome.kind === "failed") note(`${outcome.side}: ${outcome.error.message}`);
          },
        },
      );
      lab.onBegin?.(leg);
      leg.begin();
      return leg;
    },
  };
  return lab;
}

/** A leg of which the client has the first events. */
export function streaming(lab: Lab): LegRun {
  const leg = lab.begin();
  lab.decodes.at(-1)!.accept();
  lab.prefills.at(-1)!.done();
  lab.decodes.at(-1)!.events();
  lab.said();
  return leg;
}
