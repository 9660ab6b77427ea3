// The typed client of Tandem, as the package exports it.
//
//   import { tandemClient } from "@tandem-llm/tandem";
//   const tandem = tandemClient({ url: "http://127.0.0.1:3000", token });
//   for await (const { choices } of await tandem.streamChat({ model, messages })) { ... }
//   const { instances } = await tandem.router.listInstances({});
export { tandemClient, type TandemClient, type TandemClientOptions } from "./client.ts";
export { TandemError, type TandemErrorKind } from "./errors.ts";
export { grpcClient, type GrpcClient } from "./grpc.ts";
export type * from "./openai.ts";
export type { Readiness } from "./readiness.ts";
export type { RouterClient } from "./router.ts";
