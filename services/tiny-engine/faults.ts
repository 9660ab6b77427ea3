// Every way in which the sim fails on request. A fault matches generation requests or KV transfers in
// the order they come; with a `count` it is used up after that number, without one it stays until cleared.
//
// | kind        | fields                  | what happens                                                                     |
// |-------------|-------------------------|----------------------------------------------------------------------------------|
// | slow        | extra_ms (100)          | adds this time between the request's tokens                                      |
// | stall       | after_tokens (0)        | accepted, then silence: at once, or after this many tokens. Its slot stays taken |
// | refuse      | status (503)            | answered with this status and vLLM's error body; the engine never sees it        |
// | die         | after_tokens (0)        | the whole instance closes every socket, or the process exits if it has no other  |
// | error-event | after_tokens (0)        | a stream ends with one error event and [DONE]; a plain answer becomes a 500      |
// | half-event  | after_tokens (0)        | the connection closes in the middle of an SSE event, or of a JSON body           |
// | hang        | none                    | every sequence stops forever; /health 200, gauges frozen, new requests accepted  |
// | drop-kv     | none                    | KV that arrives is acknowledged, then lost; under nixl the blocks offered are    |
// | corrupt-kv  | none                    | one byte of an outgoing block is wrong, but the checksum is right                |
// | silent-kv   | none                    | incoming KV messages are not answered: the other side has to time out            |
// | wrong-model | none                    | this engine claims another model hash in KV headers and handshakes               |
// | upstream    | none (a mode)           | p2p-zmq fails as P2P NCCL of vLLM 0.23: a request without the paired id kills    |
// |             |                         | the engine, missing or unfit KV hangs the whole engine forever                   |
// | tame        | none (a mode)           | nixl parameters that do not fit give a 400 instead of killing the engine         |
// | poison      | none (a mode)           | a request whose body contains POISON is answered with a 500; others are served   |
//
// As text, for flags: `kind:field=value:field=value`, as in `stall:after_tokens=3:count=2`.

export const FAULT_KINDS = [
  "slow",
  "stall",
  "refuse",
  "die",
  "error-event",
  "half-event",
  "hang",
  "drop-kv",
  "corrupt-kv",
  "silent-kv",
  "wrong-model",
  "upstream",
  "tame",
  "poison",
] as const;
export type FaultKind = (typeof FAULT_KINDS)[number];

/** What the body of a poisonous request contains. */
export const POISON = "poison pill";

export interface Fault {
  readonly kind: FaultKind;
  readonly extraMs?: number;
  readonly afterTokens?: number;
  readonly status?: number;
  /** Remaining requests or transfers that the fault hits. Absent: all. */
  readonly count?: number;
}

/** The faults of one generation request, fixed when it arrives. */
export type RequestFaults = NonNullable<ReturnType<FaultBoard["takeForRequest"]>>;

const FIELDS = { extra_ms: "extraMs", after_tokens: "afterTokens", status: "status", count: "count" } as const;

/** @param source As text, or as JSON. @throws RangeError that says why it is invalid. */
export function parseFault(source: string | object): Fault {
  const { kind: asked, ...fields } = (typeof source === "string" ? fieldsOf(source) : source) as Record<
    string,
    unknown
  >;
  const kind = FAULT_KINDS.find((known) => known === asked);
  if (kind === undefined) throw new RangeError(`unknown fault "${String(asked)}"; known: ${FAULT_KINDS.join(", ")}`);
  const fault: Record<string, unknown> = { kind };
  for (const [key, value] of Object.entries(fields)) {
    const field = FIELDS[key as keyof typeof FIELDS] ?? Object.values(FIELDS).find((name) => name === key);
    const amount = Number(value);
    if (field === undefined)
      throw new RangeError(`unknown field "${key}" of fault "${kind}"; known: ${Object.keys(FIELDS).join(", ")}`);
    if (!Number.isFinite(amount) || amount < 0)
      throw new RangeError(`${key} of fault "${kind}" must be a number of at least 0, got "${String(value)}"`);
    fault[field] = amount;
  }
  return fault as unknown as Fault;
}

function fieldsOf(text: string): Record<string, unknown> {
  const [kind, ...pairs] = text.split(":");
  return Object.fromEntries([
    ["kind", kind],
    ...pairs.map((pair) => {
      const [key, value] = pair.split("=");
      return [key ?? "", value ?? "1"] as const;
    }),
  ]);
}

export class FaultBoard {
  #active: readonly Fault[] = [];
  readonly #onChange: (board: FaultBoard) => void;

  /**
   * @param onChange Called when faults were added or cleared: an idle engine may have to start or stop.
   * @throws RangeError for a fault that is invalid; none is then added.
   */
  constructor(initial: readonly (string | object)[], onChange: (board: FaultBoard) => void) {
    this.#onChange = onChange;
    this.add(...initial);
  }

  get active(): readonly Fault[] {
    return this.#active;
  }

  add(...faults: readonly (string | object)[]): void {
    this.#active = [...this.#active, ...faults.map(parseFault)];
    this.#onChange(this);
  }

  clear(): void {
    this.#active = [];
    this.#onChange(this);
  }

  /** Whether a fault without count is set: the modes, and `hang`. */
  has(kind: FaultKind): boolean {
    return this.#active.some((fault) => fault.kind === kind);
  }

  /** The first fault of this kind, after spending one use of it. */
  take(kind: FaultKind): Fault | null {
    const fault = this.#active.find((candidate) => candidate.kind === kind);
    if (fault?.count !== undefined) {
      const left = fault.count > 1 ? [{ ...fault, count: fault.count - 1 }] : [];
      this.#active = this.#active.flatMap((other) => (other === fault ? left : [other]));
    }
    return fault ?? null;
  }

  /** Spends one use of every fault that hits requests. Null: no fault, the usual case. */
  takeForRequest() {
    if (this.#active.length === 0) return null;
    const refuse = this.take("refuse");
    const slow = this.take("slow");
    const after = (kind: FaultKind): number => {
      const fault = this.take(kind);
      return fault === null ? Infinity : (fault.afterTokens ?? 0);
    };
    return {
      refuseStatus: refuse === null ? null : (refuse.status ?? 503),
      extraMsPerToken: slow === null ? 0 : (slow.extraMs ?? 100),
      stallAfterTokens: after("stall"),
      dieAfterTokens: after("die"),
      errorAfterTokens: after("error-event"),
      halfEventAfterTokens: after("half-event"),
    };
  }
}
