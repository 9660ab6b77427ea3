// `tandem health`: whether a service serves, as an exit code. Containers run it every few seconds, where neither curl nor a
// gRPC probe is at hand; so it loads only the half that it needs, and not Connect for gRPC's own health call.
import {
  defineConfig,
  address,
  ConfigError,
  loadConfig,
  milliseconds,
  StartError,
} from "../../services/common/config.ts";
import { readiness } from "../client/readiness.ts";

const healthConfig = defineConfig(
  "health",
  {
    rest: address("rest", "Ask a router's /readyz here: it serves when it has an instance of each role.", {
      optional: true,
    }),
    grpc: address("grpc", "Ask grpc.health.v1.Health here: router, prefill or decode.", { optional: true }),
    timeoutMs: milliseconds("timeout_ms", "No answer within this time counts as not serving.", {
      default: 2_000,
      max: 60_000,
    }),
  },
  {
    summary: "Exit code 0 when the service serves, 1 with the reason when not.",
    usage: "tandem health --rest HOST:PORT | --grpc HOST:PORT",
  },
);

export async function runHealth(argv: readonly string[]): Promise<void> {
  const config = loadConfig(healthConfig, { argv, env: {} });
  const { rest, grpc, timeoutMs } = config;
  if ((rest === undefined) === (grpc === undefined))
    throw new ConfigError("health needs one of --rest HOST:PORT and --grpc HOST:PORT.");
  const check = rest !== undefined ? restProblem(rest, timeoutMs) : grpcProblem(grpc!, timeoutMs);
  const problem = await check.catch((error: Error) =>
    error.name === "TimeoutError" ? "no answer in time" : messageOf(error),
  );
  if (problem !== undefined) throw new StartError(`${rest ?? grpc}: ${problem}`);
}

async function restProblem(at: string, timeoutMs: number): Promise<string | undefined> {
  const { ready, reason } = await readiness(`http://${at}`, AbortSignal.timeout(timeoutMs));
  return ready ? undefined : `not ready: ${reason}`;
}

async function grpcProblem(at: string, timeoutMs: number): Promise<undefined> {
  const [{ dialRpc }, { HEALTH_WITH_REASON }, { Health }] = await Promise.all([
    import("../../services/rpc/channel.ts"),
    import("../../services/rpc/health.ts"),
    import("#gen/grpc/health/v1/health_pb.js"),
  ]);
  await using channel = dialRpc(at);
  // Under this name a service that doesn't serve says why, by an error.
  await channel.client(Health).check({ service: HEALTH_WITH_REASON }, { timeoutMs });
}

/** A connection's error is the cause; what the service says of itself has none. */
function messageOf(error: Error): string {
  return error.cause instanceof Error ? error.cause.message : error.message;
}
