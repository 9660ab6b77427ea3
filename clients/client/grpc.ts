// The gRPC services at one address: a router's, or an instance's, which speaks nothing else.
import { Health } from "#gen/grpc/health/v1/health_pb.js";
import { InferenceService } from "#gen/tandem/inference/v1/inference_pb.js";
import { InstanceService } from "#gen/tandem/instance/v1/instance_pb.js";
import { RouterService } from "#gen/tandem/router/v1/router_pb.js";
import { dialRpc, type RpcClient } from "../../services/rpc/client.ts";

/** Methods by name; all take `{ signal, timeoutMs }` and throw ServiceError, whose `code` is one of Tandem's. */
export interface GrpcClient extends AsyncDisposable {
  readonly health: RpcClient<typeof Health>;
  /** Of a prefill or decode instance. */
  readonly instance: RpcClient<typeof InstanceService>;
  /** Of a router. */
  readonly router: RpcClient<typeof RouterService>;
  /** Of a router; takes the API key. */
  readonly inference: RpcClient<typeof InferenceService>;
}

/**
 * @param address Such as `127.0.0.1:3001`.
 * @param secret Join token or, for `inference` alone, the API key.
 */
export function grpcClient(address: string, secret?: string): GrpcClient {
  const channel = dialRpc(address, { token: secret });
  return {
    health: channel.client(Health),
    instance: channel.client(InstanceService),
    router: channel.client(RouterService),
    inference: channel.client(InferenceService),
    [Symbol.asyncDispose]: () => channel[Symbol.asyncDispose](),
  };
}
