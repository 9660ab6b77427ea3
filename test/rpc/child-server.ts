// Run by fixture.ts in a process of its own, to be stopped and killed.
import { createServer } from "node:net";
import { silentLog } from "../support/log-sink.ts";
import { serveRaw } from "./fixture.ts";

process.stdin.resume().once("close", () => process.exit()); // The test is gone.
if (process.argv[2] === "rpc") {
  const server = await serveRaw(
    (call) => {
      call.onMessage = (message) => void call.write(message);
      call.onHalfClose = () => call.end();
    },
    { log: silentLog },
  );
  process.stdout.write(`${server.address}\n`);
} else {
  // The kernel accepts one connection more than the backlog for a process that is stopped, then ignores SYNs.
  const server = createServer();
  server.listen({ host: "127.0.0.1", port: 0, backlog: 1 }, () => {
    const address = server.address();
    if (address !== null && typeof address === "object") process.stdout.write(`127.0.0.1:${address.port}\n`);
  });
}
