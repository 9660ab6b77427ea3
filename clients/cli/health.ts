// `tandem health`: whether a service serves, as an exit code. Containers run it every few seconds, where neither curl
// nor a gRPC probe is at hand; so it loads only the half that it needs, and not Connect for gRPC's own health call.
import { readFileSync } from "node:fs";
import {
  defineConfig,
  address,
  ConfigError,
  loadConfig,
  milliseconds,
  StartError,
} from "../../services/common/config.ts";
import { SILENT } from "../../services/common/log.ts";
import { tlsSettings, type TlsSettings } from "../../services/rpc/tls-settings.ts";
import { readiness } from "../client/readiness.ts";

const healthConfig = defineConfig(
  "health",
  {
    rest: address(
      "rest",
      "REST address of a router. Asks its /readyz: a router serves when it has an instance of each role.",
      { optional: true },
    ),
    grpc: address("grpc", "gRPC address of a router, prefill or decode instance. Asks its grpc.health.v1.Health.", {
      optional: true,
    }),
    timeoutMs: milliseconds("timeout_ms", "A service that doesn't answer within this time counts as not serving.", {
      default: 2_000,
      max: 60_000,
    }),
    tlsCert: tlsSettings.cert,
    tlsKey: tlsSettings.key,
    tlsCa: tlsSettings.ca,
    tlsPeerIds: tlsSettings.peerIds,
  },
  {
    summary: "Exits with 0 if the service serves, or with 1 and the reason if not.",
    usage: "tandem health --rest HOST:PORT | --grpc HOST:PORT",
  },
);

export async function runHealth(argv: readonly string[]): Promise<void> {
  // Of the variables only those count that say how to connect: the others are settings of the service.
  const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => name.startsWith("TANDEM_TLS_")));
  const config = loadConfig(healthConfig, { argv, env });
  const { rest, grpc, timeoutMs } = config;
  const tls = { cert: config.tlsCert, key: config.tlsKey, ca: config.tlsCa, peerIds: config.tlsPeerIds };
  if ((rest === undefined) === (grpc === undefined))
    throw new ConfigError("health needs one of --rest HOST:PORT and --grpc HOST:PORT.");
  const check = rest !== undefined ? restProblem(rest, tls, timeoutMs) : grpcProblem(grpc!, tls, timeoutMs);
  const problem = await check.catch((error: Error) =>
    error.name === "TimeoutError" ? "no answer in time" : messageOf(error),
  );
  if (problem !== undefined) throw new StartError(`${rest ?? grpc}: ${problem}`);
}

async function restProblem(at: string, { ca }: TlsSettings, timeoutMs: number): Promise<string | undefined> {
  const stop = AbortSignal.timeout(timeoutMs);
  const { ready, reason } = await (ca === ""
    ? readiness(`http://${at}`, stop)
    : readiness(`https://${at}`, stop, readFileSync(ca, "utf8")));
  return ready ? undefined : `not ready: ${reason}`;
}

async function grpcProblem(at: string, tls: TlsSettings, timeoutMs: number): Promise<undefined> {
  const [{ dialRpc }, { openTls }, { HEALTH_WITH_REASON }, { Health }] = await Promise.all([
    import("../../services/rpc/channel.ts"),
    import("../../services/rpc/tls.ts"),
    import("../../services/rpc/health.ts"),
    import("#gen/grpc/health/v1/health_pb.js"),
  ]);
  using opened = openTls(tls, { log: SILENT });
  await using channel = dialRpc(at, { tls: opened });
  // For this service name, an instance that doesn't serve returns an error that says why.
  await channel.client(Health).check({ service: HEALTH_WITH_REASON }, { timeoutMs });
}

/** The error of a connection is the cause; an error that the service itself reports has no cause. */
function messageOf(error: Error): string {
  return error.cause instanceof Error ? error.cause.message : error.message;
}
