// The router process as a whole, without instances: its services, its start and its end.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { createServer, type AddressInfo } from "node:net";
import { create } from "@bufbuild/protobuf";
import { Health, HealthCheckResponse_ServingStatus as Status } from "#gen/grpc/health/v1/health_pb.js";
import { InfoSchema, Role } from "#gen/tandem/instance/v1/instance_pb.js";
import { RouterService } from "#gen/tandem/router/v1/router_pb.js";
import { loadConfig } from "../../services/common/config.ts";
import { registerAtRouter } from "../../services/discovery/embedded.ts";
import { routerConfig } from "../../services/router/config.ts";
import { startRouter, type Router } from "../../services/router/main.ts";
import { dialRpc } from "../../services/rpc/channel.ts";
import { logSink, type LogSink } from "../support/log-sink.ts";
import { eventually, freePort, within } from "../support/waits.ts";

const PORTS = ["--rest.listen", "127.0.0.1:0", "--grpc.listen", "127.0.0.1:0"];

function start(argv: readonly string[], env: Record<string, string> = {}, logs: LogSink = logSink()): Promise<Router> {
  return startRouter(loadConfig(routerConfig, { argv, env }), { log: logs.log });
}

describe("a router", () => {
  it("serves RouterService as JSON beside REST, and instances register over gRPC", async () => {
    await using router = await start(PORTS);
    const list = async () => {
      const response = await fetch(`${router.restUrl}/tandem.router.v1.RouterService/ListInstances`, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: "{}",
      });
      return (await response.json()) as { instances?: { info: { instanceId: string } }[]; routerId: string };
    };
    assert.match((await list()).routerId, /^router-[0-9a-f]{8}$/);
    const info = create(InfoSchema, {
      instanceId: "d1",
      role: Role.DECODE,
      model: "m",
      connector: "p2p-zmq",
      grpcAddress: "127.0.0.1:9",
      kvAddress: "127.0.0.1:9",
      maxModelLen: 10,
    });
    const o = { address: router.grpcAddress, log: logSink().log };
    await using registration = registerAtRouter(() => info, o);
    await eventually("it is listed", async () => (await list()).instances?.[0]?.info.instanceId === "d1");
    assert.equal((await fetch(`${router.restUrl}/readyz`)).status, 503);
    await registration[Symbol.asyncDispose]();
    await eventually("it is gone", async () => (await list()).instances === undefined);
  });

  it("asks callers of RouterService for the join token, and the page stays open", async () => {
    await using router = await start([...PORTS, "--token", "t0ken"]);
    const call = (headers: Record<string, string>) =>
      fetch(`${router.restUrl}/tandem.router.v1.RouterService/GetConfig`, {
        method: "POST",
        headers: { "content-type": "application/json", ...headers },
        body: "{}",
      });
    assert.equal((await call({})).status, 401);
    const answer = await (await call({ authorization: "Bearer t0ken" })).text();
    assert.match(answer, /"key":"token","value":"set","origin":"flag --token"/);
    assert.doesNotMatch(answer, /t0ken/);
    const page = await (await fetch(router.restUrl)).text();
    assert.doesNotMatch(page, /t0ken/);
  });

  it("logs every setting with its origin when it starts, and no secret", async () => {
    const logs = logSink();
    await using router = await start([...PORTS, "--token", "t0ken"], { TANDEM_QUEUE_LIMIT: "9" }, logs);
    assert.ok(router.restUrl);
    const [line, ...more] = logs.events("settings");
    assert.equal(more.length, 0);
    const settings = line!["settings"] as readonly string[];
    assert.equal(line!["level"], "info", "the level that is logged by default");
    assert.equal(settings.length, routerConfig.options.size);
    assert.ok(settings.includes("queue.limit = 9 requests (env TANDEM_QUEUE_LIMIT)"));
    assert.ok(settings.includes("token = set (flag --token)"));
    assert.ok(settings.includes("stall_ms = 30000 ms (default)"));
    assert.doesNotMatch(JSON.stringify(logs.lines), /t0ken/);
  });

  it("is healthy over gRPC until it stops", async () => {
    await using router = await start(PORTS);
    await using channel = dialRpc(router.grpcAddress);
    assert.equal((await channel.client(Health).check({ service: "" })).status, Status.SERVING);
    await channel.client(RouterService).listInstances({});
    await within(router.stop(0), "the stop");
    await assert.rejects(channel.client(Health).check({ service: "" }));
  });

  it("says which address is taken and which flag changes it, and leaves nothing behind", async () => {
    const other = createServer().listen(0, "127.0.0.1");
    await once(other, "listening");
    const taken = `127.0.0.1:${(other.address() as AddressInfo).port}`;
    const grpc = `127.0.0.1:${await freePort()}`;
    await assert.rejects(
      start(["--rest.listen", taken, "--grpc.listen", grpc]),
      new RegExp(`${taken} for REST: .*--port`),
    );
    await using again = await start(["--rest.listen", "127.0.0.1:0", "--grpc.listen", grpc]);
    assert.equal(again.grpcAddress, grpc, "the port of the start that failed is free again");
    await assert.rejects(
      start(["--rest.listen", "127.0.0.1:0", "--grpc.listen", taken]),
      new RegExp(`${taken}: .*--grpc`),
    );
    other.close();
  });

  it("leaves OPENAI_API_KEY to clients, and warns of what is open to other machines", async () => {
    await using router = await start(PORTS, { OPENAI_API_KEY: "sk-of-a-client" });
    assert.equal((await fetch(`${router.restUrl}/v1/models`)).status, 200);
    const open = logSink();
    const env = { TANDEM_TOKEN: "join" };
    await using wide = await start(["--rest.listen", "0.0.0.0:0", "--grpc.listen", "0.0.0.0:0"], env, open);
    assert.ok(wide.restUrl);
    const warnings = open.lines.filter(({ level }) => level === "warn").map(({ msg }) => msg);
    assert.equal(warnings.length, 3);
    for (const expected of [/^REST is .* no API key is set/, /^REST is served in clear/, /^gRPC is served in clear/])
      assert.ok(
        warnings.some((warning) => expected.test(warning)),
        `${expected}`,
      );
  });
});

describe("the router process", function () {
  this.timeout(30_000);
  const script = 'import("./services/router/main.ts").then(({ runRouter }) => runRouter(process.argv.slice(1)))';
  const run = (argv: readonly string[]) =>
    spawn(process.execPath, ["--import", "tsx", "-e", script, "--", ...argv], {
      stdio: ["ignore", "pipe", "pipe"],
      env: { ...process.env, TANDEM_LOG_FORMAT: "json" },
    });

  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) {
    it(`ends soon and well after ${signal}`, async () => {
      const child = run(PORTS);
      let log = "";
      await new Promise<void>((resolve) => {
        child.stderr.on("data", (piece) => {
          log += piece;
          if (log.includes("router is listening")) resolve();
        });
      });
      const exit = once(child, "exit");
      child.kill(signal);
      assert.deepEqual(await exit, [0, null]);
      assert.match(log, /router has stopped/);
    });
  }
});
