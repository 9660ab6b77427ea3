// RouterService for the commands. The join token is proven over gRPC where the router's gRPC address is known. Over
// REST it would be sent, so that takes TLS, or a router on this machine.
import type { RouterService } from "#gen/tandem/router/v1/router_pb.js";
import { isLoopbackHost } from "../../services/common/address.ts";
import { ConfigError } from "../../services/common/config.ts";
import { ServiceError } from "../../services/common/errors.ts";
import { SILENT } from "../../services/common/log.ts";
import type { RpcClient } from "../../services/rpc/client.ts";
import { peerFault } from "../../services/rpc/peer-fault.ts";
import { TandemError, type TandemErrorKind } from "../client/errors.ts";
import { routerClient } from "../client/rpc.ts";
import type { RouterTarget } from "./router-target.ts";

export type RouterCalls = RpcClient<typeof RouterService>;

type Target = Pick<RouterTarget, "url" | "grpcAddress" | "token" | "tls">;

/** @throws TandemError, whatever carries the calls; what `use` throws otherwise. */
export async function withRouter<T>(target: Target, use: (router: RouterCalls) => Promise<T>): Promise<T> {
  const { url, grpcAddress, token, tls } = target;
  if (grpcAddress === undefined) {
    const { protocol, hostname } = new URL(url);
    if (token !== "" && protocol === "http:" && !isLoopbackHost(hostname.replace(/^\[|\]$/g, "")))
      throw new ConfigError(
        `The join token would be sent to ${url} in clear. Give the router's gRPC address with --router.grpc HOST:PORT, ` +
          "where it is only proven, or an https:// URL.",
      );
    return use(routerClient(url, token) as unknown as RouterCalls);
  }
  const [{ dialRpc }, { openTls }, { RouterService: service }] = await Promise.all([
    import("../../services/rpc/channel.ts"),
    import("../../services/rpc/tls.ts"),
    import("#gen/tandem/router/v1/router_pb.js"),
  ]);
  using opened = openTls(tls, { log: SILENT });
  await using channel = dialRpc(grpcAddress, { token, tls: opened });
  try {
    return await use(channel.client(service));
  } catch (error) {
    throw error instanceof ServiceError ? asTandemError(grpcAddress, error) : error;
  }
}

function asTandemError(at: string, error: ServiceError): TandemError {
  const { kind, text } = peerFault(error);
  const details = { code: error.code, cause: error };
  const as = (tandemKind: TandemErrorKind, message = error.message): TandemError =>
    new TandemError(tandemKind, message, details);
  switch (kind) {
    case "credentials":
      return new TandemError("unauthenticated", text, { code: "unauthenticated", cause: error });
    case "address":
      return as("unreachable", `${at} can't be reached: ${text}.`);
    case "timeout":
      return as("unreachable", `${at} did not answer in time.`);
    case "version":
      return as("not_tandem", `${at} answers, but not as a router of this version does.`);
    case "refused":
      return as("failed");
    default:
      return as("failed", text);
  }
}
