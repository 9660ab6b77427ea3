// Server reflection v1 and v1alpha, so that `grpcurl HOST list` needs no proto file and shows the comments of the
// protos. https://github.com/grpc/grpc/blob/master/doc/server-reflection.md
import type { MessageInitShape } from "@bufbuild/protobuf";
import {
  ServerReflection,
  type ServerReflectionRequest,
  type ServerReflectionResponseSchema,
} from "#gen/grpc/reflection/v1/reflection_pb.js";
import { ServerReflection as ServerReflectionAlpha } from "#gen/grpc/reflection/v1alpha/reflection_pb.js";
import { GRPC_CODES, ServiceError } from "../common/errors.ts";
import type { DescriptorIndex } from "./descriptors.ts";
import { type RpcService, type ServiceImpl, defineService } from "./service.ts";

/** Both services for a server that serves `names`. Descriptors are read at the first call. */
export function reflectionServices(names: readonly string[]): readonly RpcService[] {
  const listed = [...names, ServerReflection.typeName, ServerReflectionAlpha.typeName].sort();
  const impl: ServiceImpl<typeof ServerReflection> = {
    async *serverReflectionInfo(requests) {
      const index = await loadIndex();
      for await (const request of requests) {
        yield { validHost: request.host, originalRequest: request, messageResponse: answer(request, index, listed) };
      }
    },
  };
  return [
    defineService(ServerReflection, impl, { access: "open" }),
    // The messages of v1 and v1alpha differ only in their names.
    defineService(ServerReflectionAlpha, impl as unknown as ServiceImpl<typeof ServerReflectionAlpha>, {
      access: "open",
    }),
  ];
}

type Answer = NonNullable<MessageInitShape<typeof ServerReflectionResponseSchema>["messageResponse"]>;

function answer(
  { messageRequest: asked }: ServerReflectionRequest,
  index: DescriptorIndex,
  listed: readonly string[],
): Answer {
  switch (asked.case) {
    case "listServices":
      return { case: "listServicesResponse", value: { service: listed.map((name) => ({ name })) } };
    case "fileByFilename":
      return files(index.withImports(asked.value), `No proto file ${JSON.stringify(asked.value)}.`);
    case "fileContainingSymbol":
      return files(index.withImports(index.fileOf(asked.value) ?? ""), `No symbol ${JSON.stringify(asked.value)}.`);
    case "fileContainingExtension":
    case "allExtensionNumbersOfType":
      return failure(GRPC_CODES.NOT_FOUND, "Tandem's protos have no extensions.");
    default:
      return failure(GRPC_CODES.INVALID_ARGUMENT, "The reflection request asks for nothing.");
  }
}

function files(found: Uint8Array[] | undefined, problem: string): Answer {
  if (found === undefined) return failure(GRPC_CODES.NOT_FOUND, problem);
  return { case: "fileDescriptorResponse", value: { fileDescriptorProto: found } };
}

function failure(errorCode: number, errorMessage: string): Answer {
  return { case: "errorResponse", value: { errorCode, errorMessage } };
}

// One index for the process: all its servers show the same protos. It is kept, because it is small (about 0.2 MB).
let loading: Promise<DescriptorIndex> | undefined;

function loadIndex(): Promise<DescriptorIndex> {
  loading ??= import("./descriptors.ts").then(({ readDescriptors }) => readDescriptors());
  return loading.catch((cause: unknown) => {
    loading = undefined; // The file may exist next time.
    throw new ServiceError("failed_precondition", "gen/descriptors.binpb can't be read. Run `npm run gen`.", { cause });
  });
}
