// Run as a program by close-in-event.test.ts. Its peer resets several streams in one packet; the channel is closed in
// the end of the last of them, while other calls are still open. Prints "closed" when it has lived through that. Plain
// JavaScript over dist/, because tsx needs more address space than the ceiling that it runs under.
import { once } from "node:events";
import { constants, createServer } from "node:http2";
import { dialRpc } from "../../dist/services/rpc/channel.js";

const log = { debug() {}, info() {}, warn() {}, error() {}, child: () => log };
const ROUNDS = 10;
const CALLS = 8;
const OPEN = 3;

const server = createServer();
server.on("sessionError", () => {});
server.on("session", (session) => {
  const streams = [];
  session.on("error", () => {});
  session.on("stream", (stream) => {
    stream.on("error", () => {});
    stream.resume();
    stream.respond({ ":status": 200, "content-type": "application/grpc+proto" });
    streams.push(stream);
    if (streams.length !== CALLS) return;
    session.ping(() => {
      for (const one of streams.slice(0, -1)) one.close(constants.NGHTTP2_REFUSED_STREAM);
    });
  });
});
server.listen(0, "127.0.0.1");
await once(server, "listening");
const address = `127.0.0.1:${server.address().port}`;

for (let round = 0; round < ROUNDS; round++) {
  const channel = dialRpc(address, { log });
  let ended = 0;
  await new Promise((resolve) => {
    for (let index = 0; index < CALLS; index++) {
      const onEnd = () => {
        if (++ended === CALLS - OPEN) void channel[Symbol.asyncDispose]().then(resolve);
      };
      channel.open("/tandem.decode.v1.DecodeService/Decode", { onMessage() {}, onEnd }).write(Buffer.alloc(100));
    }
  });
}
process.stdout.write("closed\n");
process.exit(0);
