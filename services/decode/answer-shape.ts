// The form of an engine's whole answers: which members they have, in which order, and the values that never change. The
// pieces of a stream are joined into it. vLLM's form changes from release to release, so it is learned from an engine's
// first whole answer. Tandem's own engines write as vLLM 0.32 does, and need not be asked.
import { scanArray, scanObject, splice, type Member } from "../common/json-body.ts";
import type { Log } from "../common/log.ts";
import type { LiveEngine } from "../engine/engine.ts";
import type { LegPath } from "../kv/connector.ts";

/** Raw JSON by key. */
export type RawValues = ReadonlyMap<string, string | Buffer>;

/** What a stream said, by the level of the answer where it belongs. */
export interface Said {
  readonly answer: RawValues;
  readonly choice: RawValues;
  /** Of chat. */
  readonly message: RawValues;
  readonly usage: RawValues;
}

interface Level {
  readonly json: Buffer;
  readonly members: readonly Member[];
}

/** Members that a stream has too. If another one has a value, a stream says less than a whole answer. */
const STREAMED: Record<"answer" | "choice" | "message", ReadonlySet<string>> = {
  answer: new Set([
    ...["id", "object", "created", "model", "choices", "service_tier", "system_fingerprint", "usage", "metrics"],
    ...["prompt_token_ids", "prompt_text", "kv_transfer_params", "ec_transfer_params"],
  ]),
  choice: new Set([
    ...["index", "text", "message", "logprobs", "finish_reason", "stop_reason", "token_ids", "prompt_token_ids"],
  ]),
  message: new Set(["role", "content"]),
};
/** Members whose value is the same in every answer. The others become null where the stream doesn't have them. */
const CONSTANT = new Set(["index", "object", "service_tier", "system_fingerprint"]);

const [OPEN, CLOSE] = ["[", "]"].map((mark) => Buffer.from(mark)) as [Buffer, Buffer];

interface Levels {
  readonly answer: Level;
  readonly choice: Level;
  /** Of chat. */
  readonly message: Level | undefined;
  readonly usage: Level;
}

export class AnswerShape {
  #levels: Levels;

  /**
   * @param json A whole answer with one choice.
   * @throws SyntaxError if it says more than a stream, or something else.
   */
  constructor(json: Buffer) {
    this.#levels = levelsOf(json);
    const { answer, choice, message } = this.#levels;
    check(answer, STREAMED.answer);
    check(choice, STREAMED.choice);
    if (message !== undefined) {
      check(message, STREAMED.message);
      // No content: a parser took all of it for reasoning or for tool calls. See whole-only.ts.
      if (valueOf(message, "content")?.[0] !== 0x22 /* " */) throw new SyntaxError("its content is not a text");
    }
    // Without the text and the lists of this answer.
    this.#levels = levelsOf(
      this.join({ answer: NONE, choice: NONE, message: new Map([["content", '""']]), usage: NONE }),
    );
  }

  /** The whole answer. */
  join(said: Said): Buffer {
    const { answer, choice, message, usage } = this.#levels;
    const inChoice = new Map(said.choice);
    // What else a message has is null or an empty list.
    if (message !== undefined) inChoice.set("message", splice(message.json, message.members, said.message));
    const inAnswer = new Map(said.answer);
    inAnswer.set("choices", Buffer.concat([OPEN, filled(choice, inChoice), CLOSE]));
    inAnswer.set("usage", filled(usage, said.usage));
    return filled(answer, inAnswer);
  }
}

const NONE: RawValues = new Map();

function levelsOf(json: Buffer): Levels {
  const answer = { json, members: scanObject(json) };
  const choices = valueOf(answer, "choices") ?? Buffer.from("[]");
  const [first] = scanArray(choices, 0, choices.length);
  const choice = levelOf(first && choices.subarray(first.start, first.end), "choice");
  const message = valueOf(choice, "message");
  return {
    answer,
    choice,
    message: message && levelOf(message, "message"),
    usage: levelOf(valueOf(answer, "usage"), "usage"),
  };
}

function filled({ json, members }: Level, values: RawValues): Buffer {
  const changes = new Map(values);
  for (const { key } of members) if (!changes.has(key) && !CONSTANT.has(key)) changes.set(key, "null");
  return splice(json, members, changes);
}

function levelOf(json: Buffer | undefined, name: string): Level {
  if (json === undefined) throw new SyntaxError(`it has no ${name}`);
  return { json, members: scanObject(json) };
}

function check({ json, members }: Level, known: ReadonlySet<string>): void {
  for (const { key, valueStart, valueEnd } of members) {
    if (known.has(key) || EMPTY.test(json.toString("latin1", valueStart, Math.min(valueEnd, valueStart + 5)))) continue;
    throw new SyntaxError(`it has the member ${key}`);
  }
}

const EMPTY = /^(null|\[\s*\])$/;

function valueOf({ json, members }: Level, key: string): Buffer | undefined {
  const member = members.find((one) => one.key === key);
  return member && json.subarray(member.valueStart, member.valueEnd);
}

/** The forms of the engines' answers, as far as they are known. */
export class AnswerShapes {
  readonly #learned = new WeakMap<LiveEngine, Map<LegPath, AnswerShape | undefined>>();
  readonly #log: Log;

  constructor(log: Log) {
    this.#log = log;
  }

  /** Undefined: not known yet, or streams can't be joined into it. */
  of(engine: LiveEngine, path: LegPath): AnswerShape | undefined {
    const learned = this.#learned.get(engine);
    if (learned?.has(path) === true) return learned.get(path);
    return engine.facts.kind === "vllm" ? undefined : OWN_SHAPES[path];
  }

  /** Learns from a whole answer to a request that could have been streamed. */
  learn(engine: LiveEngine, path: LegPath, answer: Buffer): void {
    if (this.#learned.get(engine)?.has(path) === true) return;
    let shape: AnswerShape | undefined;
    try {
      shape = new AnswerShape(answer);
    } catch (error) {
      this.forget(engine, path, (error as Error).message);
    }
    this.#set(engine, path, shape);
  }

  /** Streams are joined no longer. */
  forget(engine: LiveEngine, path: LegPath, because: string): void {
    this.#log.info("the engine's streams can't be joined, so whole answers are asked for", { path, because });
    this.#set(engine, path, undefined);
  }

  #set(engine: LiveEngine, path: LegPath, shape: AnswerShape | undefined): void {
    const learned = this.#learned.get(engine) ?? new Map<LegPath, AnswerShape | undefined>();
    this.#learned.set(engine, learned.set(path, shape));
  }
}

/** What Tandem's own engines write, as vLLM 0.32 does. */
export const OWN_SHAPES: Readonly<Record<LegPath, AnswerShape>> = {
  "/v1/completions": new AnswerShape(
    Buffer.from(
      '{"id":"","object":"text_completion","created":0,"model":"","choices":[{"index":0,"text":"","logprobs":null,' +
        '"finish_reason":null,"stop_reason":null,"token_ids":null,"prompt_logprobs":null,"prompt_token_ids":null,' +
        '"routed_experts":null}],"service_tier":null,"system_fingerprint":null,"usage":{"prompt_tokens":0,' +
        '"total_tokens":0,"completion_tokens":0,"prompt_tokens_details":null,"completion_tokens_details":null},' +
        '"kv_transfer_params":null,"ec_transfer_params":null,"metrics":null}',
    ),
  ),
  "/v1/chat/completions": new AnswerShape(
    Buffer.from(
      '{"id":"","object":"chat.completion","created":0,"model":"","choices":[{"index":0,"message":{"role":"",' +
        '"content":"","refusal":null,"annotations":null,"audio":null,"function_call":null,"reasoning":null},' +
        '"logprobs":null,"finish_reason":null,"stop_reason":null,"token_ids":null,"routed_experts":null}],' +
        '"service_tier":null,"system_fingerprint":null,"usage":{"prompt_tokens":0,"total_tokens":0,' +
        '"completion_tokens":0,"prompt_tokens_details":null,"completion_tokens_details":null},' +
        '"prompt_logprobs":null,"prompt_token_ids":null,"prompt_text":null,"kv_transfer_params":null,' +
        '"ec_transfer_params":null,"metrics":null}',
    ),
  ),
};
