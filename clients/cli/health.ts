// `tandem health`: whether a service serves, as an exit code. What a container's HEALTHCHECK runs, where neither curl
// nor a gRPC probe is at hand; so it loads no library: gRPC's health call is one HTTP/2 request with an empty message.
import { connect, constants } from "node:http2";
import { get } from "node:http";
import { defineConfig, address, ConfigError, loadConfig, integer, StartError } from "../../services/common/config.ts";

export const healthConfig = defineConfig(
  "health",
  {
    rest: address({
      optional: true,
      doc: "Ask a router's /readyz here: it serves when it has an instance of each role.",
    }),
    grpc: address({ optional: true, doc: "Ask grpc.health.v1.Health here: router, prefill or decode." }),
    timeout_ms: integer({
      default: 2_000,
      min: 1,
      max: 60_000,
      unit: "ms",
      doc: "No answer within this time counts as not serving.",
    }),
  },
  {
    summary: "Exit code 0 when the service serves, 1 with the reason when not.",
    usage: "tandem health --rest HOST:PORT | --grpc HOST:PORT",
  },
);

export async function runHealth(argv: readonly string[]): Promise<void> {
  const config = loadConfig(healthConfig, { argv, env: {} });
  const { rest, grpc } = config;
  if ((rest === undefined) === (grpc === undefined))
    throw new ConfigError("health needs one of --rest HOST:PORT and --grpc HOST:PORT.");
  const problem =
    rest !== undefined ? await restProblem(rest, config.timeout_ms) : await grpcProblem(grpc!, config.timeout_ms);
  if (problem !== undefined) throw new StartError(`${rest ?? grpc}: ${problem}`);
}

function restProblem(at: string, timeoutMs: number): Promise<string | undefined> {
  return new Promise((resolve) => {
    const call = get(`http://${at}/readyz`, { agent: false, timeout: timeoutMs }, (response) => {
      response.resume();
      resolve(response.statusCode === 200 ? undefined : `not ready (status ${response.statusCode})`);
    });
    call.on("timeout", () => call.destroy(new Error("no answer in time")));
    call.on("error", (error) => resolve(error.message));
  });
}

/** SERVING, as HealthCheckResponse writes it: field 1, varint 1; after gRPC's five bytes of frame. */
const SERVING = Buffer.from([0, 0, 0, 0, 2, 0x08, 1]);

function grpcProblem(at: string, timeoutMs: number): Promise<string | undefined> {
  return new Promise((resolve) => {
    const session = connect(`http://${at}`);
    const done = (problem: string | undefined): void => {
      clearTimeout(timer);
      session.destroy();
      resolve(problem);
    };
    const timer = setTimeout(() => done("no answer in time"), timeoutMs);
    session.on("error", (error) => done(error.message));
    const call = session.request({
      [constants.HTTP2_HEADER_METHOD]: "POST",
      [constants.HTTP2_HEADER_PATH]: "/grpc.health.v1.Health/Check",
      "content-type": "application/grpc",
      te: "trailers",
    });
    const pieces: Buffer[] = [];
    call.on("data", (piece: Buffer) => pieces.push(piece));
    call.on("error", (error) => done(error.message));
    call.on("end", () => done(Buffer.concat(pieces).equals(SERVING) ? undefined : "not serving"));
    call.end(Buffer.alloc(5));
  });
}
