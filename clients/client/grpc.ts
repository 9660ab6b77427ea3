// The gRPC services at one address: a router's, or those of an instance, which has no other protocol.
import type { Client } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { InferenceService } from "#gen/tandem/inference/v1/inference_pb.js";
import { InstanceService } from "#gen/tandem/instance/v1/instance_pb.js";
import { RouterService } from "#gen/tandem/router/v1/router_pb.js";
import { authorized, typedCalls } from "./calls.ts";

export interface GrpcClient {
  /** Service of a prefill or decode instance: its facts, its load, drain. */
  readonly instance: Client<typeof InstanceService>;
  /** Control service of a router. */
  readonly router: Client<typeof RouterService>;
  /** Inference service of a router; requires the API key. */
  readonly inference: Client<typeof InferenceService>;
}

/**
 * @param address Such as `127.0.0.1:3001`.
 * @param secret Join token or, if only `inference` is called, the API key.
 */
export function grpcClient(address: string, secret = ""): GrpcClient {
  const transport = createGrpcTransport({ baseUrl: `http://${address}`, interceptors: [authorized(secret)] });
  return {
    instance: typedCalls(InstanceService, transport, address),
    router: typedCalls(RouterService, transport, address),
    inference: typedCalls(InferenceService, transport, address),
  };
}
