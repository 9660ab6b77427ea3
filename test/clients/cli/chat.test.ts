import assert from "node:assert/strict";
import { spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { create, toBinary } from "@bufbuild/protobuf";
import { GetReceiptResponseSchema } from "#gen/tandem/router/v1/router_pb.js";
import { figures } from "../../../clients/cli/chat/turn.ts";
import { bytesText } from "../../../clients/common/bytes-text.ts";
import { nextEvent, within } from "../../support/waits.ts";

const CLI = fileURLToPath(new URL("../../../dist/clients/cli/main.js", import.meta.url));

interface Router extends AsyncDisposable {
  readonly url: string;
  /** Bodies of the chats that were asked for. */
  readonly asked: { messages: { role: string; content: string }[] }[];
}

/** Answers "one two" to everything, or begins to answer and goes on for ever. */
async function startRouter(endless = false): Promise<Router> {
  const asked: Router["asked"] = [];
  const answer = async (req: IncomingMessage, res: ServerResponse): Promise<void> => {
    let body = "";
    for await (const piece of req) body += String(piece);
    if (req.url === "/v1/models") return void res.end('{"data":[{"id":"tiny"}]}');
    if (req.url?.endsWith("GetReceipt") === true) {
      const receipt = create(GetReceiptResponseSchema, { receipt: { legs: [{ kvBytes: 2_048n }] } });
      return void res.setHeader("content-type", "application/proto").end(toBinary(GetReceiptResponseSchema, receipt));
    }
    asked.push(JSON.parse(body));
    res.setHeader("x-request-id", "r1");
    const event = (delta: string): string => `data: {"choices":[{"delta":{"content":"${delta}"}}]}\n\n`;
    res.write(event("one "));
    if (endless) return;
    res.end(`${event("two")}data: {"choices":[],"usage":{"completion_tokens":2}}\n\ndata: [DONE]\n\n`);
  };
  const server = createServer((req, res) => void answer(req, res)).listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    asked,
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      await new Promise((done) => server.close(done));
    },
  };
}

function startChat(
  url: string,
  ...flags: string[]
): { child: ChildProcess; output: Promise<{ stdout: string; stderr: string; code: number | null }> } {
  const child = spawn(
    process.execPath,
    [CLI, "chat", "--router", url, "--state.dir", join(tmpdir(), "tandem-no-runs"), ...flags],
    {
      env: { ...process.env, OPENAI_API_KEY: "" },
    },
  );
  let stdout = "";
  let stderr = "";
  child.stdout.on("data", (text) => (stdout += String(text)));
  child.stderr.on("data", (text) => (stderr += String(text)));
  return { child, output: once(child, "close").then(([code]) => ({ stdout, stderr, code: code as number | null })) };
}

describe("tandem chat", () => {
  it("answers the lines of a pipe in order, each with the conversation so far", async () => {
    await using router = await startRouter();
    const { child, output } = startChat(router.url, "--system", "Be brief.");
    child.stdin!.end("first\n\nsecond\n/new\nthird\n");
    const { stdout, stderr, code } = await within(output, "the end of the chat", 15_000);
    assert.deepEqual([stdout, code], ["one two\none two\none two\n", 0]);
    assert.deepEqual(
      router.asked.map(({ messages }) => messages.map(({ content }) => content)),
      [
        ["Be brief.", "first"],
        ["Be brief.", "first", "one two", "second"],
        ["Be brief.", "third"],
      ],
    );
    assert.match(stderr, /TTFT \d+ ms.*2 tokens, KV moved 2\.0 KiB/);
  });

  it("stops a running answer and quits when it is interrupted", async () => {
    await using router = await startRouter(true);
    const { child, output } = startChat(router.url);
    child.stdin!.write("go on\n");
    await nextEvent(child.stdout!, "data", 15_000);
    child.kill("SIGINT");
    const { stdout, stderr, code } = await within(output, "the end of the chat");
    assert.deepEqual([stdout, code], ["one \n", 0]);
    assert.match(stderr, /stopped/);
  });

  it("says what to do if no router answers", async () => {
    await using router = await startRouter();
    const { url } = router;
    await router[Symbol.asyncDispose]();
    const { output } = startChat(url);
    const { stderr, code } = await within(output, "the end of the chat", 15_000);
    assert.equal(code, 1);
    assert.match(stderr, /Nothing listens at .*tandem up/);
  });
});

describe("the figures of a turn", () => {
  it("leave out unknown values", () => {
    const turn = {
      requestId: "",
      text: "",
      ttftMs: Number.NaN,
      writingMs: Number.NaN,
      tokens: Number.NaN,
      stopped: true,
    };
    assert.equal(figures(turn, undefined), "stopped");
    assert.equal(
      figures({ ...turn, ttftMs: 41.6, writingMs: 100, tokens: 11, stopped: false }, 3 * 1024 ** 2),
      "TTFT 42 ms, 100 tokens/s, 11 tokens, KV moved 3.0 MiB",
    );
  });

  it("give bytes in a unit that fits", () => {
    assert.deepEqual([512, 33 * 1024, 5.25 * 1024 ** 2].map(bytesText), ["512 B", "33 KiB", "5.3 MiB"]);
  });
});
