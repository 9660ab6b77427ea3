// Lives of one leg for run-mutants.test.ts: whole ones, and each of them interrupted after each of its steps by whatever
// may happen there; owners that call back or throw while the leg works. A scenario gives a transcript: all that was said in
// order and when, and what the leg shows of itself after each step.
import { ServiceError } from "../../../services/common/errors.ts";
import type { ConnectorName } from "../../../services/kv/connector.ts";
import type { LegRun } from "../../../services/router/leg/run.ts";
import type { Instance } from "../../../services/router/pool/pool.ts";
import { type Lab, legLab, type LegInit } from "../support/leg-lab.ts";

const LIMITS = { prefillTimeoutMs: 9_000, transferTimeoutMs: 5_000, stallMs: 4_000 };
const LOAD = { loopDelayMs: 1, queuedTokens: 3, engineWaiting: 0 };
/** No scenario has so many words; a mutant may never end. */
const WORD_LIMIT = 2_000;

class Play {
  readonly lab: Lab;
  readonly words: string[] = [];
  readonly init: LegInit;
  readonly instances: Readonly<Record<"p1" | "d1" | "d2", Instance>>;
  leg!: LegRun;
  #seen: readonly string[] = [];
  /** Called with each word. */
  trap: ((word: string) => void) | undefined;

  constructor(lab: Lab, init: LegInit) {
    this.lab = lab;
    this.instances = { p1: lab.instance("p1"), d1: lab.instance("d1"), d2: lab.instance("d2") };
    for (const instance of Object.values(this.instances)) Object.assign(instance, { load: LOAD });
    this.init = { ...init, prefill: this.instances.p1, decode: this.instances.d1 };
    const sinceMs = lab.clock.nowMs();
    lab.onWord = (word) => {
      if (this.words.push(`${lab.clock.nowMs() - sinceMs} ${word}`) > WORD_LIMIT) throw new Error("It never ends.");
      this.trap?.(word);
    };
  }

  get decode(): Lab["decodes"][number] | undefined {
    const decode = this.lab.decodes.at(-1);
    return decode?.over === false ? decode : undefined;
  }

  get prefill(): Lab["prefills"][number] | undefined {
    const prefill = this.lab.prefills.at(-1);
    return prefill?.over === false ? prefill : undefined;
  }

  take(name: string): void {
    this.words.push(`-- ${name}`);
    try {
      STEPS[name]!(this);
    } catch (error) {
      this.words.push(`thrown: ${(error as Error).message}`);
    }
    this.#look();
  }

  /** What the leg and its lab show. */
  #look(): void {
    const { leg, lab } = this;
    const { wait, decode, prefillLogprob } = leg;
    const seen = [
      `${leg.ended ? "ended" : leg.settling ? "settling" : "runs"} ${leg.where()}; ${lab.live.size} live, ` +
        `${lab.clock.pending} timers, ${prefillLogprob} on ${decode?.instanceId}`,
      wait === undefined ? "waits for nothing" : Object.values({ ...wait, on: wait.on.instanceId }).join(),
      shown(leg),
    ];
    this.words.push(...seen.filter((text, index) => text !== this.#seen[index]));
    this.#seen = seen;
  }

  /** Another leg of the same instances, up to its first token: they move. */
  moveOthers(): void {
    const { decodes, prefills } = this.lab;
    const counts = [decodes.length, prefills.length] as const;
    const other = this.lab.begin(this.init);
    if (decodes.length > counts[0]) decodes.at(-1)!.accept();
    if (prefills.length > counts[1]) prefills.at(-1)!.done();
    if (decodes.length === counts[0]) other.decodeFound(this.instances.d1);
    decodes.at(-1)!.accept();
    decodes.at(-1)!.events();
    decodes.at(-1)!.complete();
    [decodes.length, prefills.length] = counts;
    this.words.push(shown(other));
  }
}

/** The draft of its receipt. */
function shown({ task }: LegRun): string {
  const { legId, ...rest } = task.draft;
  return `${legId.length} ${Object.values(rest).join()}`;
}

const NO_INSTANCE = new ServiceError("no_instance", "None is free.");

const STEPS: Readonly<Record<string, (play: Play) => void>> = {
  begin(play) {
    // Known before it begins: it may call back at once.
    play.lab.onBegin = (leg) => (play.leg = leg);
    play.lab.begin(play.init);
    play.lab.onBegin = undefined;
  },
  accept: ({ decode }) => decode?.accept(),
  "accept, tokens will show": ({ decode }) => decode?.accept(true),
  refuse: ({ decode }) => decode?.end("instance_busy"),
  "lose decode": ({ decode }) => decode?.end("instance_lost"),
  "lose the KV": ({ decode }) => decode?.end("kv_transfer_failed"),
  "end in order": ({ decode }) => decode?.end(),
  "end as cancelled": ({ decode }) => decode?.end("cancelled"),
  token: ({ decode }) => decode?.tokens(),
  events: ({ decode }) => decode?.events('data: {"id":"cmpl-1"}\n\n'),
  "half an event": ({ decode }) => decode?.events("data:"),
  body: ({ decode }) => decode?.events("{}"),
  complete: ({ decode }) => decode?.complete(),
  "complete, with cached tokens": ({ decode }) =>
    decode?.complete({ promptTokens: 6, completionTokens: 20, cachedTokens: 2 }),
  prefill: ({ prefill }) => prefill?.done(),
  "prefill, a little cached": ({ prefill }) => prefill?.done(1),
  "prefill, mostly cached": ({ prefill }) => prefill?.done(4),
  "fail prefill": ({ prefill }) => prefill?.fail("engine_failed"),
  "fail prefill early": ({ prefill }) => prefill?.fail("instance_busy"),
  "cancel prefill there": ({ prefill }) => prefill?.fail("cancelled"),
  find: ({ leg, instances }) => leg.decodeFound(instances.d1),
  "find another": ({ leg, instances }) => leg.decodeFound(instances.d2),
  "find none": ({ leg }) => leg.noDecode(NO_INSTANCE),
  leave: ({ leg }) => leg.unwanted(),
  overtake: ({ leg }) => leg.outrun(),
  "move others": (play) => play.moveOthers(),
  queue: ({ instances }) => {
    for (const instance of Object.values(instances)) Object.assign(instance, { load: { ...LOAD, engineWaiting: 2 } });
  },
  "read no more": ({ lab }) => void (lab.reading = false),
  "read again": ({ lab, leg }) => {
    lab.reading = true;
    leg.resume();
  },
  "3 ms": ({ lab }) => lab.clock.advance(3),
  "50 ms": ({ lab }) => lab.clock.advance(50),
  "1.5 s": ({ lab }) => lab.clock.advance(1_500),
  "3.5 s": ({ lab }) => lab.clock.advance(3_500),
  "70 s": ({ lab }) => lab.clock.advance(70_000),
};

interface Life {
  readonly connector: ConnectorName;
  readonly init?: LegInit;
  /** KV has moved between its two before. */
  readonly warm?: boolean;
  readonly steps: readonly string[];
}

const DECODE_FIRST = ["3 ms", "accept", "50 ms", "prefill", "3 ms", "events", "50 ms", "events", "complete"];
const PREFILL_FIRST = ["50 ms", "prefill, a little cached", "3 ms", "find", "3 ms", "accept", "50 ms", "events"];
const WHOLE: LegInit = { request: { stream: false, maxTokens: 20 } };
/** It arrives in two pieces. */
const WHOLE_ANSWER = ["prefill", "find", "accept", "50 ms", "body", "3 ms", "complete, with cached tokens"];
const UNPAIRED: LegInit = { unpaired: true };

const LIVES: readonly Life[] = [
  { connector: "p2p-nccl", steps: DECODE_FIRST },
  { connector: "nixl", steps: [...PREFILL_FIRST, "3 ms", "complete, with cached tokens"] },
  { connector: "nixl", init: UNPAIRED, steps: ["3 ms", "find", "accept", "50 ms", "events", "3 ms", "complete"] },
  { connector: "p2p-nccl", warm: true, steps: ["accept", "prefill", "events", "complete"] },
  { connector: "nixl", warm: true, steps: [...PREFILL_FIRST, "3 ms", "complete"] },
  {
    connector: "p2p-zmq",
    init: WHOLE,
    steps: [
      "accept, tokens will show",
      "prefill, mostly cached",
      "50 ms",
      "token",
      "3 ms",
      "token",
      "body",
      "complete",
    ],
  },
  { connector: "nixl", init: WHOLE, warm: true, steps: [...WHOLE_ANSWER, "begin", "prefill", "find", "accept"] },
];

/** What may happen to a leg at any point; the first ones to any leg, and all of them to the most different ones. */
const MOST = 3;
const OFTEN = 8;
const INTERRUPTIONS: readonly (readonly string[])[] = [
  ["leave"],
  ["3.5 s", "overtake"],
  ["1.5 s", "move others", "overtake"],
  ["refuse", "find another", "accept"],
  ["lose decode"],
  ["fail prefill"],
  ["find none"],
  ["70 s"],
  ["overtake"],
  ["lose the KV"],
  ["end in order"],
  ["end as cancelled"],
  ["fail prefill early"],
  ["cancel prefill there"],
  ["complete"],
  ["half an event"],
  ["leave", "70 s"],
  ["leave", "fail prefill", "end as cancelled"],
  ["leave", "fail prefill early", "end in order"],
  ["queue", "1.5 s", "move others", "overtake"],
  ["read no more", "events", "1.5 s", "events", "read again"],
  ["read no more", "events", "70 s", "read again", "read again", "3.5 s", "3.5 s"],
];

/** What the owner or the books do at a moment, in the middle of the leg's work, and the ways of a leg that have it. */
const MOMENTS = [
  "books -p",
  "books -d",
  "owner search",
  "owner began",
  "owner events",
  "owner c",
  "owner p",
  "a leg ended",
];
const REACTIONS = ["leave", "find", "overtake", "throw"];
const WAYS: readonly (readonly string[])[] = [[], ["leave"], ["refuse"]];

export interface Scenario {
  readonly name: string;
  transcript(Run: typeof LegRun): string;
}

function scenario(life: Life, steps: readonly string[], trap?: readonly [moment: string, reaction: string]): Scenario {
  const { connector, init = {}, warm = false } = life;
  const kind = `${connector}${warm ? ", warm" : ""}${init.unpaired === true ? ", unpaired" : ""}`;
  return {
    name: `${kind}: ${steps.join("; ")}${trap === undefined ? "" : `; at "${trap[0]}" ${trap[1]}`}`,
    transcript(Run) {
      const lab = legLab(connector, LIMITS, Run);
      if (warm) lab.pairs.judge("p1", "d1", "good", lab.clock.nowMs());
      const play = new Play(lab, init);
      if (trap !== undefined) {
        const [moment, reaction] = trap;
        play.trap = (word) => {
          if (!word.startsWith(moment)) return;
          play.trap = undefined;
          if (reaction === "throw") throw new Error("The owner fails.");
          STEPS[reaction]!(play);
        };
      }
      for (const step of ["begin", ...steps, "70 s"]) play.take(step);
      return play.words.join("\n");
    },
  };
}

function interrupted({ steps }: Life, by: readonly string[], at: number): string[] {
  return [...steps.slice(0, at), ...by, ...steps.slice(at)];
}

/** Whole lives first, because they notice most. The rest is mixed, so that any few of them differ much. */
export function scenarios(): Scenario[] {
  const broken = LIVES.flatMap((life, index) =>
    INTERRUPTIONS.slice(0, index < MOST ? undefined : OFTEN).flatMap((by) =>
      // After a time that passes rather than before it.
      [...life.steps.keys(), life.steps.length]
        .filter((at) => !/^\d/.test(life.steps[at] ?? ""))
        .map((at) => scenario(life, interrupted(life, by, at))),
    ),
  );
  const trapped = LIVES.slice(0, MOST).flatMap((life) =>
    WAYS.flatMap((by) => {
      const steps = interrupted(life, by, life.steps.indexOf("accept"));
      return MOMENTS.flatMap((moment) => REACTIONS.map((reaction) => scenario(life, steps, [moment, reaction])));
    }),
  );
  const rest = [...broken, ...trapped];
  return [
    ...LIVES.map((life) => scenario(life, life.steps)),
    ...Array.from({ length: STRIDE }, (_one, offset) =>
      rest.filter((_other, index) => index % STRIDE === offset),
    ).flat(),
  ];
}

const STRIDE = 61;
