// The thin client against grpc-js's own: the same calls to the same server must come out alike, on both sides.
import assert from "node:assert/strict";
import { Client, Metadata, type ServiceError as GrpcError, credentials } from "@grpc/grpc-js";
import { ServiceError } from "../../services/common/errors.ts";
import { fromStatus } from "../../services/rpc/errors-wire.ts";
import type { RawCall } from "../../services/rpc/service.ts";
import { deferred, within } from "../support/waits.ts";
import { DECODE, dial, serve, rawService } from "./fixture.ts";

interface Outcome {
  readonly messages: readonly string[];
  readonly code: string;
  readonly message: string | undefined;
  readonly engineBody: string | undefined;
  readonly server: readonly string[];
}

interface Case {
  readonly handler: (call: RawCall) => void;
  readonly sends?: readonly Buffer[];
  readonly path?: string;
  readonly token?: string;
  readonly timeoutMs?: number;
  /** Cancels after so many messages. */
  readonly cancelAfter?: number;
}

const asIs = (bytes: Buffer): Buffer => bytes;
const text = (bytes: Buffer): string => (bytes.length > 100 ? `${bytes.length} bytes` : bytes.toString());

async function byGrpcJs(address: string, { sends = [], path = DECODE, token, timeoutMs, cancelAfter }: Case) {
  const client = new Client(address, credentials.createInsecure(), {
    "grpc.use_local_subchannel_pool": 1,
    "grpc.max_receive_message_length": -1,
  });
  const metadata = new Metadata();
  if (token !== undefined) metadata.set("authorization", `Bearer ${token}`);
  const call = client.makeBidiStreamRequest<Buffer, Buffer>(
    path,
    asIs,
    asIs,
    metadata,
    timeoutMs === undefined ? {} : { deadline: Date.now() + timeoutMs },
  );
  const messages: string[] = [];
  const end = deferred<ServiceError | undefined>();
  call.on("data", (message: Buffer) => {
    messages.push(text(message));
    if (messages.length === cancelAfter) call.cancel();
  });
  call.on("error", (error: GrpcError) => {
    const details = error.metadata.get("grpc-status-details-bin")[0];
    end.resolve(fromStatus(error.code, error.details, details === undefined ? undefined : (details as Buffer)));
  });
  call.on("end", () => end.resolve(undefined));
  for (const message of sends) call.write(message);
  call.end();
  const error = await within(end.promise, "the end by grpc-js");
  client.close();
  return { messages, error };
}

async function byThin(address: string, { sends = [], path = DECODE, token, timeoutMs, cancelAfter }: Case) {
  await using channel = dial(address, { token });
  const messages: string[] = [];
  const end = deferred<ServiceError | undefined>();
  const call = channel.open(
    path,
    {
      onMessage(message) {
        messages.push(text(message));
        if (messages.length === cancelAfter) call.cancel();
      },
      onEnd: end.resolve,
    },
    { timeoutMs },
  );
  for (const message of sends) call.write(message);
  call.halfClose();
  return { messages, error: await within(end.promise, "the end by the thin client") };
}

async function run(by: typeof byThin, given: Case): Promise<Outcome> {
  const server: string[] = [];
  const done = deferred();
  const observed = (call: RawCall): void => {
    server.push(`deadline ${call.deadlineMs !== undefined}`, `type ${call.header("content-type")}`);
    given.handler(call);
    const { onMessage, onHalfClose, onCancel } = call;
    call.onMessage = (message) => {
      server.push(`message ${text(message)}`);
      onMessage(message);
    };
    call.onHalfClose = () => {
      server.push("half-close");
      onHalfClose();
      done.resolve();
    };
    call.onCancel = () => {
      server.push("cancel");
      onCancel();
      done.resolve();
    };
  };
  await using rpc = await serve([rawService(observed, "token")], { token: "join" });
  const { messages, error } = await by(rpc.address, given);
  if (given.cancelAfter !== undefined) await within(done.promise, "cancel at the server");
  return {
    messages,
    code: error?.code ?? "ok",
    message: error?.message,
    engineBody: error?.engineAnswer?.body,
    server,
  };
}

const echo = (call: RawCall): void => {
  call.onMessage = (message) => void call.write(message);
  call.onHalfClose = () => call.end();
};

const token = "join";
const cases: Record<string, Case> = {
  "an echo of messages of every size": {
    token,
    handler: echo,
    sends: [0, 1, 5, 16_379, 16_384, 65_536, 70_000, 0, 1_200_000].map((length) => Buffer.alloc(length, 97)),
  },
  "no message at all": { token, handler: (call) => (call.onHalfClose = () => call.end()) },
  "many messages in one turn": {
    token,
    handler: (call) => {
      call.onHalfClose = () => {
        for (let index = 0; index < 2000; index++) call.write(Buffer.from(String(index)));
        call.end();
      };
    },
  },
  "an error before the first message": {
    token,
    handler: (call) => {
      call.onHalfClose = () =>
        call.fail(
          new ServiceError("engine_refused", "ünknown\nfield %41 ", {
            engineAnswer: { status: 400, body: '{"error":"ü"}' },
          }),
        );
    },
  },
  "an error in mid-stream": {
    token,
    handler: (call) => {
      call.onHalfClose = () => {
        call.write(Buffer.from("one"));
        call.write(Buffer.from("two"));
        call.fail(new ServiceError("engine_failed", "It broke."));
      };
    },
  },
  "a missing token": { handler: echo },
  "an unknown method": { token, path: "/no.Such/Method", handler: echo },
  "a deadline": { token, timeoutMs: 100, handler: (call) => call.write(Buffer.from("one")) },
  "a cancel after a message": {
    token,
    cancelAfter: 1,
    handler: (call) => call.write(Buffer.from("one")),
  },
};

describe("the thin client and grpc-js", () => {
  for (const [name, given] of Object.entries(cases)) {
    it(`agree on ${name}`, async () => {
      const [thin, oracle] = [await run(byThin, given), await run(byGrpcJs, given)];
      assert.deepEqual(thin, oracle);
    });
  }
});
