// A service with one method of each kind, made without a proto file. Number { int32 value = 1; bytes pad = 2; }
import { type DescMessage, type DescService, create, createFileRegistry } from "@bufbuild/protobuf";
import {
  FieldDescriptorProto_Label,
  FieldDescriptorProto_Type,
  FileDescriptorProtoSchema,
} from "@bufbuild/protobuf/wkt";
import type { CallContext, RpcService } from "../../services/rpc/service.ts";

const method = (name: string, clientStreaming: boolean, serverStreaming: boolean) => ({
  name,
  inputType: ".toy.Number",
  outputType: ".toy.Number",
  clientStreaming,
  serverStreaming,
});

const file = create(FileDescriptorProtoSchema, {
  name: "toy.proto",
  package: "toy",
  syntax: "proto3",
  messageType: [
    {
      name: "Number",
      field: [
        {
          name: "value",
          number: 1,
          type: FieldDescriptorProto_Type.INT32,
          label: FieldDescriptorProto_Label.OPTIONAL,
          jsonName: "value",
        },
        {
          name: "pad",
          number: 2,
          type: FieldDescriptorProto_Type.BYTES,
          label: FieldDescriptorProto_Label.OPTIONAL,
          jsonName: "pad",
        },
      ],
    },
  ],
  service: [
    {
      name: "Toy",
      method: [
        method("Unary", false, false),
        method("Gather", true, false),
        method("Scatter", false, true),
        method("Talk", true, true),
      ],
    },
  ],
});

const registry = createFileRegistry(file, () => undefined);
export const Toy: DescService = registry.getService("toy.Toy")!;
export const NumberSchema: DescMessage = registry.getMessage("toy.Number")!;

export interface Value {
  value: number;
  pad?: Uint8Array;
}

export interface ToyImpl {
  unary?(request: Value, context: CallContext): Promise<Value>;
  gather?(requests: AsyncIterable<Value>, context: CallContext): Promise<Value>;
  scatter?(request: Value, context: CallContext): AsyncIterable<Value>;
  talk?(requests: AsyncIterable<Value>, context: CallContext): AsyncIterable<Value>;
}

/** Unlike `defineService`, leaves out what the test doesn't need. */
export function toyService(impl: ToyImpl, access: RpcService["access"] = "token"): RpcService {
  return { descriptor: Toy, access, typed: { ...impl } as RpcService["typed"], raw: {} };
}

export interface ToyClient {
  unary(request: Partial<Value>, options?: object): Promise<Value>;
  gather(requests: AsyncIterable<Value>, options?: object): Promise<Value>;
  scatter(request: Partial<Value>, options?: object): AsyncIterable<Value>;
  talk(requests: AsyncIterable<Value>, options?: object): AsyncIterable<Value>;
}
