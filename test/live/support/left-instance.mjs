// Run as a program by freeze.test.ts, with a ceiling for its memory. An instance resets most of its calls in one packet,
// while the pool has been told that the instance left and some calls are still being settled. Prints "alive" when it has
// lived through that. Plain JavaScript over dist/, so that it runs on every Node.
import { once } from "node:events";
import { constants, createServer } from "node:http2";
import { systemClock } from "../../../dist/services/common/clock.js";
import { createPool } from "../../../dist/services/router/pool/pool.js";

const log = { debug() {}, info() {}, warn() {}, error() {}, child: () => log };
const ROUNDS = 20;
const CALLS = 8;
const SETTLING = 3;

const server = createServer();
server.on("sessionError", () => {});
server.on("session", (session) => {
  const held = [];
  session.on("error", () => {});
  session.on("stream", (stream, headers) => {
    stream.on("error", () => {});
    stream.resume();
    stream.respond({ ":status": 200, "content-type": "application/grpc+proto" });
    if (headers[":path"].includes("WatchLoad")) return;
    held.push(stream);
    if (held.length !== CALLS) return;
    session.ping(() => {
      for (const one of held.slice(0, -1)) one.close(constants.NGHTTP2_REFUSED_STREAM);
    });
  });
});
server.listen(0, "127.0.0.1");
await once(server, "listening");
const grpcAddress = `127.0.0.1:${server.address().port}`;
const info = { role: 2, model: "m", grpcAddress, kvAddress: "", connector: "p2p-nccl", maxModelLen: 0, engine: "sim" };

for (let round = 0; round < ROUNDS; round++) {
  const pool = createPool({ log, clock: systemClock });
  pool.update([{ ...info, instanceId: `decode-${round}`, startedUnixMs: 0n }]);
  const { instance } = pool.view.decode[0];
  let ended = 0;
  await new Promise((resolve) => {
    for (let index = 0; index < CALLS; index++) {
      const settling = index >= CALLS - SETTLING;
      if (!settling) pool.legStarted(instance);
      const onEnd = () => {
        if (!settling) pool.legEnded(instance, "none");
        if (++ended === CALLS - 1) resolve();
      };
      instance.channel
        .open("/tandem.decode.v1.DecodeService/Decode", { onMessage() {}, onEnd })
        .write(Buffer.alloc(100));
    }
    pool.update([]);
  });
  await pool[Symbol.asyncDispose]();
}
process.stdout.write("alive\n");
process.exit(0);
