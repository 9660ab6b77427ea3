// Run by fixture.ts in a process of its own, to be stopped and killed.
import { createServer } from "node:net";
import { silentLog } from "../support/log-sink.ts";
import { manualClock } from "../support/manual-clock.ts";
import { DECODE, dial, dialBeating, serveRaw } from "./fixture.ts";

process.stdin.resume().once("close", () => process.exit()); // The test is gone.
if (process.argv[2] === "rpc") {
  const server = await serveRaw(
    (call) => {
      call.onMessage = (message) => void call.write(message);
      call.onHalfClose = () => call.end();
    },
    // The clock stands still: a test that holds up its heartbeats is not taken for gone.
    { log: silentLog, graceMs: 60_000, clock: manualClock() },
  );
  process.on("SIGTERM", () => void server[Symbol.asyncDispose]()); // GOAWAY, with its calls still running.
  process.stdout.write(`${server.address}\n`);
} else if (process.argv[2] === "caller" || process.argv[2] === "beating") {
  (process.argv[2] === "caller" ? dial : dialBeating)(process.argv[3]!).open(DECODE, {
    onMessage: () => process.stdout.write("calling\n"),
    onEnd: () => process.exit(),
  });
} else {
  // The kernel accepts one connection more than the backlog for a process that is stopped, then ignores SYNs.
  const server = createServer();
  server.listen({ host: "127.0.0.1", port: 0, backlog: 1 }, () => {
    const address = server.address();
    if (address !== null && typeof address === "object") process.stdout.write(`127.0.0.1:${address.port}\n`);
  });
}
