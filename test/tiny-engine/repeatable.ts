// What the router relies on when it asks another instance for an answer whose first half the client has: a greedy or seeded
// stream is the same bytes each time, apart from its id and its time. Held by both engines.
import assert from "node:assert/strict";
import { once } from "node:events";
import { connect, type Socket } from "node:net";
import type { RunningEngine } from "../../services/tiny-engine/serve-engine.ts";
import { eventually } from "../support/waits.ts";
import { pairedId, post, type Pair } from "./client.ts";
import { exchange, parseResponse, type RawResponse } from "./raw-http.ts";

type Body = Readonly<Record<string, unknown>>;

interface Stream {
  readonly path: string;
  readonly body: Body;
}

export interface RepeatableEngines {
  /** Another each time, with the same model. */
  start(): Promise<RunningEngine>;
  startPair(): Promise<Pair>;
  /** The greedy answer to it has a character that is spread over several tokens. */
  readonly prompt: string;
  /** Tokens of an answer with 20 log probabilities each that no socket's buffers hold. */
  readonly manyTokens: number;
}

const SEEDED = { temperature: 1.5, top_p: 0.98, seed: 5, repetition_penalty: 1.05 };
/** Longer than any token: something is always held back for it. */
const NEVER = "this is never said, however long the answer";
const CONTINUOUS = { stream_options: { include_usage: true, continuous_usage_stats: true } };

/** Every way to ask for a stream of one choice that changes what its events say. */
function streamsOf(prompt: string, stop: string): Readonly<Record<string, Stream>> {
  const chat = (more: Body): Stream => ({
    path: "/v1/chat/completions",
    body: { messages: [{ role: "user", content: prompt }], ...more },
  });
  const text = (more: Body): Stream => ({ path: "/v1/completions", body: { prompt, ...more } });
  return {
    "chat, greedy": chat({ temperature: 0 }),
    "chat, seeded": chat(SEEDED),
    "chat, greedy, with usage": chat({ temperature: 0, stream_options: { include_usage: true } }),
    "chat, seeded, with usage in every event": chat({ ...SEEDED, ...CONTINUOUS }),
    "chat, seeded, with log probabilities and ids": chat({
      ...SEEDED,
      logprobs: true,
      top_logprobs: 5,
      return_token_ids: true,
    }),
    "chat, greedy, to a stop string": chat({ temperature: 0, stop: [stop, NEVER] }),
    "text, greedy": text({ temperature: 0 }),
    "text, seeded": text(SEEDED),
    "text, seeded, with usage": text({ ...SEEDED, stream_options: { include_usage: true } }),
    "text, greedy, with usage in every event": text({ temperature: 0, ...CONTINUOUS }),
    "text, seeded, with log probabilities and ids": text({ ...SEEDED, logprobs: 5, return_token_ids: true }),
    "text, seeded, with the prompt": text({ ...SEEDED, echo: true, logprobs: 2 }),
    "text, seeded, until the model ends it": text({ ...SEEDED, ignore_eos: false, max_tokens: 300 }),
    "text, greedy, a stop string held back to the end": text({ temperature: 0, stop: NEVER }),
  };
}

function requestOf({ path, body }: Stream, headers: readonly string[] = []): Parameters<typeof exchange>[1] {
  const json = JSON.stringify({ max_tokens: 40, ignore_eos: true, ...body, stream: true });
  return { method: "POST", path, headers: ["content-type: application/json", ...headers], body: json };
}

/** The events without what differs between any two answers. */
function comparable({ statusLine, chunks }: RawResponse): string[] {
  assert.equal(statusLine, "HTTP/1.1 200 OK", chunks.join(""));
  return chunks.map((chunk) => chunk.replace(/"id":"[^"]*"/, '"id":""').replace(/"created":\d+/, '"created":0'));
}

async function eventsOf(engine: RunningEngine, stream: Stream, headers: readonly string[] = []): Promise<string[]> {
  return comparable(await exchange(engine.url, requestOf(stream, headers)));
}

async function allAtOnce(
  streams: Readonly<Record<string, Stream>>,
  events: (stream: Stream) => Promise<string[]>,
): Promise<Record<string, string[]>> {
  return Object.fromEntries(
    await Promise.all(Object.entries(streams).map(async ([name, stream]) => [name, await events(stream)] as const)),
  );
}

interface Choice {
  readonly text?: string;
  readonly delta?: { readonly role?: string; readonly content?: string };
}

/** Of each event that carries a token, its text. */
function textsOf(events: readonly string[]): string[] {
  return events.flatMap((event) => {
    if (event === "data: [DONE]\n\n") return [];
    const choice = (JSON.parse(event.slice("data: ".length)) as { choices: Choice[] }).choices[0];
    return choice === undefined || choice.delta?.role !== undefined ? [] : [choice.text ?? choice.delta!.content!];
  });
}

/** Opens a stream and reads nothing of it. */
async function openUnread(engine: RunningEngine, stream: Stream): Promise<Socket> {
  const { hostname, port } = new URL(engine.url);
  const { path, body, headers } = requestOf(stream);
  const socket = connect(Number(port), hostname);
  await once(socket, "connect");
  socket.pause();
  socket.write(
    `POST ${path} HTTP/1.1\r\nhost: engine\r\n${headers.join("\r\n")}\r\ncontent-length: ${Buffer.byteLength(body!)}\r\n\r\n${body!}`,
  );
  return socket;
}

async function readWhole(socket: Socket): Promise<RawResponse> {
  const pieces: Buffer[] = [];
  for await (const piece of socket as AsyncIterable<Buffer>) {
    pieces.push(piece);
    if (piece.subarray(-5).equals(Buffer.from("0\r\n\r\n"))) break;
  }
  return parseResponse(Buffer.concat(pieces), "POST")!;
}

export function describeRepeatable(name: string, engines: RepeatableEngines): void {
  describe(`a stream of ${name} that is written again`, function () {
    this.timeout(60_000);
    let streams: Readonly<Record<string, Stream>>;
    /** The events of an engine without other requests. */
    const alone: Record<string, string[]> = {};

    before(async () => {
      await using engine = await engines.start();
      const greedy = textsOf(
        await eventsOf(engine, {
          path: "/v1/chat/completions",
          body: { messages: [{ role: "user", content: engines.prompt }], temperature: 0 },
        }),
      );
      // Begins in the middle of the answer and of a token.
      const stop = greedy.slice(20).join("").slice(1, 8);
      streams = streamsOf(engines.prompt, stop);
      for (const [kind, stream] of Object.entries(streams)) alone[kind] = await eventsOf(engine, stream);
    });

    it("is one event for each token, also where a character or a stop string is held back", () => {
      const withUsage = alone["chat, greedy, with usage"]!;
      assert.equal(textsOf(withUsage).length, 40);
      assert.match(withUsage.at(-2)!, /"completion_tokens":40/);
      const stopped = alone["chat, greedy, to a stop string"]!;
      assert.match(stopped.at(-2)!, /"finish_reason":"stop"/);
      for (const kind of ["chat, greedy", "text, greedy, a stop string held back to the end"]) {
        const texts = textsOf(alone[kind]!);
        assert.equal(texts.length, 40);
        assert.ok(texts.slice(0, -1).includes(""), `nothing was held back (${kind}), so this shows nothing`);
      }
    });

    it("is the same bytes from an engine that serves many other requests at the same time", async () => {
      await using engine = await engines.start();
      const left = new AbortController();
      const others = [
        post(engine, "/v1/completions", {
          prompt: `${engines.prompt} `.repeat(20),
          max_tokens: 60,
          temperature: 1,
          ignore_eos: true,
        }),
        post(engine, "/v1/completions", {
          prompt: engines.prompt,
          n: 3,
          max_tokens: 60,
          temperature: 1,
          seed: 5,
          ignore_eos: true,
        }),
        post(engine, "/v1/completions", { prompt: "gone", max_tokens: 300, ignore_eos: true }, {}, left.signal).catch(
          () => "left",
        ),
      ];
      for (let round = 0; round < 2; round++)
        assert.deepEqual(await allAtOnce(streams, (stream) => eventsOf(engine, stream)), alone);
      left.abort();
      await Promise.all(others);
    });

    it("is the same bytes where prefill and decode are apart", async () => {
      await using pair = await engines.startPair();
      const apart = async (stream: Stream): Promise<string[]> => {
        const id = pairedId(pair.prefill, pair.decode);
        const { status, json } = await post(
          pair.prefill,
          stream.path,
          { ...stream.body, stop: null, echo: false, max_tokens: 1, stream_options: null },
          { "x-request-id": id },
        );
        assert.equal(status, 200, JSON.stringify(json));
        return eventsOf(pair.decode, stream, [`x-request-id: ${id}`]);
      };
      // The prompt's log probabilities are no part of its KV.
      const { "text, seeded, with the prompt": _, ...movable } = streams;
      const { "text, seeded, with the prompt": __, ...expected } = alone;
      assert.deepEqual(await allAtOnce(movable, apart), expected);
    });

    it("is the same bytes for a client that reads late", async () => {
      await using engine = await engines.start();
      const long: Stream = {
        path: "/v1/chat/completions",
        body: {
          messages: [{ role: "user", content: engines.prompt }],
          ...SEEDED,
          max_tokens: engines.manyTokens,
          logprobs: true,
          top_logprobs: 20,
          ...CONTINUOUS,
        },
      };
      const read = comparable(await readWhole(await openUnread(engine, long)));
      assert.equal(textsOf(read).length, engines.manyTokens);
      const before = engine.state();
      const socket = await openUnread(engine, long);
      await eventually(
        "its last token",
        () => engine.state().generation_tokens === before.generation_tokens + engines.manyTokens,
        30_000,
      );
      assert.equal(
        engine.state().outcomes.finished,
        before.outcomes.finished,
        "all of it fitted into the sockets, so this shows nothing",
      );
      const late = comparable(await readWhole(socket));
      // Not deepEqual: of megabytes it would print the difference for minutes.
      assert.equal(late.length, read.length);
      assert.ok(late.every((event, index) => event === read[index]));
    });
  });
}
