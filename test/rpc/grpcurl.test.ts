// The server as an operator meets it, with the real grpcurl and no proto file.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { text } from "node:stream/consumers";
import { RegistryService } from "#gen/tandem/registry/v1/registry_pb.js";
import { RouterService } from "#gen/tandem/router/v1/router_pb.js";
import { ServiceError } from "../../services/common/errors.ts";
import { type RpcService, defineService } from "../../services/rpc/service.ts";
import { skip } from "../support/skip.ts";
import { grpcurl } from "../support/tools.ts";
import { rawService, serve } from "./fixture.ts";

const registry = defineService(
  RegistryService,
  {
    async *register(requests) {
      for await (const { info } of requests) yield { routerId: `router of ${info?.instanceId}` };
    },
  },
  { access: "token" },
);

/** RouterService with two methods; the others say that they are not served. */
const router: RpcService = {
  descriptor: RouterService,
  access: "open",
  raw: {},
  typed: {
    listInstances: async () => ({ instances: [{ legs: 3 }] }),
    getReceipt: async () => {
      throw new ServiceError("not_found", "No request of this id.", { param: "request_id", retryAfterS: 2 });
    },
  },
};

describe("grpcurl", () => {
  let tool = "";
  before(async function () {
    this.timeout(120_000);
    const found = await grpcurl();
    if ("missing" in found) skip(this, found.missing);
    tool = found.path;
  });

  async function run(args: readonly string[], input = ""): Promise<{ code: number | null; out: string }> {
    const child = spawn(tool, args, { stdio: ["pipe", "pipe", "pipe"] });
    child.stdin.end(input);
    const [out, err, code] = await Promise.all([
      text(child.stdout),
      text(child.stderr),
      new Promise<number | null>((resolve) => child.once("close", resolve)),
    ]);
    return { code, out: out + err };
  }

  async function served(use: (address: string) => Promise<void>): Promise<void> {
    await using server = await serve([router, registry, rawService((call) => (call.onHalfClose = () => call.end()))], {
      token: "join",
    });
    server.setServing(true);
    await use(server.address);
  }

  it("lists the services, over both versions of reflection", () =>
    served(async (address) => {
      const { out } = await run(["-plaintext", address, "list"]);
      assert.deepEqual(out.trim().split("\n"), [
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
        "tandem.decode.v1.DecodeService",
        "tandem.identity.v1.IdentityService",
        "tandem.registry.v1.RegistryService",
        "tandem.router.v1.RouterService",
      ]);
      const ask = JSON.stringify({ list_services: "" });
      for (const version of ["v1", "v1alpha"]) {
        const answer = await run([
          "-plaintext",
          "-d",
          ask,
          address,
          `grpc.reflection.${version}.ServerReflection/ServerReflectionInfo`,
        ]);
        assert.match(answer.out, /tandem\.router\.v1\.RouterService/);
      }
    }));

  it("describes services, methods and messages with their comments", () =>
    served(async (address) => {
      const service = await run(["-plaintext", address, "describe", "tandem.decode.v1.DecodeService"]);
      assert.match(service.out, /One leg\. The first request message reserves a KV slot/);
      const method = await run(["-plaintext", address, "describe", "tandem.router.v1.RouterService.GetReceipt"]);
      assert.match(method.out, /NOT_FOUND +No such request/);
      const message = await run(["-plaintext", address, "describe", "tandem.decode.v1.Reserve"]);
      assert.match(message.out, /never used twice/);
      const nested = await run(["-plaintext", address, "describe", "grpc.health.v1.HealthCheckResponse.ServingStatus"]);
      assert.match(nested.out, /NOT_SERVING = 2/);
    }));

  it("is told which symbol or file does not exist", () =>
    served(async (address) => {
      const { code, out } = await run(["-plaintext", address, "describe", "tandem.no.Such"]);
      assert.notEqual(code, 0);
      assert.match(out, /Symbol not found|No symbol/);
      for (const ask of [
        { file_by_filename: "no/such.proto" },
        { file_containing_extension: { containing_type: "tandem.decode.v1.Start", extension_number: 7 } },
      ]) {
        const answer = await run([
          "-plaintext",
          "-d",
          JSON.stringify(ask),
          address,
          "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        ]);
        assert.match(answer.out, /"errorCode": 5/);
      }
    }));

  it("finds every file that a file imports, Google's included", () =>
    served(async (address) => {
      for (const symbol of [
        "google.rpc.Status",
        "google.rpc.RetryInfo",
        "google.protobuf.Any",
        "tandem.registry.v1.RegisterRequest",
      ]) {
        const { code, out } = await run(["-plaintext", address, "describe", symbol]);
        assert.equal(code, 0, out);
      }
    }));

  it("checks the health", () =>
    served(async (address) => {
      const { out } = await run([
        "-plaintext",
        "-d",
        '{"service":"tandem.router.v1.RouterService"}',
        address,
        "grpc.health.v1.Health/Check",
      ]);
      assert.deepEqual(JSON.parse(out), { status: "SERVING" });
    }));

  it("calls a unary method", () =>
    served(async (address) => {
      const { out } = await run(["-plaintext", address, "tandem.router.v1.RouterService/ListInstances"]);
      assert.deepEqual(JSON.parse(out), { instances: [{ legs: 3 }] });
    }));

  it("calls a bidirectional stream from its standard input", () =>
    served(async (address) => {
      const input = ["a", "b"].map((instanceId) => JSON.stringify({ info: { instanceId } })).join("\n");
      const { out } = await run(
        [
          "-plaintext",
          "-H",
          "authorization: Bearer join",
          "-d",
          "@",
          address,
          "tandem.registry.v1.RegistryService/Register",
        ],
        input,
      );
      assert.match(out, /router of a"\s*}\s*{\s*"routerId": "router of b"/);
    }));

  it("shows the details of an error", () =>
    served(async (address) => {
      const { out } = await run(["-plaintext", address, "tandem.router.v1.RouterService/GetReceipt"]);
      assert.match(out, /Code: NotFound\s+Message: No request of this id\./);
      assert.match(out, /google\.rpc\.ErrorInfo/);
      assert.match(out, /"reason": "not_found"/);
      assert.match(out, /"domain": "tandem"/);
      assert.match(out, /"param": "request_id"/);
      assert.match(out, /"retryDelay": "2s"/);
    }));

  it("is told which credentials to pass", () =>
    served(async (address) => {
      const { code, out } = await run([
        "-plaintext",
        "-d",
        "{}",
        address,
        "tandem.registry.v1.RegistryService/Register",
      ]);
      assert.notEqual(code, 0);
      assert.match(out, /Unauthenticated/);
      assert.match(out, /authorization: Bearer <token>/);
    }));
});
