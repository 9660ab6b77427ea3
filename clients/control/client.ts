// A typed client of a router, for scripts and tests: what grpcurl does by hand. Off the token path, where connect-node's
// cost per message does not matter.
import { createClient, type Client, type Interceptor } from "@connectrpc/connect";
import { createConnectTransport, createGrpcTransport } from "@connectrpc/connect-node";
import { InferenceService } from "#gen/tandem/inference/v1/inference_pb.js";
import { InstanceService } from "#gen/tandem/instance/v1/instance_pb.js";
import { RouterService } from "#gen/tandem/router/v1/router_pb.js";

export interface ControlOptions {
  /** Join token or, for `inference` alone, the API key. */
  readonly token?: string;
}

/** `RouterService` on the router's REST address, such as `http://127.0.0.1:3000`, over HTTP/1.1 and JSON. */
export function routerOverRest(restUrl: string, options: ControlOptions = {}): Client<typeof RouterService> {
  const transport = createConnectTransport({
    baseUrl: restUrl,
    httpVersion: "1.1",
    interceptors: [authorize(options)],
  });
  return createClient(RouterService, transport);
}

/** The gRPC services at one address, such as `127.0.0.1:3001`. An instance serves `instance` alone. */
export interface GrpcClients {
  readonly router: Client<typeof RouterService>;
  readonly inference: Client<typeof InferenceService>;
  readonly instance: Client<typeof InstanceService>;
}

export function overGrpc(address: string, options: ControlOptions = {}): GrpcClients {
  const transport = createGrpcTransport({ baseUrl: `http://${address}`, interceptors: [authorize(options)] });
  return {
    router: createClient(RouterService, transport),
    inference: createClient(InferenceService, transport),
    instance: createClient(InstanceService, transport),
  };
}

function authorize({ token }: ControlOptions): Interceptor {
  return (next) => (request) => {
    if (token !== undefined && token !== "") request.header.set("authorization", `Bearer ${token}`);
    return next(request);
  };
}
